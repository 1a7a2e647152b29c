"""Security and Capabilities as values."""

from __future__ import annotations

import pickle
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerkit import Capabilities, InvalidValue, Security
from containerkit.security.capabilities import NAMES

names = st.lists(st.sampled_from(NAMES), max_size=6)


def test_capabilities_are_known_with_and_without_the_prefix_in_any_case() -> None:
    wanted = Capabilities("CAP_NET_BIND_SERVICE")
    for name in ("NET_BIND_SERVICE", "net_bind_service", "cap_net_bind_service"):
        assert Capabilities(name) == wanted
        assert name in wanted


def test_the_numbers_are_the_kernels() -> None:
    # linux/capability.h
    known = {"CHOWN": 0, "KILL": 5, "NET_BIND_SERVICE": 10, "SYS_ADMIN": 21, "SETFCAP": 31, "CHECKPOINT_RESTORE": 40}
    assert {name: Capabilities(name).mask for name in known} == {name: 1 << n for name, n in known.items()}


def test_all_names_of_this_kernel_are_known() -> None:
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    assert len(NAMES) > last


@pytest.mark.parametrize("name", ["", "CAP_", "SYS_ADMINN", "ALL", "21", "CAP_CAP_KILL", "KILL,CHOWN", "KİLL"])
def test_an_unknown_capability_is_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidValue, match="unknown capability"):
        Capabilities(name)


@given(names, names)
def test_capabilities_behave_as_a_set_of_names(one: list[str], two: list[str]) -> None:
    first, second = Capabilities(*one), Capabilities(*two)
    assert set(first) == {f"CAP_{name}" for name in one}
    assert (first == second) == (set(one) == set(two))
    assert first != set(one)
    if first == second:
        assert hash(first) == hash(second)
    assert bool(first) == bool(one)
    assert all((name in first) == (name in one) for name in NAMES)


@given(names)
def test_capabilities_can_be_printed_and_pickled(some: list[str]) -> None:
    value = Capabilities(*some)
    assert eval(repr(value)) == value  # noqa: S307
    assert pickle.loads(pickle.dumps(value)) == value  # noqa: S301


def test_capabilities_do_not_change() -> None:
    value = Capabilities("KILL")
    with pytest.raises(AttributeError, match="immutable"):
        value.mask = 0
    with pytest.raises(AttributeError):
        del value.mask


def test_strict_leaves_nothing() -> None:
    strict = Security.strict()
    assert strict.capabilities == Capabilities()
    assert strict.no_new_privs
    assert not strict.ambient


def test_the_loosest_security_has_a_long_name_and_changes_nothing() -> None:
    loose = Security.unconfined_as_the_caller()
    assert loose.capabilities is None
    assert not loose.no_new_privs


def test_security_is_a_frozen_value_that_evolves() -> None:
    strict = Security.strict()
    assert strict == attrs.evolve(strict) == Security.strict()
    assert attrs.evolve(strict, ambient=True) != strict
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        strict.no_new_privs = False  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(strict)) == strict  # noqa: S301
    assert hash(strict) == hash(Security.strict())
