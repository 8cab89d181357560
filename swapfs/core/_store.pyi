from array import array

from typing_extensions import Buffer

def pack(
    source: memoryview,
    position: int,
    count: int,
    blobs: memoryview,
    drafts: array[int],
    longest: int,
    /,
) -> None: ...
def publish(
    books: tuple[Buffer, ...],
    cluster: int,
    index: int,
    drafts: array[int],
    first: int,
    count: int,
    source: memoryview,
    position: int,
    blobs: memoryview,
    /,
) -> int: ...
