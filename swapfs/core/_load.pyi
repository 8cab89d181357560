from types import TracebackType
from typing import final

from typing_extensions import Buffer

def unpack(blob: Buffer, codec: int, out: Buffer, position: int) -> bool: ...
def load(
    words: memoryview,
    index: int,
    count: int,
    arena: memoryview,
    out: memoryview,
    position: int,
    reads: memoryview,
    /,
) -> int: ...
def layout() -> tuple[int, ...]: ...

@final
class Lock:
    def acquire(self) -> None: ...
    def release(self) -> None: ...
    def locked(self) -> bool: ...
    def wanted(self) -> bool: ...
    def give_way(self) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None: ...

@final
class Reader:
    def __new__(
        cls,
        lock: Lock,
        directory: memoryview,
        arena: memoryview,
        counters: memoryview,
        read_bytes: int,
        size_bytes: int,
        /,
    ) -> Reader: ...
    def capsule(self) -> object: ...
    def read(self, offset: int, size: int, out: Buffer, /) -> int: ...
