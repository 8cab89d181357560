from array import array
from types import TracebackType
from typing import Any, Final, final

from typing_extensions import Buffer

# word.h
PAGE_BYTES: Final[int]
CLUSTER_SLOTS: Final[int]
KIND_EMPTY: Final[int]
KIND_SAME: Final[int]
KIND_BLOB: Final[int]
KIND_LOST: Final[int]
KIND_MASK: Final[int]
CODEC_RAW: Final[int]
CODEC_LZ4: Final[int]
CODEC_ZSTD: Final[int]
CODEC_KEPT: Final[int]
MOVING: Final[int]
HEAT_ONE: Final[int]
HEAT_MASK: Final[int]
TIER_SHIFT: Final[int]
TIER_MASK: Final[int]
CODEC_SHIFT: Final[int]
CODEC_MASK: Final[int]
STATE_MASK: Final[int]
REF_SHIFT: Final[int]
BACKING_MASK: Final[int]
IN_POOL: Final[int]
LENGTH_SHIFT: Final[int]
LENGTH_MASK: Final[int]
PLACE_SHIFT: Final[int]
GRAIN_SHIFT: Final[int]
ZSPAGE_SHIFT: Final[int]
NO_CLASS: Final[int]
NO_INDEX: Final[int]
LIST_NO_ROOM: Final[int]
LIST_ROOM: Final[int]

# log.h
EVENT_STORE: Final[int]
EVENT_LOAD: Final[int]
EVENT_DISCARD: Final[int]
EVENT_DEMOTE: Final[int]
EVENT_PROMOTE: Final[int]
EVENT_MOVE: Final[int]
EVENT_REFAULT: Final[int]
EVENT_SLOT_BITS: Final[int]
EVENT_KIND_SHIFT: Final[int]
EVENT_SIZE_SHIFT: Final[int]
EVENT_AGE_SHIFT: Final[int]
EVENT_TIER_SHIFT: Final[int]
EVENT_WAS_SHIFT: Final[int]
NO_SIZE: Final[int]
AGE_TICK_SHIFT: Final[int]
USAGE_SLOTS: Final[int]
USAGE_PAYLOAD: Final[int]
USAGE_TIERS: Final[int]
USAGE_FIELDS: Final[int]
EXPORT_END: Final[int]
EXPORT_QUOTA: Final[int]
EXPORT_FIELDS: Final[int]

@final
class Log:
    def __new__(
        cls, *, head: Buffer, touched: Buffer, events: Buffer, class_of_grains: Buffer
    ) -> Log: ...
    def add(self, kind: int, slot: int, old: int, new: int, length: int, /) -> None: ...
    def set_clock(self, time_ns: int, /) -> None: ...

@final
class Tracked:
    def __new__(cls, slots: int, lists: int, /) -> Tracked: ...
    def add(self, slot: int, list: int, /) -> bool: ...
    def remove(self, slot: int, /) -> bool: ...
    def where(self, slot: int, /) -> int: ...
    def oldest(self, list: int, /) -> int: ...
    def newer(self, slot: int, /) -> int: ...
    def length(self, list: int, /) -> int: ...
    def mark(self, slot: int, value: int, /) -> bool: ...
    def marked(self, slot: int, /) -> int: ...
    def pick(self, list: int, number: int, /) -> int: ...

def cool(arena: Buffer, index: int, count: int, slot: int, raw_first: bool, /) -> list[int]: ...
def log_read(head: Buffer, events: Buffer, out: Buffer, since: int, /) -> tuple[int, int]: ...

@final
class Lock:
    def acquire(self) -> None: ...
    def release(self) -> None: ...
    def locked(self) -> bool: ...
    def contended(self) -> bool: ...
    def resched(self) -> None: ...
    def relax(self) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None: ...

def sign(word: int, blob: Buffer, /) -> int: ...
def is_intact(word: int, blob: Buffer, /) -> bool: ...
def check_plainly(yes: bool, /) -> None: ...

@final
class Decoder:
    def __new__(cls) -> Decoder: ...
    def unpack(self, blob: Buffer, codec: int, out: Buffer, position: int, /) -> bool: ...

@final
class Disks:
    def __new__(
        cls,
        reader: Reader,
        newest: Buffer,
        recent: int,
        threads: int,
        requests: int,
        counts: tuple[int, int, int, int, int, int, int],
        /,
    ) -> Disks: ...
    def capsule(self) -> object: ...
    def attach(
        self,
        number: int,
        fd: int,
        block_sectors: int,
        sealer: Sealer,
        row: Buffer,
        durations: Buffer,
        readers: Buffer,
        indexes: tuple[int, int, int],
        /,
    ) -> None: ...
    def detach(self, number: int, /) -> None: ...
    def forget(self, number: int, sector: int, sectors: int, /) -> None: ...
    def submit(self, call: object, /) -> None: ...
    def get(self, pages: Buffer, page: Buffer, decoder: Decoder, /) -> Any: ...
    def load(
        self, pages: Buffer, page: Buffer, decoder: Decoder, slot: int, count: int, /
    ) -> bool: ...

