"""Code of a test's own in the daemon: faults at places that no user reaches, and eyes inside."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

from tests.fuse.instance import Instance

_WRAPPER = """#!{python}
import sys
if "swapfs.monitor" in sys.argv:
    from swapfs.monitor import monitor
{code}
    sys.argv = sys.argv[sys.argv.index("-m") + 1 :]  # of: OPTIONS -m swapfs.monitor DESCRIPTOR
    sys.exit(monitor.main())
import runpy
sys.argv = sys.argv[sys.argv.index("-m") + 1 :]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def plant(instance: Instance, code: str) -> None:
    """Have the daemons of *instance* run *code* before they begin; to be called before `mount`."""
    wrapper = Path(instance.directory) / f"{instance.name}.python"
    indented = "".join(f"    {line}\n" for line in code.splitlines())
    wrapper.write_text(_WRAPPER.format(python=sys.executable, code=indented))
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    script = (
        f"import sys; sys.executable = {str(wrapper)!r}; from swapfs.command.main import main; "
    )
    instance.command = [sys.executable, "-c", f"{script}sys.exit(main())"]
