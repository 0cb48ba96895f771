"""Arrays that came over the network: what is taken from them, and what is refused."""

from io import BytesIO

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from skymask.errors import InputError
from skymask.flower.layout import Malformed, decode, layout


class Tied(nn.Module):
    """Weights under two names, frozen ones, batch norm, and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4, bias=False)
        self.norm = nn.BatchNorm1d(4)
        self.frozen = nn.Linear(4, 4)
        self.frozen.requires_grad_(False)
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.embed.weight


def record(module: nn.Module, **changes: np.ndarray) -> ArrayRecord:
    """The module's state with some arrays changed; `norm_weight` is `norm.weight`."""
    arrays = ArrayRecord(module.state_dict())
    for name, value in changes.items():
        arrays[name.replace("_", ".", 1)] = Array(value)
    return arrays


def decoded(arrays: ArrayRecord) -> dict[str, np.ndarray]:
    return {key: decode(key, array) for key, array in arrays.items()}


def npy(array: np.ndarray, **settings) -> bytes:
    stream = BytesIO()
    np.save(stream, array, **settings)
    return stream.getvalue()


# What a model's arrays are.


def test_parameters_buffers_and_the_rest_are_told_apart():
    module = Tied()
    found = layout(record(module), module)
    assert set(found.params) == {"embed.weight", "norm.weight", "norm.bias"}
    assert set(found.buffers) == {"norm.running_mean", "norm.running_var"}
    assert found.aliases == {"head.weight": "embed.weight"}
    assert set(found.fixed) == {"frozen.weight", "frozen.bias"}
    params, buffers = found.vectors(decoded(record(module)))
    trained = [p for p in module.parameters() if p.requires_grad]
    assert params.equal(torch.cat([p.detach().flatten() for p in trained]))
    assert buffers.tolist() == [0.0] * 4 + [1.0] * 4


def test_a_record_of_vectors_is_the_model_again():
    module = Tied()
    sent = record(module)
    found = layout(sent, module)
    params, buffers = found.vectors(decoded(sent))
    back = found.record(params + 1, buffers + 2, sent)
    assert list(back) == list(sent)
    values = decoded(back)
    assert np.allclose(values["embed.weight"], decoded(sent)["embed.weight"] + 1)
    assert np.array_equal(values["head.weight"], values["embed.weight"])
    assert np.allclose(values["norm.running_var"], 3)
    assert np.array_equal(values["frozen.weight"], decoded(sent)["frozen.weight"])
    assert values["norm.num_batches_tracked"].dtype == np.int64


def test_arrays_in_order_without_names_do_too():
    module = Tied()
    numbered = ArrayRecord([value.numpy() for value in module.state_dict().values()])
    found = layout(numbered, module)
    assert found.aliases == {"8": "0"}
    assert set(found.params) == {"0", "1", "2"}


def test_the_module_takes_the_frozen_weights_that_were_sent():
    sent, module = record(Tied()), Tied()
    found = layout(sent, module)
    assert np.array_equal(found.model.module.frozen.weight, decoded(sent)["frozen.weight"])


def test_without_a_module_all_floating_point_arrays_are_parameters():
    found = layout(record(Tied()), None)
    assert len(found.params) == 8
    assert "norm.num_batches_tracked" not in found.params


def test_only_what_is_trained_may_be_sent():
    module = nn.Linear(3, 2)
    module.weight.requires_grad_(False)
    assert set(layout(ArrayRecord({"bias": Array(np.zeros(2, "f4"))}), module).params) == {"bias"}


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"weight": np.zeros((2, 3), "f4")}, "lacks 'bias'"),
        ({"weight": np.zeros((3, 2), "f4"), "bias": np.zeros(2, "f4")}, "'weight' has shape"),
        ({"weights": np.zeros((2, 3), "f4")}, "'weights'"),
        ({"trees": np.zeros(9, "u1")}, "no floating-point array"),
    ],
)
def test_arrays_that_do_not_fit_the_model_are_refused_at_the_start(arrays, told):
    sent = ArrayRecord({key: Array(value) for key, value in arrays.items()})
    with pytest.raises(InputError) as error:
        layout(sent, nn.Linear(3, 2))
    assert told in str(error.value).replace("]", "")


