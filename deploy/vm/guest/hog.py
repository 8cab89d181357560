#!/usr/bin/python3
"""Fills memory with pages that it can tell apart, and verifies every byte; for the test VM.

Reads one command a line from stdin and answers each with one line of JSON on stdout:

    fill [PAGES]      write the next PAGES pages (default: all that are left)
    verify [random]   compare every page written so far, in address order or a random one
    rewrite PERCENT   give that many of the pages, chosen at random, new contents
    churn SECONDS     verify, and rewrite a third of, short runs at random places for so long
    visit TIMES       the same for so many runs, most of them at few places
    pageout           ask the kernel to swap all of them out (madvise)
    quit

A page's contents follow from its index and how often it was written, so that any page swapped
for another, an older version, or part of one, is found. Standard library and swapfs only.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import struct
import sys
import time
from array import array
from typing import Any, Final

from swapfs.testing.pages import mixed_pages

PAGE_BYTES: Final = 4096
WORD_BYTES: Final = 8
PAGE_WORDS: Final = PAGE_BYTES // WORD_BYTES
STAMP: Final = struct.Struct("<QQ")
CORPUS_PAGES: Final = 256
"""Pages that are written and compared as one block, too: the emulated CPU has no time for each."""
KIND_PERIOD: Final = 32
"""Of so many neighbours one is zero and one is a repeated word; the others are stamped."""
MADV_PAGEOUT: Final = 21  # include/uapi/asm-generic/mman-common.h, Linux 5.4
CHURN_RUN_PAGES: Final = 24
VISIT_SPAN: Final = 40
"""Half of the visits go to the first of so many parts of the places, in Pareto's distribution."""
DETAILS_MAX: Final = 10
EASY_BYTES: Final = 24
"""A page of these over and over is one match to lz4; it is no repeated word."""
PROGRESS_EVERY_S: Final = 5.0