@final
class Sealer:
    def __new__(cls, capsule: object = ..., /) -> Sealer: ...
    def seal(self, header: Buffer, sequence: int, payload: Buffer, /) -> bytes: ...
    def open(self, header: Buffer, sequence: int, sealed: Buffer, /) -> bytes | None: ...
    def put(
        self, view: Buffer, position: int, slot: int, codec: int, sequence: int, payload: Buffer, /
    ) -> int: ...
    def put_all(
        self, view: Buffer, source: Buffer, items: list[Any], notes: Buffer, sector: int, /
    ) -> tuple[list[int], int]: ...

@final
class Recoder:
    def __new__(cls, level: int, idle: bool, /) -> Recoder: ...
    def recode(
        self,
        view: memoryview,
        starts: array[int],
        drafts: array[int],
        count: int,
        deep: bool,
        longest: int,
        /,
    ) -> None: ...
    def collect(
        self,
        arena: memoryview,
        slots: array[int],
        words: array[int],
        view: memoryview,
        have: int,
        index: int,
        slot: int,
        count: int,
        deep: bool,
        /,
    ) -> int: ...

@final
class Reader:
    def __new__(
        cls,
        lock: Lock,
        directory: memoryview,
        arena: memoryview,
        counters: memoryview,
        pool_bytes: memoryview,
        counts: tuple[int, int, int, int],
        size_bytes: int,
        log: Log | None = None,
        /,
    ) -> Reader: ...
    def capsule(self) -> object: ...
    def load(
        self, slot: int, count: int, out: memoryview, position: int, whole: bool, /
    ) -> int: ...
    def read(self, offset: int, size: int, out: Buffer, /) -> int: ...

def pack(
    source: memoryview,
    position: int,
    count: int,
    blobs: memoryview,
    drafts: array[int],
    longest: int,
    /,
) -> None: ...

@final
class Writer:
    def __new__(
        cls,
        counts: tuple[int, int, int],
        log: Log | None,
        /,
        *,
        directory: Buffer,
        arena: Buffer,
        classes: Buffer,
        counters: Buffer,
        state_counts: Buffer,
        occupied: Buffer,
        used: Buffer,
        head: Buffer,
        fresh: Buffer,
        objects: Buffer,
        payload: Buffer,
        next: Buffer,
        previous: Buffer,
        where: Buffer,
        lengths: Buffer,
        usage: Buffer,
        sizes: Buffer,
        capacities: Buffer,
        class_of_grains: Buffer,
        state_of_word: Buffer,
        exports: Buffer,
    ) -> Writer: ...
    def play(
        self, events: Buffer, first: int, end: int, blank: Buffer, pool_reads: int, /
    ) -> int: ...
    def publish(
        self,
        slot: int,
        count: int,
        drafts: array[int],
        first: int,
        source: memoryview,
        position: int,
        blobs: memoryview,
        /,
    ) -> int: ...
    def claim(
        self,
        view: Buffer,
        at: int,
        sector: int,
        tier: int,
        found: Buffer,
        count: int,
        room: int,
        most: int,
        /,
    ) -> tuple[int, int]: ...
    def settle(self, found: Buffer, first: int, end: int, store: bool, /) -> tuple[int, int]: ...
    def replace(
        self,
        slots: array[int],
        words: array[int],
        drafts: array[int],
        blobs: memoryview,
        first: int,
        end: int,
        smaller: bool,
        /,
    ) -> int: ...

# relocate.c
def carry(
    sealer: Sealer,
    view: Buffer,
    found: Buffer,
    first: int,
    end: int,
    out: Buffer,
    position: int,
    tier: int,
    sector: int,
    /,
) -> int: ...
def runs(
    found: Buffer, first: int, end: int, segment: int, taken: bool, /
) -> list[tuple[int, int]]: ...
def count_states(
    arena: Buffer, state_counts: Buffer, state_of_word: Buffer, index: int, /
) -> int: ...

@final
class Marker:
    def __new__(
        cls,
        *,
        arena: Buffer,
        used: Buffer,
        objects: Buffer,
        payload: Buffer,
        taken: Buffer,
        classes: Buffer,
        sizes: Buffer,
    ) -> Marker: ...
    def mark(self, place: int, length: int, /) -> None: ...
    def mark_page(self, place: int, /) -> None: ...
    def mark_words(self, index: int, /) -> list[tuple[int, int]]: ...
    def relink(self, zspage: int, /) -> int: ...
