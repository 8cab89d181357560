"""The pool: a size-class allocator over the region's preallocated arena.

The arena is an array of equal zspages. A zspage belongs to one size class while it holds any
object and to none when it is empty, so space freed by one class serves every other and the
arena cannot fragment beyond partly filled zspages. A free object's first two bytes link to the
next free object of its zspage; the lists need no memory of their own.

``size_classes`` says what sizes there are, ``zspages`` which objects are free, ``allocator``
who may have them, and ``rebuild`` makes it all anew from the swap table, which alone is truth
(I3). Not thread safe: the slot layer's lock covers it. Holds the blobs and the table's own
pages; knows neither slots nor codecs.
"""

from swapfs.tiers.pool.allocator import Pool, PoolStats, spare_zspages
from swapfs.tiers.pool.rebuild import PoolRebuild
from swapfs.tiers.pool.size_classes import RAW_CLASS
from swapfs.tiers.pool.zspages import NO_PLACE

__all__ = ["NO_PLACE", "RAW_CLASS", "Pool", "PoolRebuild", "PoolStats", "spare_zspages"]
