"""Sizes that people write."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerkit import InvalidValue
from containerkit.units import size

UNITS = {"": 0, "B": 0, "K": 10, "KB": 10, "KiB": 10, "M": 20, "MB": 20, "MiB": 20, "G": 30, "GiB": 30, "T": 40}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (1, 1),
        (4096, 4096),
        ("512", 512),
        ("1B", 1),
        ("512K", 512 << 10),
        ("512k", 512 << 10),
        ("64M", 64 << 20),
        ("64MB", 64 << 20),
        ("64MiB", 64 << 20),
        ("64mib", 64 << 20),
        (" 64 M ", 64 << 20),
        ("1.5G", 3 << 29),
        ("0.5K", 512),
        ("2T", 2 << 40),
        ((1 << 63) - 1, (1 << 63) - 1),
    ],
)
def test_a_size_is_bytes(written: int | str, expected: int) -> None:
    assert size(written) == expected


@pytest.mark.parametrize(
    "written",
    [
        "", " ", "M", "B", "K1", "1X", "1KK", "1MM", "-1", "-1M", "+1", "1e3", "0x10", "1_000", "1,5M", "1.M", ".5M",
        "1.5.5M", "1 000", "\u0130", "M1M", "inf", "nan",
        "\uff11M", "\u0661", "64Μ", "1BB", "1.5e3K", "1 B B", "KiB", "1iB", "9" * 5000,  # noqa: RUF001
    ],
)  # fmt: skip
def test_text_that_is_not_a_size_is_refused(written: str) -> None:
    with pytest.raises(InvalidValue, match="is not a size"):
        size(written)


@pytest.mark.parametrize("value", [None, 1.5, True, b"64M", [1]])
def test_other_types_are_refused(value: object) -> None:
    with pytest.raises(InvalidValue, match="is not a size"):
        size(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, -1, "00", "0M", "0.0001", 1 << 63, "8388608T", "99999999999999999999"])
def test_a_size_has_at_least_one_byte_and_fits_in_63_bits(value: int | str) -> None:
    with pytest.raises(InvalidValue, match="at least one byte"):
        size(value)


@given(st.integers(1, (1 << 22) - 1), st.sampled_from(sorted(UNITS)), st.booleans(), st.booleans())
def test_every_number_with_every_unit_is_that_many_bytes(number: int, unit: str, lower: bool, spaced: bool) -> None:
    text = f"{number}{' ' if spaced else ''}{unit.lower() if lower else unit}"
    assert size(text) == number << UNITS[unit]


@given(st.integers(1, (1 << 63) - 1))
def test_a_number_as_text_is_itself_exactly(number: int) -> None:
    assert size(str(number)) == size(number) == number


@given(st.text(max_size=12))
def test_any_text_gives_a_size_or_is_refused_with_the_one_error(text: str) -> None:
    with suppress(InvalidValue):
        assert 0 < size(text) < 1 << 63
