"""The counters of one swap file: their names, and the array in the region that holds them.

The counters live in the region so that they survive the server (I3). ``COUNTERS`` is part of
the region's format: append only. Units are pages unless the name ends in another one.
"""

from __future__ import annotations

from typing import Final

COUNTERS: Final = (
    # pages read, by where they were found
    "read_empty_pages",
    "read_same_pages",
    "read_pool_pages",
    "read_file_pages",
    # pages written, by what became of them
    "write_same_pages",
    "write_compressed_pages",
    "write_raw_pages",
    "write_direct_pages",
    # requests
    "read_bytes",
    "written_bytes",
    "partial_requests",
    "discard_requests",
    "discarded_pages",
    # movement between tiers
    "demoted_pages",
    "demoted_payload_bytes",
    "demoted_batches",
    "promoted_pages",
    "refaulted_pages",
    "cleaned_pages",
    # the backing file
    "file_read_bytes",
    "file_read_ops",
    "file_written_bytes",
    "file_write_ops",
    # failures, by cause
    "failed_read_io",
    "failed_read_checksum",
    "failed_write_no_room",
    "failed_write_io",
    "failed_demotions",
    "pool_full",
    "handler_errors",
    "bad_sectors",
    # the server itself
    "server_starts",
    # added later; by what they count they belong above
    "compacted_pages",
    "lost_pages",
    "drained_pages",
    "sunk_pages",
    "recompressed_pages",
    "recompressed_down_pages",
    "recompress_refused_pages",
    "recompress_returned_pages",
    "recompress_saved_bytes",
    "demoted_raw_pages",
    "oom_calls",
    "policy_failures",
    "read_ahead_ops",
    "read_ahead_bytes",
    "read_ahead_pages",
    "prefetched_pages",
    "prefetch_used_pages",
    "failed_write_over_quota",
)

COUNTER_INDEX: Final = {name: index for index, name in enumerate(COUNTERS)}


class Counters:
    """Named 64-bit counters over one slice of the region.

    :param words: writable memoryview of format ``Q``, at least ``len(COUNTERS)`` long
    """

    __slots__ = ("words",)

    def __init__(self, words: memoryview) -> None:
        assert words.format == "Q"
        assert len(words) >= len(COUNTERS)
        self.words = words

    def add(self, name: str, count: int = 1) -> None:
        """Add *count* to the counter *name*; the caller serialises writers."""
        self.words[COUNTER_INDEX[name]] += count

    def get(self, name: str) -> int:
        """Return the counter *name*."""
        value: int = self.words[COUNTER_INDEX[name]]
        return value

    def snapshot(self) -> dict[str, int]:
        """Return every counter by name."""
        return dict(zip(COUNTERS, self.words.tolist(), strict=False))
