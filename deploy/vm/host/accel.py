"""KVM or TCG: whichever gets a kernel to its initrd on this machine."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING

from deploy.vm.host.cache import digest
from deploy.vm.host.proc import VmError, say
from deploy.vm.host.qemu import Machine, run_captured

if TYPE_CHECKING:
    from pathlib import Path

    from deploy.vm.host.cache import Cache

_MARKER = "swapfs-vm: probe ok"
_TRIAL_S = 15.0


def choose_accel(kernel: Path, initrd: Path, cache: Cache) -> str:
    """Return `kvm` or `tcg`: $SWAPFS_VM_ACCEL, else what a short trial said once.

    /dev/kvm may exist and still not boot a stock kernel (nested virtualisation), so the file
    alone proves nothing. The answer is kept in the cache for this host kernel.
    """
    asked = os.environ.get("SWAPFS_VM_ACCEL", "")
    if asked:
        if asked not in ("kvm", "tcg"):
            raise VmError(f"SWAPFS_VM_ACCEL is {asked!r}; it must be kvm or tcg")
        return asked
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"

    def build(into: Path) -> None:
        say(f"trying whether KVM boots here (at most {_TRIAL_S:.0f} s) ...")
        machine = Machine(
            kernel, initrd, into, "kvm", memory_mib=256, cpus=1, cmdline="swapfs.mode=probe"
        )
        try:
            outcome = run_captured(machine, _TRIAL_S, lambda _: None, dump=False)
            answer = "kvm" if _MARKER in outcome.console else "tcg"
        except VmError:
            answer = "tcg"
        say(f"using {answer}")
        (into / "answer").write_text(answer)

    key = digest(platform.release(), platform.node())
    return (cache.entry("accel", key, build) / "answer").read_text()
