"""Sizes as the user writes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapfs.units import GiB, KiB, MiB, TiB, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("4096", 4096),
        ("64K", 64 * KiB),
        ("64k", 64 * KiB),
        ("1.5G", 3 * GiB // 2),
        ("256MiB", 256 * MiB),
        ("256MB", 256 * MiB),
        ("1T", TiB),
        (" 8 M ", 8 * MiB),
        ("512B", 512),
        ("0", 0),
    ],
)
def test_parse_size(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "G", "1X", "-1", "1e9", "1 G G", "1iB", "0x10", "1,5G"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


def test_a_fraction_of_a_byte_is_refused() -> None:
    with pytest.raises(ValueError, match="whole number of bytes"):
        parse_size("1.0001K")


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0B"), (1023, "1023B"), (4096, "4K"), (3 * GiB // 2, "1.5G"), (2048 * TiB, "2048T")],
)
def test_format_size(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@given(st.integers(0, 2000 * TiB))
def test_a_formatted_size_reads_back_within_its_rounding(size_bytes: int) -> None:
    text = format_size(size_bytes)
    try:
        back = parse_size(text)
    except ValueError:
        return  # a tenth of a unit need not be whole bytes
    assert abs(back - size_bytes) <= size_bytes * 0.06


@given(st.integers(0, 1 << 40), st.sampled_from(["", "K", "M", "G", "T"]))
def test_whole_numbers_of_any_unit_are_exact(number: int, unit: str) -> None:
    factor = 1024 ** " KMGT".index(unit or " ")
    if number * factor < 1 << 53:
        assert parse_size(f"{number}{unit}") == number * factor
