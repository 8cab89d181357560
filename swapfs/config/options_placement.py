"""The options that say where pages go, and when."""

from __future__ import annotations

from typing import Final

from swapfs.config import checks, values
from swapfs.config.option import SWITCH_TAKES, Form, Option, Section
from swapfs.config.policy_name import parse_policy

LATENCY_MODES: Final = ("adaptive", "always", "off")

PLACEMENT: Final = (
    Option(
        key="high-watermark",
        field="high_watermark_percent",
        section=Section.PLACEMENT,
        parse=values.parse_percent,
        default=90,
        takes="percent of the pool",
        metavar="PERCENT",
        help="Pool use that starts demotion",
        text="""
        How full the pool is, in percent, when pages start to move down to the file. A whole
        number from 1 to 100. Without a file it means nothing.

        What is above it takes bursts: when the pool is full a page goes straight to the file,
        which is slower (`swapfs_pool_full_total`). Lower it if that counts up.
        """,
    ),
    Option(
        key="low-watermark",
        field="low_watermark_percent",
        section=Section.PLACEMENT,
        parse=values.parse_percent,
        fit=checks.fit_low_watermark,
        default=80,
        takes="percent of the pool",
        metavar="PERCENT",
        help="Pool use that ends demotion",
        text="""
        How full the pool is, in percent, when pages stop moving down to the file. Below
        `high-watermark`; the gap makes the writes long and sequential.
        """,
    ),
    Option(
        key="promote",
        field="promote",
        section=Section.PLACEMENT,
        parse=values.parse_flag,
        form=Form.SWITCH,
        default=False,
        takes=SWITCH_TAKES,
        help="Reads bring pages back to memory",
        text="""
        Whether a page that is read from the file is put back into the pool.

        Off, because the kernel has just been given the page and rarely asks for the same one
        twice. Try it when `swapfs_reads_total{result="file"}` grows with pages that stay on swap.
        Nothing is promoted while the pool is above the high watermark.
        """,
    ),
    Option(
        key="prefetch",
        field="prefetch_pages",
        section=Section.PLACEMENT,
        parse=values.parse_prefetch,
        default=0,
        takes="pages, 0 to 64",
        metavar="PAGES",
        help="Most pages brought up beside one that is read",
        text="""
        How many pages come up to the pool, at most, in the read of one that lies below: those of
        the slots after it, as far as they lie side by side. 0: none.

        How many it is follows from how many of them were used, as in the kernel's own readahead,
        which has brought its pages to memory before; so try it where `vm.page-cluster` is 0. A
        policy may ask for fewer. See `swapfs_prefetched_pages_total` and
        `swapfs_prefetch_used_pages_total`. Nothing is brought up while the pool is above the high
        watermark.
        """,
    ),
    Option(
        key="latency",
        field="latency",
        section=Section.PLACEMENT,
        parse=values.one_of(*LATENCY_MODES),
        choices=LATENCY_MODES,
        default=LATENCY_MODES[0],
        takes=", ".join(LATENCY_MODES),
        metavar="MODE",
        help="Whether CPUs are kept from sleeping",
        text="""
        Whether CPUs are kept from sleeping while pages are swapped in (`/dev/cpu_dma_latency`).

        A swap-in wakes three threads in turn, and waking a CPU that sleeps takes longer than all
        the rest: 20 to 50 us each in a virtual machine. `adaptive` keeps CPUs awake from the first
        swap-in until none has come for 10 ms, so an idle machine sleeps as ever. `always` keeps
        them awake as long as the instance is up, which costs power and on a shared host
        processor time. `off` leaves the machine alone.
        """,
    ),
    Option(
        key="raw-first",
        field="raw_first",
        section=Section.PLACEMENT,
        parse=values.parse_flag,
        form=Form.SWITCH,
        default=False,
        takes=SWITCH_TAKES,
        help="Incompressible pages move down first",
        text="""
        Whether pages that do not compress move down before others (zram: huge).

        They take four times the memory of others and gain nothing in the pool. With it one that
        nobody has read since it came goes a round of the clock hand earlier. Counted in
        `swapfs_demoted_raw_pages_total`.
        """,
    ),
    Option(
        key="recompress",
        field="recompress",
        section=Section.PLACEMENT,
        parse=values.parse_flag,
        form=Form.SWITCH,
        default=False,
        takes=SWITCH_TAKES,
        help="Cold pages are compressed again, with zstd",
        text="""
        Whether cold pages are compressed again, with zstd, before anything goes to a disk.

        The memory of programs then takes about two thirds of what lz4 makes of it, in the pool and
        in the tiers below it. It is done in the background, by a thread that runs while no other
        wants the processor. To read such a page takes some 3 microseconds more; one that is read
        again and again returns to lz4. Takes 1 to 2 MiB more of locked memory.
        """,
    ),
    Option(
        key="recompress-level",
        field="recompress_level",
        section=Section.PLACEMENT,
        parse=values.parse_zstd_level,
        default=3,
        takes="1 to 19",
        metavar="N",
        help="Level of zstd",
        text="""
        The level of zstd that pages are recompressed with, 1 to 19. Each above 3 gains 1 to 3 % of
        room, and takes about half as long again.
        """,
    ),
    Option(
        key="recompress-watermark",
        field="recompress_watermark_percent",
        section=Section.PLACEMENT,
        parse=values.parse_percent,
        default=50,
        takes="percent of the pool",
        metavar="PERCENT",
        help="Pool use that starts recompression",
        text="""
        How full the pool is, in percent, when cold pages begin to be recompressed. Far below
        `high-watermark`, so that it is done before pages move down.
        """,
    ),
    Option(
        key="policy",
        field="policy",
        section=Section.PLACEMENT,
        parse=parse_policy,
        default="second-chance",
        takes="a name, or MODULE:CLASS",
        metavar="POLICY",
        help="What decides which page goes down next",
        text="""
        The policy: which pages move down first when the pool is full, and more. `second-chance`,
        `clock`, `sieve`, `lru`, `s3-fifo`, `2q`, `generations`, `refault-distance`, `random`,
        `fifo`; or a class of your own, as `MODULE:CLASS` or `PATH.py:CLASS`.

        All but `second-chance` follow the access log and take 28 bytes of locked memory for each
        page that they track, 4 to 8 times as many as raw pages fit into the pool. A policy that
        fails is replaced by the default, and counted (`swapfs_policy_failures_total`). See
        [lab.md](lab.md).
        """,
    ),
    Option(
        key="priority",
        field="priority",
        section=Section.PLACEMENT,
        parse=values.parse_priority,
        default=100,
        takes=f"0 to {values.PRIORITY_MAX}",
        metavar="N",
        help="Swap priority",
        text=f"""
        The priority of the swap area, 0 to {values.PRIORITY_MAX}, as in `swapon -p`. The kernel
        uses the area with the highest priority first.

        Only `up` uses it. Above a plain swap file or partition, which usually have a negative
        one.
        """,
    ),
    Option(
        key="min-free",
        field="min_free_bytes",
        section=Section.PLACEMENT,
        parse=values.parse_reserve,
        fit=checks.fit_min_free,
        show=values.format_reserve,
        takes="bytes, auto, off",
        metavar="SIZE",
        help="vm.min_free_kbytes, auto or off",
        text="""
        What the kernel keeps free while swap is on (`vm.min_free_kbytes`), as a size. `auto` is a
        sixteenth of the machine's memory, at most 32M. `off` leaves it alone. At most a quarter
        of the memory.

        A larger reserve lets the server get memory while everybody else waits for some. `up`
        raises the kernel's value to this and never lowers it; the last `down` puts back what was
        there before, unless somebody else has changed it since.
        """,
    ),
)
