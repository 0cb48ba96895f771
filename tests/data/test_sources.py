"""Finding, fetching and loading data sets; the loaders on small files, and on the real ones."""

import gzip
import pickle
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from skymask.data import sources
from skymask.data.official import OFFICIAL, Archive, OfficialFile
from skymask.data.sources import DATA_SETS, fetch, find, load, search_path, standardised
from skymask.errors import InputError

FOLDERS = {name: wanted.folder for name, wanted in OFFICIAL.items()}


@pytest.fixture(autouse=True)
def no_other_places(monkeypatch, tmp_path):
    """Without SKYMASK_DATA, a cache or Debian's packages."""
    monkeypatch.delenv("SKYMASK_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "SYSTEM_FOLDER", tmp_path / "system")


def forget_digests(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    files = tuple(OfficialFile(file.path) for file in OFFICIAL[name].files)
    monkeypatch.setitem(OFFICIAL, name, replace(OFFICIAL[name], files=files))


def write_files(name: str, place: Path) -> Path:
    """Files with the right names and nothing in them."""
    folder = place / FOLDERS[name]
    for file in OFFICIAL[name].files:
        (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
        (folder / file.path).write_bytes(b"")
    return folder


def test_the_search_path_prefers_what_was_said_last(monkeypatch, tmp_path):
    system = tmp_path / "system"
    assert search_path() == [tmp_path / "cache" / "skymask", system]
    monkeypatch.setenv("SKYMASK_DATA", str(tmp_path / "mine"))
    assert search_path() == [tmp_path / "mine", system]
    assert search_path(Path("here")) == [Path("here"), system]
    monkeypatch.delenv("SKYMASK_DATA")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert search_path() == [tmp_path / ".cache" / "skymask", system]


@pytest.mark.parametrize("name", OFFICIAL)
def test_find_wants_every_file(name, tmp_path):
    assert find(name, tmp_path) is None
    folder = write_files(name, tmp_path)
    assert find(name, tmp_path) == folder
    (folder / OFFICIAL[name].files[-1].path).unlink()
    assert find(name, tmp_path) is None
    system = write_files(name, tmp_path / "system")
    assert find(name, tmp_path) == system
    assert fetch(name, tmp_path) == system


@pytest.mark.parametrize("function", [load, find, fetch])
def test_an_unknown_name_suggests_the_nearest(function):
    with pytest.raises(InputError, match=r"data set 'fashion-mist' .* 'fashion-mnist'\?"):
        function("fashion-mist")


@pytest.mark.parametrize("function", [find, fetch])
def test_built_in_sets_have_no_files(function):
    for name in DATA_SETS.keys() - OFFICIAL.keys():
        with pytest.raises(InputError, match="built in"):
            function(name)


def test_an_unreachable_set_says_where_it_looked_and_what_to_do(monkeypatch, tmp_path, server):
    url = server.url("gone.tar.gz")
    missing = replace(OFFICIAL["cifar-10"], archives=(Archive(url, ""),))
    monkeypatch.setitem(OFFICIAL, "cifar-10", missing)
    write_files("cifar-10", tmp_path / "system").joinpath("data_batch_3").unlink()
    with pytest.raises(InputError) as caught:
        load("cifar-10", tmp_path / "mine")
    message = str(caught.value)
    assert str(tmp_path / "mine" / "cifar-10-batches-py") in message
    assert f"{tmp_path / 'system' / 'cifar-10-batches-py'} (lacks data_batch_3)" in message
    assert f"Get {url}" in message
    assert "SKYMASK_DATA or --data-dir" in message
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_corrupt_file_is_refused(name, tmp_path):
    folder = write_files(name, tmp_path)
    with pytest.raises(InputError, match=f"{folder}.* is corrupt"):
        load(name, tmp_path)


def test_the_built_in_sets_load_without_files():
    assert load("digits").name == "digits"
    assert load("synthetic", seed=2).train.inputs.equal(load("synthetic", seed=2).train.inputs)


def test_fashion_mnist_files_become_images_from_0_to_1(monkeypatch, tmp_path):
    forget_digests(monkeypatch, "fashion-mnist")
    folder = write_files("fashion-mnist", tmp_path)
    for stem, rows in (("train", 3), ("t10k", 2)):
        pixels = np.full((rows, 28, 28), 51, np.uint8)
        for kind, array in (("images-idx3", pixels), ("labels-idx1", np.arange(rows))):
            head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            content = gzip.compress(head + array.astype(np.uint8).tobytes())
            (folder / f"{stem}-{kind}-ubyte.gz").write_bytes(content)
    data = load("fashion-mnist", tmp_path)
    assert data.train.inputs.shape == (3, 1, 28, 28)
    torch.testing.assert_close(data.test.inputs, torch.full((2, 1, 28, 28), 0.2))
    assert data.train.labels.tolist() == [0, 1, 2]


def test_cifar_channels_are_standardised_by_the_training_images(monkeypatch, tmp_path):
    forget_digests(monkeypatch, "cifar-10")
    folder = write_files("cifar-10", tmp_path)
    random = np.random.default_rng(0)
    raw = []
    for file in OFFICIAL["cifar-10"].files:
        raw.append(random.integers(0, 256, (4, 3072)).astype(np.uint8))
        batch = {b"data": raw[-1], b"labels": [0, 1, 2, 9]}
        (folder / file.path).write_bytes(pickle.dumps(batch, protocol=3))
    data = load("cifar-10", tmp_path)
    train = np.concatenate(raw[:5]).reshape(20, 3, 32, 32).astype(float)
    mean, deviation = train.mean((0, 2, 3)), train.std((0, 2, 3))
    for part, pixels in ((data.train, train), (data.test, raw[5].reshape(4, 3, 32, 32))):
        wanted = (pixels - mean[:, None, None]) / deviation[:, None, None]
        torch.testing.assert_close(part.inputs, torch.from_numpy(wanted).float())
    assert data.train.labels.tolist() == [0, 1, 2, 9] * 5


@pytest.fixture
def small_har(monkeypatch, tmp_path) -> Path:
    """Twenty rows of each subject; feature 7 never changes."""
    forget_digests(monkeypatch, "har")
    folder = write_files("har", tmp_path)
    random = np.random.default_rng(0)
    for part, people in (("train", range(1, 22)), ("test", range(22, 31))):
        subjects = np.repeat(list(people), 20)
        table = random.normal(3, 2, (len(subjects), 561))
        table[:, 7] = 0.1
        np.savetxt(folder / part / f"X_{part}.txt", table, fmt="%16.7e", delimiter="")
        labels = random.integers(1, 7, len(subjects))
        np.savetxt(folder / part / f"y_{part}.txt", labels, fmt="%d")
        np.savetxt(folder / part / f"subject_{part}.txt", subjects, fmt="%d")
    return folder


def test_har_is_split_within_each_subject(small_har):
    data = load("har", small_har.parent)
    assert data.subjects.bincount().tolist() == [14] * 30
    assert len(data.test.labels) == 6 * 30
    assert (data.train.labels.min(), data.train.labels.max()) == (0, 5)
    assert load("har", small_har.parent).train.inputs.equal(data.train.inputs)
    assert not load("har", small_har.parent, seed=2).train.inputs.equal(data.train.inputs)


def test_har_features_are_standardised_by_the_training_rows(small_har):
    inputs = load("har", small_har.parent).train.inputs.double()
    others = [k for k in range(561) if k != 7]
    torch.testing.assert_close(inputs.mean(0), torch.zeros(561).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        inputs[:, others].std(0, correction=0), torch.ones(560).double(), atol=1e-6, rtol=0
    )


def test_a_constant_feature_becomes_zero():
    features = torch.tensor([[0.1, 1.0], [0.1, 2.0], [0.1, 3.0], [0.4, 4.0]], dtype=torch.float64)
    scaled = standardised(features, torch.tensor([True, True, True, False]))
    assert scaled.isfinite().all()
    assert scaled[:3, 0].abs().max() < 1e-12


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train/y_train.txt", b"1\n2\n", "must have the same number"),
        ("train/y_train.txt", b"7\n", "from 1 to 6"),
        ("test/subject_test.txt", b"31\n", "from 1 to 30"),
        ("test/X_test.txt", b"1 2\n", "2 columns but must have 561"),
    ],
)
def test_har_files_that_do_not_fit_are_refused(small_har, file, content, message):
    (small_har / file).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load("har", small_har.parent)


def real(name: str, folder: Path) -> sources.Dataset:
    if find(name, folder) is None:
        pytest.skip(f"SKYMASK_DATA is {folder} but has no {FOLDERS[name]}")
    return load(name, folder)


@pytest.mark.data
def test_the_real_fashion_mnist(data_dir):
    data = real("fashion-mnist", data_dir)
    assert data.train.inputs.shape == (60000, 1, 28, 28)
    assert data.test.inputs.shape == (10000, 1, 28, 28)
    assert data.train.labels.bincount().tolist() == [6000] * 10
    assert data.train.inputs.aminmax() == (0, 1)
    assert data.train.inputs.mean().item() == pytest.approx(0.2860, abs=1e-4)
    assert data.train.labels[:5].tolist() == [9, 0, 0, 3, 0]


@pytest.mark.data
def test_the_real_cifar_10(data_dir):
    data = real("cifar-10", data_dir)
    assert data.train.inputs.shape == (50000, 3, 32, 32)
    assert data.test.labels.bincount().tolist() == [1000] * 10
    deviation, mean = torch.std_mean(data.train.inputs.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros(3).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(deviation, torch.ones(3).double(), atol=1e-6, rtol=0)
    assert data.train.labels[:5].tolist() == [6, 9, 9, 4, 1]


@pytest.mark.data
def test_the_real_har(data_dir):
    data = real("har", data_dir)
    assert len(data.train.labels) + len(data.test.labels) == 10299
    assert data.subjects.unique().tolist() == list(range(30))
    assert data.train.inputs.shape[1] == 561
    assert data.train.inputs.isfinite().all()
    assert data.test.inputs.isfinite().all()
    assert len(data.train.labels) / 10299 == pytest.approx(0.7, abs=0.001)
