"""The zspages of the arena: which class owns each, and which of its objects are free.

``_core.Writer`` changes the same tables, as ``pop`` and ``give`` do.
"""

from __future__ import annotations

from array import array
from collections import Counter
from typing import TYPE_CHECKING, Final

from swapfs.core._core import LIST_NO_ROOM, LIST_ROOM, NO_CLASS, NO_INDEX, ZSPAGE_SHIFT
from swapfs.region.layout import ZSPAGE_BYTES, Region
from swapfs.region.lists import ListHeads
from swapfs.tiers.pool.size_classes import CLASS_OF_GRAINS, OBJECTS, SIZES

if TYPE_CHECKING:
    from typing_extensions import Buffer

NO_PLACE: Final = -1
"""What stands for a place when there is none; an exception would cost the hot path."""

_ZSPAGE_MASK: Final = ZSPAGE_BYTES - 1


class Zspages:
    """The zspages of *region*; those that a class owns are taken to be full.

    Attributes: ``count``; ``limit``: nothing new is placed in those from it on; ``beyond``, how
    many of these a class owns; ``free``, those below it that no class owns, and ``most_used``, the
    most there ever were in use; by zspage ``used``, objects handed out, ``head``, the first free
    object that was used before, and ``fresh``, where those begin that were never handed out; by
    class ``owned``, zspages, and ``objects``, handed out.
    """

    def __init__(self, region: Region) -> None:
        self._halves = region.arena_halves
        self._classes = region.classes
        self.count = count = region.geometry.zspages
        self.used = array("H", bytes(2 * count))
        self.head = array("H", [NO_INDEX]) * count
        self.fresh = array("H", bytes(2 * count))
        self.limit = region.pool_bytes // ZSPAGE_BYTES
        self.beyond = 0
        self.free = [z for z in range(self.limit - 1, -1, -1) if self._classes[z] == NO_CLASS]
        self.most_used = self.in_use
        # By class, and full ones. The one that got room last is used first: holes are filled
        # before a zspage that has many, and that one may become empty.
        self._lists = ListHeads(count, LIST_ROOM + len(SIZES))
        self._draining: set[int] = set()  # in no list with room: nothing is placed in them
        self.owned = array("l", bytes(8 * len(SIZES)))
        self.objects = array("l", bytes(8 * len(SIZES)))

    def tables(self) -> dict[str, Buffer]:
        """Return what ``_core.Writer`` keeps up to date and goes by, by its names."""
        return {
            "used": self.used,
            "head": self.head,
            "fresh": self.fresh,
            "objects": self.objects,
            **self._lists.tables(),
            "sizes": array("H", SIZES),
            "capacities": array("H", OBJECTS),
            "class_of_grains": CLASS_OF_GRAINS,
        }

    # ---- handing out and taking back ----

    def with_room(self, size_class: int) -> int:
        """Return a zspage of *size_class* that has room, -1 if there is none."""
        return self._lists.first(LIST_ROOM + size_class)

    def claim(self, size_class: int) -> int:
        """Let *size_class* own a free zspage, and return it."""
        zspage = self.free.pop()
        self.most_used = max(self.most_used, self.in_use)
        self._classes[zspage] = size_class
        self._lists.move(zspage, LIST_ROOM + size_class)
        self.owned[size_class] += 1
        self.fresh[zspage] = 0
        self.head[zspage] = NO_INDEX
        return zspage

    def pop(self, zspage: int, size_class: int) -> int:
        """Hand out an object of *zspage*, which has room; return its place."""
        size = SIZES[size_class]
        base = zspage << ZSPAGE_SHIFT
        index = self.head[zspage]
        reused = index != NO_INDEX
        if not reused:
            index = self.fresh[zspage]
        # The list is in the arena, and its end is a value like any other there.
        assert index < OBJECTS[size_class], "a free list is damaged"
        place = base + index * size
        if reused:
            self.head[zspage] = self._halves[place >> 1]
        else:
            self.fresh[zspage] = index + 1
        used = self.used[zspage] + 1
        self.used[zspage] = used
        if used == OBJECTS[size_class]:
            self._lists.move(zspage, LIST_NO_ROOM)
        self.objects[size_class] += 1
        return place

    def pop_any(self, smallest: int, largest: int) -> int:
        """Hand out an object of the smallest class that has a zspage with room, or NO_PLACE."""
        for size_class in range(smallest, largest + 1):
            zspage = self.with_room(size_class)
            if zspage >= 0:
                return self.pop(zspage, size_class)
        return NO_PLACE

    def give(self, place: int) -> None:
        """Take back the object at *place*; a zspage that has none left is free."""
        zspage = place >> ZSPAGE_SHIFT
        size_class = self._classes[zspage]
        assert size_class != NO_CLASS, "freed a place of a free zspage"
        size = SIZES[size_class]
        assert not (place & _ZSPAGE_MASK) % size, "freed a place that is no object"
        used = self.used[zspage] - 1
        self.used[zspage] = used
        self.objects[size_class] -= 1
        if used == 0:
            self._lists.move(zspage, LIST_NO_ROOM)
            self._draining.discard(zspage)
            self.owned[size_class] -= 1
            self._classes[zspage] = NO_CLASS
            self._add_free(zspage)
            return
        self._halves[place >> 1] = self.head[zspage]
        self.head[zspage] = (place & _ZSPAGE_MASK) // size
        if used == OBJECTS[size_class] - 1:  # it was full, so it is not being drained
            self._lists.move(zspage, LIST_ROOM + size_class)

    def _add_free(self, zspage: int) -> None:
        if zspage < self.limit:
            self.free.append(zspage)
        else:
            self.beyond -= 1

    @property
    def in_use(self) -> int:
        """Zspages that a class owns."""
        return self.limit - len(self.free) + self.beyond

    # ---- the limit ----

    def set_limit(self, limit: int) -> None:
        """Place nothing in zspages from *limit* on, and use those before it."""
        old, self.limit = self.limit, limit
        owned = [z for z in range(min(old, limit), self.count) if self._classes[z] != NO_CLASS]
        self.beyond = sum(z >= limit for z in owned)
        self.free = [z for z in self.free if z < limit]
        self.free[:0] = [z for z in range(limit - 1, old - 1, -1) if self._classes[z] == NO_CLASS]
        for zspage in owned:
            if zspage < limit:
                self.end_drain(zspage)
        self.close_beyond()

    def close_beyond(self) -> None:
        """Place nothing in zspages beyond the limit that have got room: they were full before."""
        for zspage in range(self.limit, self.count):
            if self._lists.where(zspage) >= LIST_ROOM:
                self._lists.move(zspage, LIST_NO_ROOM)
                self._draining.add(zspage)

    def adopt(self, zspage: int, head: int | None) -> None:
        """Use *zspage*, whose objects in use are in ``used``, at a rebuild.

        :param head: its first free object, to which the others are linked; None: it is full
        """
        size_class = self._classes[zspage]
        self.owned[size_class] += 1
        self.fresh[zspage] = OBJECTS[size_class]
        if head is not None:
            self.head[zspage] = head
            self._lists.move(zspage, LIST_ROOM + size_class)

    def adopt_free(self, zspage: int) -> None:
        """Have *zspage*, which holds nothing, free at a rebuild."""
        self._classes[zspage] = NO_CLASS
        if zspage < self.limit:
            self.free.append(zspage)

    # ---- emptying one ----

    def class_of(self, zspage: int) -> int:
        """Return the class that owns *zspage*, NO_CLASS if none."""
        size_class: int = self._classes[zspage]
        return size_class

    def capacity(self, zspage: int) -> int:
        """Return how many objects *zspage* holds when it is full; some class owns it."""
        return OBJECTS[self._classes[zspage]]

    def gain(self, size_class: int) -> int:
        """Return how many zspages of *size_class* its own objects could do without."""
        objects = OBJECTS[size_class]
        return self.owned[size_class] - -(-self.objects[size_class] // objects)

    def sparse(self, size_class: int) -> list[int]:
        """Return the zspages of *size_class* that have room; may be called without the lock."""
        return self._lists.members(LIST_ROOM + size_class)

    def drain(self, zspage: int, size_class: int) -> bool:
        """Place nothing in *zspage* until it is empty or ``end_drain``.

        False: it does not belong to *size_class*, or is full.
        """
        if self._lists.where(zspage) != LIST_ROOM + size_class:
            return False
        self._lists.move(zspage, LIST_NO_ROOM)
        self._draining.add(zspage)
        return True

    def is_draining(self, zspage: int) -> bool:
        """Whether *zspage* is being drained and is not empty yet."""
        return zspage in self._draining

    def end_drain(self, zspage: int) -> None:
        """Use *zspage* as before, if it was drained and is not empty."""
        if zspage in self._draining and zspage < self.limit:
            self._draining.remove(zspage)
            self._lists.move(zspage, LIST_ROOM + self._classes[zspage])

    # ---- what must always hold ----

    def check(self) -> None:
        """Assert that the lists agree with each other; for tests, O(zspages)."""
        assert len(set(self.free)) == len(self.free)
        assert self.in_use == sum(self.owned)
        owners = Counter(self._classes.tolist())
        assert [owners[size_class] for size_class in range(len(SIZES))] == list(self.owned)
        objects_of: Counter[int] = Counter()
        for zspage, size_class in enumerate(self._classes):
            objects_of[size_class] += self.used[zspage]
        assert [objects_of[size_class] for size_class in range(len(SIZES))] == list(self.objects)
        for zspage in range(self.count):
            self._check_zspage(zspage)

    def _check_zspage(self, zspage: int) -> None:
        size_class = self._classes[zspage]
        if size_class == NO_CLASS:
            assert (zspage in self.free) == (zspage < self.limit)
            assert self._lists.where(zspage) == LIST_NO_ROOM
            return
        used, objects = self.used[zspage], OBJECTS[size_class]
        assert 0 < used <= objects
        on_list = self._lists.where(zspage) == LIST_ROOM + size_class
        assert on_list + (zspage in self._draining) == (used < objects)
        free, index = objects - self.fresh[zspage], self.head[zspage]
        while index != NO_INDEX:
            free += 1
            place = (zspage << ZSPAGE_SHIFT) + index * SIZES[size_class]
            index = self._halves[place >> 1]
        assert free == objects - used
