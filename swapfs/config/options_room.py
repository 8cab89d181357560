"""The options that say how much is stored, and in what."""

from __future__ import annotations

from typing import Final

from swapfs.config import checks, values
from swapfs.config.backing import DIRECT_IO, FILE_BYTES_MIN, show_file
from swapfs.config.option import REQUIRED, SWITCH_TAKES, Form, Option, Section, as_size
from swapfs.units import FILE_BYTES_MAX, PAGE_SIZE, format_size

ROOM: Final = (
    Option(
        key="size",
        field="size_bytes",
        section=Section.ROOM,
        parse=values.parse_virtual_size,
        show=as_size,
        default=REQUIRED,
        takes="bytes",
        metavar="SIZE",
        help="Size that the kernel sees: 1G, 512MiB",
        example="2G",
        in_example=True,
        text=f"""
        The size of the swap file: what the kernel sees. A multiple of {PAGE_SIZE}, from
        {format_size(values.SIZE_BYTES_MIN)} to {format_size(values.SIZE_BYTES_MAX)}.

        It is a promise, not memory: an empty slot costs nothing, and the swap table grows by one
        4 KiB page for each 2 MiB of the file that is in use. At the default `overcommit` it must
        fit into pool and file even if no page compresses.
        """,
    ),
    Option(
        key="pool",
        field="pool_bytes",
        section=Section.ROOM,
        parse=values.parse_pool_size,
        fit=checks.fit_pool,
        show=as_size,
        default=REQUIRED,
        takes="bytes",
        metavar="SIZE",
        help="Memory for compressed pages, taken at start",
        example="512M",
        in_example=True,
        text=f"""
        Memory for compressed pages. It is taken and locked when swapfs starts, and not given back
        before it stops. At least {format_size(values.POOL_BYTES_MIN)}, at most the machine's
        memory, rounded down to a multiple of {format_size(values.POOL_GRAIN_BYTES)}. A quarter of
        the memory is a good start.

        Taken at the start, because a server that allocates while the machine is out of memory
        waits for itself. The swap table is kept in the pool too, and has up to an eighth of it
        reserved. So give at least a 64th of `size`: with less, pages are refused when the table
        has no room to name them, however large the file is.
        """,
    ),
    Option(
        key="pool-max",
        field="pool_max_bytes",
        section=Section.ROOM,
        parse=values.parse_pool_size,
        fit=checks.fit_pool_max,
        show=lambda value, show_size: show_size(value) if value else None,
        default=0,
        default_text="that of `pool`",
        takes="bytes",
        metavar="SIZE",
        help="Largest pool that resize may make",
        example="512M",
        text="""
        The largest size that `swapfs resize --pool` may give the pool while it runs. At least
        `pool`, at most the machine's memory.

        It costs address space and 11 bytes for each 64 KiB; memory is taken when the pool grows.
        """,
    ),
    Option(
        key="file",
        field="file",
        section=Section.ROOM,
        parse=values.parse_text,
        fit=checks.fit_file_tier,
        show=show_file,
        default_text="none, memory only",
        takes="PATH or PATH:SIZE",
        metavar="PATH[:SIZE]",
        help="Backing file or block device",
        example="/var/lib/swapfs/swapfs.tier:2G",
        in_example=True,
        text=f"""
        A backing file or block device for pages that do not stay in memory. `PATH:SIZE`; the size
        may be left out if the file or device exists.

        At least {format_size(FILE_BYTES_MIN)}, at most {format_size(FILE_BYTES_MAX)}; of a larger
        device give the part to use, `PATH:{format_size(FILE_BYTES_MAX)}`. Used in whole MiB, so a
        remainder is ignored. Two of these are kept free so that the rest can be compacted, and
        each of the others counts for 213 incompressible pages: about 83 % of the file counts as
        room. To know what is free in it takes half a MiB of memory per GiB, beside the pool.

        - A file is made with mode 0600 and its space is allocated at the start. A symbolic link
          is refused. The file stays when the instance goes down, so that the next start is fast.
        - Nothing is made in the place of what is missing: a device that is not there, a link to
          nothing. Whether the right file system is mounted where a file goes, only you know.
        - Refused, unless `unsafe`: file systems in memory (tmpfs, ramfs), over the network, or
          served by a program (nfs, cifs, 9p, ceph, FUSE). What they need to take a page is
          memory, and there is none.
        - Warned of, by `up` and as *limit* in `status`: overlay, since what is below it cannot be
          seen, and file systems that write each block to a new place (zfs, bcachefs, nilfs2).
          There allocated space is no reservation: once the file system is full, writes to the
          file fail, and go on when there is room again. On btrfs the file is made without copy
          on write (`chattr +C`), checksums and compression, so its space is kept for it; keep it
          out of snapshots, which share its blocks until they are written anew.
        - A block device must be unused. Links to it (`/dev/disk/by-id/...`) are fine.
        - A place that holds something else is refused: its first 128 KiB must be zero, or a blob
          of swapfs.
        - What is in it is of no use to the next start; the table that names it is in memory.
        """,
    ),
    Option(
        key="file-direct-io",
        field="file.direct_io",
        section=Section.ROOM,
        parse=values.one_of(*DIRECT_IO),
        fit=checks.fit_to_file,
        default="auto",
        choices=DIRECT_IO,
        takes="auto, on, off",
        metavar="auto|on|off",
        help="O_DIRECT on it",
        text="""
        Whether the backing file is used past the page cache (O_DIRECT). `auto`: where its file
        system allows it. `on`: fail if it does not. `off`: never. An error if there is no `file`.

        Without it every demoted page passes through the page cache: memory is used when there is
        none. `off` is for comparisons.
        """,
    ),
    Option(
        key="file-encryption",
        field="file.encryption",
        section=Section.ROOM,
        parse=values.parse_flag,
        fit=checks.fit_to_file,
        form=Form.SWITCH,
        default=True,
        takes=SWITCH_TAKES,
        help="Encrypt what goes there",
        text="""
        Whether what goes to the backing file is encrypted, with AES-256-GCM. An error if there is
        no `file`.

        The key is made at the start, kept in locked memory, and gone with the instance; so is
        what the file held. Its authentication is the checksum too. Off, each page has a CRC-32,
        and **the file keeps readable memory of other programs after `down`**. On costs about a
        microsecond a page.
        """,
    ),
    Option(
        key="overcommit",
        field="overcommit",
        section=Section.ROOM,
        parse=values.parse_ratio,
        default=1.0,
        takes="ratio",
        metavar="RATIO",
        help="Most size per guaranteed room",
        text="""
        How much `size` is allowed per byte of guaranteed room. A number, 1 or more. Above 1 the
        kernel may be refused a write when pages compress badly, and may then kill a program.

        **Room** is what can be stored for certain, however badly pages compress: the pool without
        the swap table's reserve and one spare zspage, plus 83 % of the file, and no more than 64
        times the pool, which the table must fit into. `status --json` shows it as `room_bytes`.

        Above 1.0 a write of the kernel may be refused if pages compress worse than you expected:
        it then fails with ENOSPC, is counted in `swapfs_failed_writes_total{reason="no_room"}`,
        and the kernel keeps the page in memory. Pages that were stored before stay readable. The
        kernel cannot be told that swap is full, and so it tries again and again before it calls
        its OOM killer. On a machine that has no memory left it may never come to that, as even
        the kernel's own way to the server wants some. The server sees it: for ten seconds less than
        1/32 of the memory is available, and either writes are refused again and again with no room
        in another swap area, or nothing arrives while the loop device waits. Then it calls the OOM
        killer itself, which ends the process that it would choose; counted in
        `swapfs_oom_calls_total`. While a disk below does not answer, refused writes are no reason,
        as it may have room when it does. A file avoids all that.

        At 1.0 this does not happen while the disk works: when a write finds no room, the pool is
        compacted, whatever the pages before it left behind, and the write waits for that (at most
        5 s; some 20 ms with a pool of 64 MiB).

        A pool without a file is of use only with a ratio above 1, as it would otherwise hold no
        more than the memory it takes. lz4 shrank the memory of ten ordinary programs 1.9 to 4.3
        times, 2.8 on average. A ratio of 2 is careful, 3 is not.
        """,
    ),
)
