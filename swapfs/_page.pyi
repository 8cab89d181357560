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