class Memory:
    """*pages* anonymous pages; what each must hold is known from its index and version.

    :param raw: every one of them random but for its stamp, so that none can be compressed
    :param easy: every one compresses to next to nothing, where pages are only there to be many
    """

    def __init__(self, pages: int, seed: int, *, raw: bool = False, easy: bool = False) -> None:
        self.pages = pages
        self.filled = 0
        self._seed = seed
        self._raw = raw
        self._map = mmap.mmap(-1, pages * PAGE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._map.madvise(mmap.MADV_NOHUGEPAGE)
        self._versions = array("B", bytes(pages))
        rng = random.Random(seed)
        if easy:
            texts = [rng.randbytes(EASY_BYTES) for _ in range(CORPUS_PAGES)]
            self._tails = [(text * PAGE_BYTES)[: PAGE_BYTES - STAMP.size] for text in texts]
        elif raw:
            self._tails = [rng.randbytes(PAGE_BYTES - STAMP.size) for _ in range(CORPUS_PAGES)]
        else:
            self._tails = [page[STAMP.size :] for page in mixed_pages(seed, CORPUS_PAGES)]
        self._block = b"".join(b"".join(self._parts(index)) for index in range(CORPUS_PAGES))

    def _parts(self, index: int) -> tuple[bytes, bytes]:
        """Return what page *index* must hold, as its first bytes and the rest."""
        version, kind = self._versions[index], index % KIND_PERIOD
        if self._raw:
            kind = KIND_PERIOD
        if kind == 0 and version == 0:
            return bytes(STAMP.size), bytes(PAGE_BYTES - STAMP.size)
        word = index << 8 | version
        if kind == 1:
            page = struct.pack("<Q", word ^ self._seed << 48) * (PAGE_BYTES // 8)
            return page[: STAMP.size], page[STAMP.size :]
        # a block has each tail once, as 7 and the number of tails have no common divisor
        tail = self._tails[(index * 7 + version) % CORPUS_PAGES]
        return STAMP.pack(word, self._seed), tail

    def write(self, index: int) -> None:
        """Write page *index* in its present version."""
        start = index * PAGE_BYTES
        head, tail = self._parts(index)
        self._map[start : start + STAMP.size] = head
        self._map[start + STAMP.size : start + PAGE_BYTES] = tail

    def _stamp(self, block: memoryview, first: int) -> None:
        """Make the copy *block* of the first block the one that begins with page *first*."""
        words = block.cast("Q")
        words[::PAGE_WORDS] = array("Q", range(first << 8, first + CORPUS_PAGES << 8, 1 << 8))
        if self._raw:
            return
        zeros = bytes(CORPUS_PAGES // KIND_PERIOD * WORD_BYTES)
        words[:: PAGE_WORDS * KIND_PERIOD] = array("Q", zeros)
        for index in range(1, CORPUS_PAGES, KIND_PERIOD):
            start = index * PAGE_BYTES
            block[start : start + PAGE_BYTES] = b"".join(self._parts(first + index))

    def write_block(self, first: int) -> None:
        """Write CORPUS_PAGES new pages, of which *first*, a multiple of that, is the first."""
        start, end = first * PAGE_BYTES, (first + CORPUS_PAGES) * PAGE_BYTES
        self._map[start:end] = self._block
        self._stamp(memoryview(self._map)[start:end], first)

    def block_is_right(self, first: int) -> bool:
        """Compare as many pages; False too where one was written again: look at each, then."""
        if any(self._versions[first : first + CORPUS_PAGES]):
            return False
        expected = bytearray(self._block)
        self._stamp(memoryview(expected), first)
        start, end = first * PAGE_BYTES, (first + CORPUS_PAGES) * PAGE_BYTES
        return self._map[start:end] == expected

    def rewrite(self, index: int) -> None:
        """Give page *index* its next version."""
        self._versions[index] = (self._versions[index] + 1) % 256
        self.write(index)

    def wrong(self, index: int) -> str:
        """Compare page *index*; return what is wrong with it, or nothing."""
        start = index * PAGE_BYTES
        head, tail = self._parts(index)
        # two slices compared as bytes: one memcpy and one memcmp each
        if (
            self._map[start + STAMP.size : start + PAGE_BYTES] == tail
            and self._map[start : start + STAMP.size] == head
        ):
            return ""
        found = self._map[start : start + PAGE_BYTES]
        differing = [i for i, (a, b) in enumerate(zip(found, head + tail, strict=True)) if a != b]
        word, seed = STAMP.unpack_from(found)
        return (
            f"page {index} version {self._versions[index]}: {len(differing)} bytes differ, from "
            f"{differing[:1]}; its stamp says page {word >> 8} version {word & 255} seed {seed}"
        )

    def page_out(self) -> None:
        """Ask the kernel to reclaim every page."""
        self._map.madvise(MADV_PAGEOUT)


class Progress:
    """Prints how far a long loop is, to stderr, every few seconds."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total = what, total
        self.started_s = self._last_s = time.monotonic()

    def at(self, done: int) -> None:
        """Note that *done* of the total are done."""
        if done % 256 == 0 and (now := time.monotonic()) - self._last_s >= PROGRESS_EVERY_S:
            self._last_s = now
            print(
                f"  hog: {self._what}: {done * 100 // self._total} %", file=sys.stderr, flush=True
            )


class Hog:
    """Carries out the commands; each method returns what is answered."""

    def __init__(self, memory: Memory, seed: int) -> None:
        self._memory = memory
        self._rng = random.Random(seed)

    def fill(self, pages: str = "") -> dict[str, Any]:
        """Write the next *pages* pages."""
        memory = self._memory
        end = min(memory.pages, memory.filled + int(pages)) if pages else memory.pages
        progress = Progress("filling", memory.pages)
        while memory.filled < end:
            if memory.filled % CORPUS_PAGES == 0 and end - memory.filled >= CORPUS_PAGES:
                memory.write_block(memory.filled)
                memory.filled += CORPUS_PAGES
            else:
                memory.write(memory.filled)
                memory.filled += 1
            progress.at(memory.filled)
        return {"pages": memory.filled}

    def verify(self, order: str = "") -> dict[str, Any]:
        """Compare every page written so far."""
        indexes = list(range(self._memory.filled))
        if order:
            self._rng.shuffle(indexes)
        progress = Progress(f"verifying {order}".rstrip(), len(indexes))
        problems, done = [], 0
        while done < len(indexes):
            whole = not order and done % CORPUS_PAGES == 0 and len(indexes) - done >= CORPUS_PAGES
            if whole and self._memory.block_is_right(done):
                done += CORPUS_PAGES
            else:
                if problem := self._memory.wrong(indexes[done]):
                    problems.append(problem)
                done += 1
            progress.at(done)
        return _verdict(len(indexes), problems)

    def rewrite(self, percent: str) -> dict[str, Any]:
        """Give *percent* of the pages new contents."""
        filled = self._memory.filled
        chosen = self._rng.sample(range(filled), filled * int(percent) // 100)
        progress = Progress("rewriting", len(chosen))
        for done, index in enumerate(chosen):
            self._memory.rewrite(index)
            progress.at(done)
        return {"pages": len(chosen)}

    def churn(self, seconds: str) -> dict[str, Any]:
        """Verify and rewrite short runs of pages at random places until *seconds* have passed."""
        end_s = time.monotonic() + float(seconds)
        problems: list[str] = []
        verified = 0
        while time.monotonic() < end_s:
            first = self._rng.randrange(self._memory.filled - CHURN_RUN_PAGES)
            verified = self._visit(first, verified, problems)
        return _verdict(verified, problems)

    def _visit(self, first: int, verified: int, problems: list[str]) -> int:
        """Verify a run and rewrite a third of it; return how many are verified now."""
        for index in range(first, first + CHURN_RUN_PAGES):
            if problem := self._memory.wrong(index):
                problems.append(problem)
            verified += 1
            if verified % 3 == 0:
                self._memory.rewrite(index)
        return verified

    def visit(self, times: str) -> dict[str, Any]:
        """Verify and rewrite short runs of pages, of which few places get most."""
        runs = self._memory.filled // CHURN_RUN_PAGES
        places = list(range(runs))
        self._rng.shuffle(places)
        progress = Progress("visiting", int(times))
        problems: list[str] = []
        verified = 0
        for done in range(int(times)):
            rank = int(runs / VISIT_SPAN * (self._rng.paretovariate(1) - 1))
            place = places[min(rank, runs - 1)]
            verified = self._visit(place * CHURN_RUN_PAGES, verified, problems)
            progress.at(done)
        return _verdict(verified, problems)

    def pageout(self) -> dict[str, Any]:
        """Ask the kernel to swap out what it can."""
        self._memory.page_out()
        return {}


def _verdict(pages: int, problems: list[str]) -> dict[str, Any]:
    return {"pages": pages, "wrong": len(problems), "details": problems[:DETAILS_MAX]}


def main() -> int:
    """Obey commands until stdin ends."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("mib", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--raw", action="store_true", help="pages that nothing compresses")
    parser.add_argument("--easy", action="store_true", help="pages that compress to very little")
    parser.add_argument("--cgroup", help="directory of the cgroup to join before filling")
    args = parser.parse_args()
    if args.cgroup:
        with open(os.path.join(args.cgroup, "cgroup.procs"), "w") as procs:
            procs.write("0")
    memory = Memory(args.mib * 1024 * 1024 // PAGE_BYTES, args.seed, raw=args.raw, easy=args.easy)
    hog = Hog(memory, args.seed)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        name, *words = line.split()
        if name == "quit":
            break
        started_s = time.monotonic()
        answer = getattr(hog, name)(*words)
        answer["seconds"] = round(time.monotonic() - started_s, 2)
        print(json.dumps(answer), flush=True)
    os._exit(0)  # the kernel frees it all at once; Python would touch what is swapped out


if __name__ == "__main__":
    sys.exit(main())
