"""The pool: a size-class allocator over the region's preallocated arena.

The arena is an array of equal zspages. A zspage belongs to one size class while it holds any
object and to none when it is empty, so space freed by one class serves every other and the
arena cannot fragment beyond partly filled zspages. A free object's first two bytes link to the
next free object of its zspage; the lists need no memory of their own.

Truth is the swap table alone (I3): ``begin_rebuild``, ``mark`` and ``finish_rebuild`` make the
lists anew from the places that the table names. Not thread safe: the slot layer's lock covers
it. Holds the blobs and the table's own pages; knows neither slots nor codecs.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from swapfs.core._rebuild import relink
from swapfs.region.layout import NO_CLASS, ZSPAGE_BYTES, Region
from swapfs.region.lists import ListHeads
from swapfs.tiers.size_classes import CLASS_OBJECTS, CLASS_OF_GRAINS, CLASS_SIZES
from swapfs.units import PAGE_SIZE

if TYPE_CHECKING:
    from typing_extensions import Buffer

NO_PLACE: Final = -1
"""What ``allocate`` returns when there is no room; an exception would cost the hot path."""

_ZSPAGE_SHIFT: Final = 16
_ZSPAGE_MASK: Final = ZSPAGE_BYTES - 1
_END: Final = 0xFFFF
_NO_ROOM: Final = 0
"""The list of zspages where nothing is placed: full, free, or being drained."""
_ROOM: Final = 1
"""The list of those with room of class 0; the other classes' follow."""
RAW_CLASS: Final = len(CLASS_SIZES) - 1
"""The class of whole pages, the largest that holds blobs."""
# Table pages have a class of their own: raw pages must not take the rest of a zspage that was
# claimed from the tables' reserve.
_TABLE_CLASS: Final = RAW_CLASS + 1
_SIZES: Final = (*CLASS_SIZES, PAGE_SIZE)
_OBJECTS: Final = (*CLASS_OBJECTS, ZSPAGE_BYTES // PAGE_SIZE)
_MARKS_PER_ZSPAGE: Final = ZSPAGE_BYTES // CLASS_SIZES[0]
"""Bits, one for each object that a zspage may have."""
_SIZES_ARRAY: Final = array("H", _SIZES)
_OBJECTS_ARRAY: Final = array("H", _OBJECTS)
assert 1 << _ZSPAGE_SHIFT == ZSPAGE_BYTES
assert array("l").itemsize == 8, "_store.c counts on it"
assert _MARKS_PER_ZSPAGE == 2048, "_rebuild.c counts on it"


def spare_zspages(zspages: int) -> int:
    """Return how many of a pool's *zspages* only compaction may take: one, if it is not tiny."""
    return min(1, zspages // 8)


@dataclass(frozen=True, slots=True)
class PoolStats:
    """What the pool holds, in bytes.

    ``used_bytes`` counts whole zspages, ``object_bytes`` the objects handed out, and
    ``payload_bytes`` what was asked for; table pages count in the first two.
    """

    limit_bytes: int
    used_bytes: int
    object_bytes: int
    payload_bytes: int
    table_bytes: int
    peak_bytes: int
    zspages_free: int


class Pool:
    """Places of 1 to 4096 bytes in the arena of *region*; a place is a byte offset in it."""

    def __init__(self, region: Region) -> None:
        self._arena = region.arena
        self._halves = region.arena_halves
        self._classes = region.classes
        self._zspages = region.geometry.zspages
        self.limit_bytes = region.geometry.pool_bytes
        self.spare_zspages = spare_zspages(self._zspages)
        self.reserve_zspages = 0
        self._reset()

    @property
    def reserve_zspages(self) -> int:
        """Free zspages that only ``allocate_page`` may take: room for table pages."""
        return self._kept_free - self.spare_zspages

    @reserve_zspages.setter
    def reserve_zspages(self, zspages: int) -> None:
        self._kept_free = zspages + self.spare_zspages

    def _reset(self) -> None:
        count = self._zspages
        self._used = array("H", bytes(2 * count))  # objects handed out, by zspage
        self._head = array("H", [_END]) * count  # first free object that was used before
        self._fresh = array("H", bytes(2 * count))  # objects never handed out start here
        self._free = [z for z in range(count - 1, -1, -1) if self._classes[z] == NO_CLASS]
        # Zspages with room, by class. The one that got room last is used first: holes are filled
        # before a zspage that has many, and that one may become empty.
        self._room = ListHeads(count, _ROOM + len(_SIZES))
        self._draining: set[int] = set()  # not among those: nothing is placed in them
        self._owned = array("l", bytes(8 * len(_SIZES)))  # zspages, by class
        self._objects = array("l", bytes(8 * len(_SIZES)))  # objects handed out, by class
        self._payload = array("l", [0])  # bytes
        self._table_bytes = 0
        self._least_free = len(self._free)

    def books(self) -> tuple[Buffer, ...]:
        """Return what ``_store.publish`` keeps up to date; anew after every rebuild."""
        return (
            *(self._used, self._head, self._fresh, self._objects, self._payload),
            *self._room.buffers(),
            *(_SIZES_ARRAY, _OBJECTS_ARRAY, CLASS_OF_GRAINS),
        )

    # ---- handing out and taking back ----

    def allocate(self, size: int) -> int:
        """Return a place for *size* bytes (1..4096), or NO_PLACE."""
        place = self._take(CLASS_OF_GRAINS[(size + 15) >> 4], self._kept_free)
        if place != NO_PLACE:
            self._payload[0] += size
        return place

    def allocate_page(self) -> int:
        """Return a place for one table page, page aligned, or NO_PLACE; may use the reserve."""
        place = self._take(_TABLE_CLASS, 0)
        if place == NO_PLACE:
            place = self._take_larger(RAW_CLASS, RAW_CLASS)
        if place != NO_PLACE:
            self._table_bytes += PAGE_SIZE
        return place

    def free(self, place: int, size: int) -> None:
        """Take back the place of a blob of *size* bytes."""
        self._payload[0] -= size
        self._give(place)

    def free_page(self, place: int) -> None:
        """Take back the place of a table page."""
        self._table_bytes -= PAGE_SIZE
        self._give(place)

    def _take(self, size_class: int, kept_free: int) -> int:
        zspage = self._room.first(_ROOM + size_class)
        if zspage < 0:
            if len(self._free) <= kept_free:
                return self._take_larger(size_class + 1, RAW_CLASS)
            zspage = self._claim(size_class)
        return self._pop(zspage, size_class)

    def _claim(self, size_class: int) -> int:
        zspage = self._free.pop()
        if len(self._free) < self._least_free:
            self._least_free = len(self._free)
        self._classes[zspage] = size_class
        self._room.move(zspage, _ROOM + size_class)
        self._owned[size_class] += 1
        self._fresh[zspage] = 0
        self._head[zspage] = _END
        return zspage

    def _take_larger(self, smallest: int, largest: int) -> int:
        """Full: an object of a larger class is better than a refusal; never a table page."""
        for size_class in range(smallest, largest + 1):
            zspage = self._room.first(_ROOM + size_class)
            if zspage >= 0:
                return self._pop(zspage, size_class)
        return NO_PLACE

    def _pop(self, zspage: int, size_class: int) -> int:
        size = _SIZES[size_class]
        base = zspage << _ZSPAGE_SHIFT
        index = self._head[zspage]
        reused = index != _END
        if not reused:
            index = self._fresh[zspage]
        # The list is in the arena, and its end is a value like any other there.
        assert index < _OBJECTS[size_class], "a free list is damaged"
        place = base + index * size
        if reused:
            self._head[zspage] = self._halves[place >> 1]
        else:
            self._fresh[zspage] = index + 1
        used = self._used[zspage] + 1
        self._used[zspage] = used
        if used == _OBJECTS[size_class]:
            self._room.move(zspage, _NO_ROOM)
        self._objects[size_class] += 1
        return place

    def _give(self, place: int) -> None:
        zspage = place >> _ZSPAGE_SHIFT
        size_class = self._classes[zspage]
        assert size_class != NO_CLASS, "freed a place of a free zspage"
        size = _SIZES[size_class]
        assert not (place & _ZSPAGE_MASK) % size, "freed a place that is no object"
        used = self._used[zspage] - 1
        self._used[zspage] = used
        self._objects[size_class] -= 1
        if used == 0:
            self._room.move(zspage, _NO_ROOM)
            self._draining.discard(zspage)
            self._owned[size_class] -= 1
            self._classes[zspage] = NO_CLASS
            self._free.append(zspage)
            return
        self._halves[place >> 1] = self._head[zspage]
        self._head[zspage] = (place & _ZSPAGE_MASK) // size
        if used == _OBJECTS[size_class] - 1:  # it was full, so it is not being drained
            self._room.move(zspage, _ROOM + size_class)

    # ---- moving what is in it ----

    @property
    def zspages(self) -> int:
        """Zspages in the arena."""
        return self._zspages

    @property
    def free_zspages(self) -> int:
        """Zspages that no class owns."""
        return len(self._free)

    @property
    def table_zspages(self) -> int:
        """Zspages that hold table pages and nothing else."""
        return self._owned[_TABLE_CLASS]

    def room_for_any(self) -> int:
        """Return how many blobs of any size would get a place now; 0 is exact, more is not."""
        if not self._room.length(_ROOM + RAW_CLASS):
            return max(0, len(self._free) - self._kept_free) * _OBJECTS[RAW_CLASS]
        free = self._owned[RAW_CLASS] * _OBJECTS[RAW_CLASS] - self._objects[RAW_CLASS]
        return free + max(0, len(self._free) - self._kept_free) * _OBJECTS[RAW_CLASS]

    def gain(self, size_class: int) -> int:
        """Return how many zspages of *size_class* its own objects could do without."""
        objects = _OBJECTS[size_class]
        return self._owned[size_class] - -(-self._objects[size_class] // objects)

    def sparse(self, size_class: int) -> list[int]:
        """Return the zspages of *size_class* that have room; may be called without the lock."""
        return self._room.members(_ROOM + size_class)

    def used_in(self, zspage: int) -> int:
        """Return how many objects of *zspage* are handed out; may be read without the lock."""
        return self._used[zspage]

    def class_of(self, zspage: int) -> int:
        """Return the class that owns *zspage*, NO_CLASS if none."""
        size_class: int = self._classes[zspage]
        return size_class

    def drain(self, zspage: int, size_class: int) -> bool:
        """Place nothing in *zspage* until it is empty or ``end_drain``.

        False: it does not belong to *size_class*, or is full.
        """
        if self._room.where(zspage) != _ROOM + size_class:
            return False
        self._room.move(zspage, _NO_ROOM)
        self._draining.add(zspage)
        return True

    def is_draining(self, zspage: int) -> bool:
        """Whether *zspage* is being drained and is not empty yet."""
        return zspage in self._draining

    def end_drain(self, zspage: int) -> None:
        """Use *zspage* as before, if it was drained and is not empty."""
        if zspage in self._draining:
            self._draining.remove(zspage)
            self._room.move(zspage, _ROOM + self._classes[zspage])

    def allocate_to_move(self, size: int, largest: int, *, spare: bool) -> int:
        """Return a place for a blob that moves, in classes up to *largest*, or NO_PLACE.

        Claims no free zspage, but with *spare* the spare one, for places of one page.
        """
        place = self._take_larger(CLASS_OF_GRAINS[(size + 15) >> 4], largest)
        if place == NO_PLACE and spare and len(self._free) > self.reserve_zspages:
            place = self._pop(self._claim(RAW_CLASS), RAW_CLASS)
        if place != NO_PLACE:
            self._payload[0] += size
        return place

    # ---- rebuilding from the table ----

    def begin_rebuild(self) -> None:
        """Forget every place; those in use must then be given to ``mark``."""
        self._marks = bytearray(self._zspages * _MARKS_PER_ZSPAGE // 8)
        self._classes_kept = bytes(self._classes)
        self._reset()
        self._free.clear()

    def marking(self) -> tuple[Buffer, ...]:
        """Return what ``_rebuild.mark`` notes places in, which it does as ``mark`` does."""
        return (
            *(self._marks, self._used, self._objects, self._payload, self._classes_kept),
            *(_SIZES_ARRAY, self._arena),
        )

    def mark(self, place: int, size: int, *, table: bool = False) -> None:
        """Declare *place* in use by a blob of *size* bytes, or by a table page."""
        zspage = place >> _ZSPAGE_SHIFT
        size_class = self._classes_kept[zspage]
        assert size_class != NO_CLASS, "the table names a place in a free zspage"
        index, rest = divmod(place & _ZSPAGE_MASK, _SIZES[size_class])
        assert rest == 0, "the table names a place that is no object"
        assert size <= _SIZES[size_class]
        byte, bit = divmod(zspage * _MARKS_PER_ZSPAGE + index, 8)
        assert not self._marks[byte] >> bit & 1, "the table names a place twice"
        self._marks[byte] |= 1 << bit
        self._used[zspage] += 1
        self._objects[size_class] += 1
        if table:
            self._table_bytes += PAGE_SIZE
        else:
            self._payload[0] += size

    def finish_rebuild(self) -> None:
        """Make the free lists from what was marked."""
        for zspage in range(self._zspages - 1, -1, -1):
            if self._used[zspage]:
                self._relink(zspage)
            else:
                self._classes[zspage] = NO_CLASS
                self._free.append(zspage)
        self._least_free = len(self._free)
        del self._marks, self._classes_kept

    def _relink(self, zspage: int) -> None:
        size_class = self._classes[zspage]
        size, objects = _SIZES[size_class], _OBJECTS[size_class]
        self._fresh[zspage] = objects
        self._owned[size_class] += 1
        if self._used[zspage] < objects:
            self._head[zspage] = relink(self._arena, self._marks, zspage, size, objects)
            self._room.move(zspage, _ROOM + size_class)

    # ---- what it holds ----

    @property
    def used_bytes(self) -> int:
        """Bytes in zspages that hold anything."""
        return (self._zspages - len(self._free)) * ZSPAGE_BYTES

    def stats(self) -> PoolStats:
        """Return what the pool holds now."""
        return PoolStats(
            limit_bytes=self.limit_bytes,
            used_bytes=self.used_bytes,
            object_bytes=sum(n * size for n, size in zip(self._objects, _SIZES, strict=True)),
            payload_bytes=self._payload[0],
            table_bytes=self._table_bytes,
            peak_bytes=(self._zspages - self._least_free) * ZSPAGE_BYTES,
            zspages_free=len(self._free),
        )

    def check(self) -> None:
        """Assert that the lists agree with each other; for tests, O(zspages)."""
        assert len(set(self._free)) == len(self._free)
        owners = Counter(self._classes.tolist())
        assert [owners[size_class] for size_class in range(len(_SIZES))] == list(self._owned)
        objects_of: Counter[int] = Counter()
        for zspage, size_class in enumerate(self._classes):
            objects_of[size_class] += self._used[zspage]
        assert [objects_of[size_class] for size_class in range(len(_SIZES))] == list(self._objects)
        for zspage in range(self._zspages):
            size_class = self._classes[zspage]
            if size_class == NO_CLASS:
                assert zspage in self._free
                assert self._room.where(zspage) == _NO_ROOM
                continue
            used, objects = self._used[zspage], _OBJECTS[size_class]
            assert 0 < used <= objects
            on_list = self._room.where(zspage) == _ROOM + size_class
            assert on_list + (zspage in self._draining) == (used < objects)
            free, index = objects - self._fresh[zspage], self._head[zspage]
            while index != _END:
                free += 1
                place = (zspage << _ZSPAGE_SHIFT) + index * _SIZES[size_class]
                index = self._halves[place >> 1]
            assert free == objects - used
