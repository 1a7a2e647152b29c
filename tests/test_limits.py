"""Limits as a value."""

from __future__ import annotations

import pickle
import resource
from typing import Any

import attrs
import pytest

from containerkit import InvalidValue, Limits

NUMBERS = ("pids_max", "cpu_seconds", "nofile")
SIZES = ("output_max", "file_size_max")


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [0, -1, -0.5, "64", "many", [1], float("nan")])
def test_a_limit_that_is_not_a_positive_number_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidValue, match=name):
        Limits(**{name: value})


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", [0, -1, "lots", 1.5, "0M"])
def test_a_size_that_is_none_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidValue):
        Limits(**{name: value})


@pytest.mark.parametrize("name", NUMBERS + SIZES)
def test_none_is_no_limit(name: str) -> None:
    assert getattr(Limits(**{name: None}), name) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SIZES)
def test_a_size_may_be_written_with_a_unit(name: str) -> None:
    assert getattr(Limits(**{name: "64K"}), name) == 65536  # type: ignore[arg-type]


def test_limits_are_by_name_only() -> None:
    with pytest.raises(TypeError):
        Limits(64)  # type: ignore[misc]


def test_an_unknown_limit_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="pids"):
        Limits(pids=64)  # type: ignore[call-arg]


def test_limits_do_not_change() -> None:
    limits = Limits()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        limits.pids_max = 1  # type: ignore[misc]


def test_a_variant_differs_in_one_limit() -> None:
    base = Limits(pids_max=3)
    variant = attrs.evolve(base, cpu_seconds=2.0)
    assert (variant.pids_max, variant.cpu_seconds, base.cpu_seconds) == (3, 2.0, None)


def test_limits_are_compared_hashed_and_pickled_by_value() -> None:
    one, same, other = Limits(pids_max=3), Limits(pids_max=3), Limits(pids_max=4)
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert one != "Limits"
    assert pickle.loads(pickle.dumps(one)) == one  # noqa: S301


def test_the_limits_in_words_can_be_read_back() -> None:
    limits = Limits(pids_max=3, output_max="64K", cpu_seconds=1.5)
    assert eval(repr(limits), {"Limits": Limits}) == limits  # noqa: S307


def test_resource_limits_follow_the_values() -> None:
    assert Limits(pids_max=7, nofile=20, file_size_max="1K").rlimits() == {
        "core": 1,
        "nproc": 7,
        "nofile": 20,
        "fsize": 1024,
    }


def test_without_limits_only_core_files_are_forbidden() -> None:
    assert Limits(pids_max=None, nofile=None).rlimits() == {"core": 1}


def test_more_descriptors_than_the_caller_may_have_are_not_promised() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert Limits(nofile=soft + 1).rlimits()["nofile"] == soft
