"""The digest that takes no OpenSSL."""

from __future__ import annotations

import hashlib

import pytest

from swapfs.host.sha256 import sha256


@pytest.mark.parametrize("data", [b"", b"abc", bytes(1000)])
def test_it_is_that_of_everybody_else(data: bytes) -> None:
    assert sha256(memoryview(data)) == hashlib.sha256(data).digest()
