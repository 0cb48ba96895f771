"""Strikes, exclusion and the way back."""

import pytest

from skymask.errors import InputError
from skymask.flower.policy import Policy, Standing


def after(policy: Policy, *verdicts: str) -> Standing:
    """A node's standing after rounds with these verdicts; "out" is one without being asked."""
    standing = Standing()
    for verdict in verdicts:
        if verdict == "out":
            assert standing.excluded
            standing = policy.rested(standing)
        else:
            assert not standing.excluded
            standing = policy.after(standing, verdict)
    return standing


def test_three_strikes_exclude():
    policy = Policy(strikes=3, pardon_after=5)
    assert not after(policy, "rejected", "malformed").excluded
    assert after(policy, "rejected", "malformed", "rejected") == Standing(3, 5)


def test_errors_and_silence_are_never_strikes():
    assert after(Policy(strikes=1), *["error", "silent", "unjudged"] * 9) == Standing()


def test_an_accepted_round_takes_a_strike_back():
    policy = Policy(strikes=3)
    assert after(policy, *["rejected", "accepted"] * 9) == Standing()
    assert after(policy, "rejected", "rejected", "accepted", "rejected").strikes == 2


def test_the_way_back_is_short_for_who_goes_on():
    policy = Policy(strikes=2, pardon_after=2)
    back = ["rejected", "rejected", "out", "out"]
    assert after(policy, *back) == Standing(1, 0)
    assert after(policy, *back, "rejected").excluded
    assert after(policy, *back, "accepted") == Standing()


def test_without_a_way_back_a_node_stays_out():
    policy = Policy(strikes=1, pardon_after=None)
    assert after(policy, "rejected", *["out"] * 1000).excluded


def test_without_a_limit_nobody_is_excluded():
    assert not after(Policy(strikes=None), *["rejected"] * 1000).excluded


def test_who_only_observes_excludes_nobody_but_counts():
    assert after(Policy(observe=True), *["rejected"] * 5) == Standing(5, 0)


def test_the_allow_list_takes_ids_and_names():
    policy = Policy(allow=(7, "hospital-2", "18446744073709551615"))
    assert policy.allows(7, None)
    assert policy.allows(1, "hospital-2")
    assert policy.allows(2**64 - 1, None)
    assert not policy.allows(8, "hospital-7")


@pytest.mark.parametrize(
    "settings", [{"strikes": 0}, {"pardon_after": 0}, {"allow": "n1"}, {"strikes": 1.5}]
)
def test_a_setting_out_of_bounds_is_named(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        Policy(**settings)
