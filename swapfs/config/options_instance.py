"""The options that say what an instance is called, where it is, and what it shows."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from swapfs.config import checks, values
from swapfs.config.option import SWITCH_TAKES, Form, Option, Section, as_text
from swapfs.units import MiB, format_size

MONITORING: Final = (
    Option(
        key="metrics",
        field="metrics",
        section=Section.MONITORING,
        parse=values.parse_address,
        show=lambda address, show_size: values.format_address(address),
        takes="HOST:PORT or off",
        metavar="HOST:PORT",
        help="Serve Prometheus metrics, or off",
        example="127.0.0.1:9809",
        in_example=True,
        text="""
        Where the Prometheus endpoint listens: `127.0.0.1:9809`, `[::1]:9809`, or `off`. The host
        is an IP address or `localhost`. There is no password: keep it on the loopback address.

        An address that the machine does not have yet, as at boot before its network is up, keeps
        no swap from being there: `status` shows it as degraded, and it is tried every 5 s. A port
        that is taken is an error.

        See [metrics.md](metrics.md).
        """,
    ),
    Option(
        key="access-log",
        field="log_bytes",
        section=Section.MONITORING,
        parse=values.parse_log_size,
        default=MiB,
        show=lambda size_bytes, show: show(size_bytes) if size_bytes else "off",
        takes="bytes, off",
        metavar="SIZE",
        help="Ring of what was read and written, or off",
        text=f"""
        How much memory holds the newest events of the slots, for policies and for `swapfs trace`,
        {format_size(values.LOG_BYTES_MIN)} to {format_size(values.LOG_BYTES_MAX)} and rounded down
        to a power of two; or `off`.

        An event takes 16 bytes: {format_size(MiB)} holds 65536. Whoever reads too slowly misses
        the oldest, and nothing ever waits for it. 4 bytes for each 2M of the file come on top.
        """,
    ),
)

INSTANCE: Final = (
    Option(
        key="name",
        field="name",
        section=Section.INSTANCE,
        parse=values.parse_name,
        default="swapfs",
        takes="text",
        metavar="NAME",
        help="Name of the instance",
        text="""
        The name of the instance: 1 to 32 of `A-Z a-z 0-9 . _ -`, not starting with a dot or a
        dash, and not ending like a file of an instance: `.sock`, `.json`, `.tmp`, `.lock`,
        `.log`.

        It is part of the paths below, the label `name` of every metric, and the argument of
        `down`, `status`, `demote` and `upgrade`. Two instances need two names; each has a systemd
        unit of its own, which `swapfs install-unit NAME` writes.
        """,
    ),
    Option(
        key="runtime-dir",
        field="runtime_dir",
        section=Section.INSTANCE,
        parse=values.parse_path,
        fit=checks.fit_runtime_dir,
        show=as_text,
        default=Path("/run/swapfs"),
        takes="path",
        metavar="DIR",
        help="Sockets and locks",
        text="""
        Where the instance keeps its files. `status`, `down`, `demote` and `upgrade` need the same
        `--runtime-dir`, also in the systemd unit.

        | File | What it is |
        |---|---|
        | `NAME.sock` | control socket, root only |
        | `NAME.json` | the last status, for everyone to read, written about once a second |
        | `NAME.tmp` | the next `NAME.json` while it is written |
        | `NAME` | directory of the default mount point, `NAME/mnt` |
        | `NAME.lock` | held while the instance runs; stays behind, empty |
        | `.reserve` | what `vm.min_free_kbytes` was before, while it is raised |
        | `NAME.log` | the log and, as `NAME.log~`, what came before; elsewhere by `log-dir` |
        """,
    ),
    Option(
        key="log-dir",
        field="log_dir",
        section=Section.INSTANCE,
        parse=values.parse_path,
        fit=checks.fit_log_dir,
        show=as_text,
        default_text="RUNTIME-DIR",
        takes="path",
        metavar="DIR",
        help="Existing directory for the log",
        example="/run/swapfs",
        text="""
        An existing directory for `NAME.log`, what the daemon had to say: root only, stays behind,
        appended to. A log of 4 MiB becomes `NAME.log~`, and a new one is begun. Beside it, all
        this is in the journal where the instance is a systemd unit.

        The default is a tmpfs, as a rule, and gone after a reboot. Name a place on a disk where
        an instance without a unit shall leave word of how it died. A disk that hangs costs log
        records, and never a request.

        With `--foreground` the log is standard error instead.
        """,
    ),
    Option(
        key="mountpoint",
        field="mountpoint",
        section=Section.INSTANCE,
        parse=values.parse_path,
        fit=checks.fit_mountpoint,
        show=as_text,
        default_text="RUNTIME-DIR/NAME/mnt",
        takes="path",
        metavar="MNT",
        help="Existing directory; the default is made",
        argument_of=frozenset({"mount"}),
        example="/run/swapfs/swapfs/mnt",
        text="""
        Where the swap file is mounted: an existing directory that nothing is mounted on. The
        default place is made by `up` and removed by `down`.

        `mount` takes it as its argument instead.
        """,
    ),
    Option(
        key="unsafe",
        field="unsafe",
        section=Section.INSTANCE,
        parse=values.parse_flag,
        form=Form.FLAG,
        default=False,
        takes=SWITCH_TAKES,
        help="Go on though a guard failed",
        text="""
        Go on though a guard against deadlock could not be set, and beside a swap area whose
        server is gone. The machine may then hang under memory pressure, for good.

        It is for trying things out where swap is not turned on, or in a virtual machine. `status`
        still shows what does not hold. The guards are listed in
        [metrics.md](metrics.md#reading-them) and in [operating.md](operating.md#degraded).
        """,
    ),
)
