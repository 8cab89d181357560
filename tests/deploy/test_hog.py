"""The program that fills memory in the test VM: a block is what its pages are, one by one."""

from __future__ import annotations

import mmap

import pytest

from deploy.vm.guest import hog

PAGES = 2 * hog.CORPUS_PAGES + 40
SEED = 3


class Kept:
    """A `Memory` whose bytes can be looked at and spoiled, as it makes its mapping with us."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **kind: bool) -> None:
        self.map = mmap.mmap(-1, PAGES * hog.PAGE_BYTES)
        with monkeypatch.context() as patch:
            patch.setattr(mmap, "mmap", lambda *_, **__: self.map)
            self.memory = hog.Memory(PAGES, SEED, **kind)
        self.hog = hog.Hog(self.memory, SEED)


@pytest.fixture(params=["mixed", "raw", "easy"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kept:
    kind = request.param
    return Kept(monkeypatch, raw=kind == "raw", easy=kind == "easy")


def test_blocks_are_what_their_pages_are(kept: Kept) -> None:
    kept.hog.fill()
    filled = bytes(kept.map)
    assert kept.memory.filled == PAGES
    assert [kept.memory.wrong(index) for index in range(PAGES)] == [""] * PAGES
    for index in range(PAGES):
        kept.memory.write(index)
    assert bytes(kept.map) == filled


def test_parts_go_on_where_the_last_one_ended(kept: Kept) -> None:
    kept.hog.fill("5")
    kept.hog.fill("300")
    kept.hog.fill()
    assert kept.hog.verify() == {"pages": PAGES, "wrong": 0, "details": []}


@pytest.mark.parametrize("index", [0, 1, 2, 255, 256, 300, PAGES - 1])
def test_a_flipped_bit_is_found(kept: Kept, index: int) -> None:
    kept.hog.fill()
    kept.hog.rewrite("3")
    assert kept.hog.verify()["wrong"] == 0
    kept.map[index * hog.PAGE_BYTES + 777] ^= 1
    found = kept.hog.verify()
    assert found["wrong"] == 1
    assert f"page {index} " in found["details"][0]
    assert kept.hog.verify("random")["wrong"] == 1


def test_a_page_in_the_place_of_another_is_found(kept: Kept) -> None:
    kept.hog.fill()
    size = hog.PAGE_BYTES
    one, other = 2 * size, (2 + hog.CORPUS_PAGES) * size  # alike but for the stamp
    kept.map[one : one + size] = kept.map[other : other + size]
    assert kept.hog.verify()["wrong"] == 1
