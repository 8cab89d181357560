"""The pages that tests store."""

from __future__ import annotations

import pytest

from swapfs.testing.pages import KINDS, mixed_pages, page
from swapfs.vlayer.codec import compress


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_depends_on_kind_and_seed_alone(kind: str) -> None:
    assert len(page(kind, 1)) == 4096
    assert page(kind, 1) == page(kind, 1)
    assert kind == "zero" or page(kind, 1) != page(kind, 2)


def test_the_mix_is_the_same_on_every_machine_and_looks_real() -> None:
    pages = mixed_pages(1, 400)
    assert pages == mixed_pages(1, 400)
    assert pages != mixed_pages(2, 400)
    packed = sum(len(compress(memoryview(each))[0]) for each in pages)
    # lz4 on the memory of ten running programs: 1.9 to 4.3, mean 2.8.
    assert 1.9 < 400 * 4096 / packed < 4.3