# What a client may send.


def check(**changes: np.ndarray) -> None:
    module = Tied()
    sent = record(module)
    found = layout(sent, module)
    reply = record(module)
    for name, value in changes.items():
        reply[name.replace("_", ".", 1)] = Array(value)
    found.decoded(reply, decoded(sent))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"norm_weight": np.ones(5, "f4")}, "'norm.weight' has shape (5,), not (4,)"),
        ({"norm_weight": np.ones(4, "i4")}, "int32"),
        ({"norm_weight": np.array([1, np.nan, 1, 1], "f4")}, "'norm.weight' is not finite"),
        ({"norm_weight": np.array([1, np.inf, 1, 1], "f4")}, "'norm.weight' is not finite"),
        ({"frozen_bias": np.ones(4, "f4") * 50}, "'frozen.bias' changed"),
        ({"head_weight": np.ones((4, 3), "f4")}, "differs from 'embed.weight'"),
        ({"more_weight": np.ones(4, "f4")}, "'more.weight', which the model has not"),
    ],
)
def test_what_no_training_gives_is_malformed(changes, told):
    with pytest.raises(Malformed) as error:
        check(**changes)
    assert told in str(error.value)


def test_a_counter_may_come_back_as_the_float_that_an_average_made_of_it():
    module = Tied()
    found, counter = layout(record(module), module), "norm.num_batches_tracked"
    reply = record(module)
    reply[counter] = Array(np.array(2.5))
    with pytest.raises(Malformed, match="not of the kind 'i'"):
        found.decoded(reply, decoded(record(module)))
    averaged = decoded(record(module)) | {counter: np.array(2.5)}
    found.decoded(reply, averaged)
    found.decoded(record(module), averaged)


def test_a_missing_array_is_malformed():
    module = Tied()
    sent = record(module)
    reply = record(module)
    del reply["norm.bias"]
    with pytest.raises(Malformed, match=r"lack 'norm\.bias'"):
        layout(sent, module).decoded(reply, decoded(sent))


def test_double_precision_and_fortran_order_are_fine():
    values = np.asfortranarray(np.arange(12.0).reshape(4, 3))
    check(embed_weight=values, head_weight=values)
    assert np.array_equal(decode("w", Array(values)), values)


# Bytes.


def raw(data: bytes, stype: str = "numpy.ndarray") -> Array:
    return Array("float32", (2,), stype, data)


@pytest.mark.parametrize(
    "array",
    [
        raw(b""),
        raw(b"garbage"),
        raw(npy(np.ones(2, "f4"))[:-1]),
        raw(npy(np.ones(2, "f4")) + b"0"),
        raw(npy(np.array([{}], object), allow_pickle=True)),
        raw(npy(np.ones(2, "f4")), stype="torch.tensor"),
        raw(b"\x93NUMPY\x01\x00v\x00" + b"{" * 118),
        # A header that asks for a terabyte.
        raw(npy(np.ones(1, "f4")).replace(b"(1,)", b"(1000000000000,)")),
        raw(npy(np.ones((2, 3), "f4")).replace(b"(2, 3)", b"(-2, -3)")),
    ],
)
def test_bytes_that_are_no_array_are_malformed(array):
    with pytest.raises(Malformed, match="'w'"):
        decode("w", array)


def test_a_zip_of_arrays_is_no_array():
    stream = BytesIO()
    np.savez(stream, w=np.ones(2))
    with pytest.raises(Malformed):
        decode("w", raw(stream.getvalue()))


@given(st.binary(max_size=200))
def test_any_bytes_are_an_array_or_malformed(data):
    try:
        array = decode("w", raw(data))
    except Malformed:
        return
    assert isinstance(array, np.ndarray)


@given(st.data())
def test_any_header_is_an_array_or_malformed(data):
    whole = bytearray(npy(np.arange(6, dtype="f4").reshape(2, 3)))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        array = decode("w", raw(bytes(whole)))
    except Malformed:
        return
    assert array.nbytes <= len(whole)
