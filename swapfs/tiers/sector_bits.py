"""A bitmap of sectors: one bit each, lowest first."""

from __future__ import annotations

from typing import Final

_NONZERO: Final = bytes([0]) + bytes([1]) * 255


class SectorBits:
    """Bits of sectors, all clear; not thread safe."""

    __slots__ = ("data",)

    def __init__(self, sectors: int) -> None:
        assert sectors % 8 == 0
        self.data = bytearray(sectors // 8)

    def copy(self) -> SectorBits:
        """Return another one with the same bits."""
        other = SectorBits(0)
        other.data[:] = self.data
        return other

    def set(self, sector: int, sectors: int) -> int:
        """Set the bits of *sectors* sectors from *sector* on; return how many were clear."""
        first, length, mask = _mask(sector, sectors)
        bits = int.from_bytes(self.data[first : first + length], "little")
        self.data[first : first + length] = (bits | mask).to_bytes(length, "little")
        return (mask & ~bits).bit_count()

    def clear(self, sector: int, sectors: int, keep: SectorBits) -> int:
        """Clear set bits but for those that *keep* has; return how many those were."""
        first, length, mask = _mask(sector, sectors)
        bits = int.from_bytes(self.data[first : first + length], "little")
        assert bits & mask == mask, "released sectors that were free"
        mask &= ~int.from_bytes(keep.data[first : first + length], "little")
        self.data[first : first + length] = (bits & ~mask).to_bytes(length, "little")
        return mask.bit_count()

    def count(self, sector: int = 0, sectors: int | None = None) -> int:
        """Return how many bits are set in a range that begins and ends on a byte, or in all."""
        end = len(self.data) if sectors is None else (sector + sectors) // 8
        return int.from_bytes(self.data[sector // 8 : end], "little").bit_count()

    def span(self, sector: int, sectors: int) -> tuple[int, int]:
        """Return (first sector, sectors) from the first to the last set bit of a range that ends
        on a byte, to whole bytes but for its start; no sectors: none is set.
        """
        first = sector // 8
        bits = self.data[first : (sector + sectors) // 8]
        bits[0] &= 0xFF << sector % 8 & 0xFF
        length = len(bits.rstrip(b"\0"))
        start = length - len(bits[:length].lstrip(b"\0"))
        begin = max(sector, (first + start) * 8)
        return begin, (first + length) * 8 - begin if length else 0

    def longest_hole(self, sector: int, sectors: int) -> tuple[int, int]:
        """Return (first sector, sectors) of the longest run of clear whole bytes in a range.

        Runs of odd sectors at its ends are passed over.
        """
        first = sector // 8
        bits = self.data[first : first + sectors // 8]
        best = max(bits.translate(_NONZERO).split(b"\1"), key=len)
        return (first + bits.find(best)) * 8, len(best) * 8


def _mask(start: int, count: int) -> tuple[int, int, int]:
    """Return (first byte, bytes, mask) of bits *start*..*start+count*."""
    first, shift = divmod(start, 8)
    length = (shift + count + 7) // 8
    return first, length, ((1 << count) - 1) << shift
