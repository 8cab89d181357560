"""The kernel's tables, from a fake /proc and /sys; the tools, by what they are called with."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from swapfs.errors import OperationError
from swapfs.host import loop, mounts, proc, swap
from swapfs.host.loop import Backing, FileId, LoopDevice
from swapfs.host.mounts import MountEntry

HEADER = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "sys/block").mkdir(parents=True)
    (tmp_path / "proc/swaps").write_text(HEADER)
    (tmp_path / "proc/self/mountinfo").write_text("27 1 8:1 / / rw - ext4 /dev/sda1 rw\n")
    return tmp_path


def add_loop(
    root: Path,
    number: int,
    backing: str,
    dio: int = 1,
    discard: int = 4096,
    sector: int = 4096,
    sequence: int = 0,
) -> None:
    block = root / f"sys/block/loop{number}"
    (block / "loop").mkdir(parents=True)
    (block / "queue").mkdir()
    (block / "loop/backing_file").write_text(backing + "\n")
    (block / "loop/dio").write_text(f"{dio}\n")
    (block / "queue/discard_max_bytes").write_text(f"{discard}\n")
    (block / "queue/logical_block_size").write_text(f"{sector}\n")
    if sequence:
        (block / "diskseq").write_text(f"{sequence}\n")


def add_swap(root: Path, *lines: str) -> None:
    with (root / "proc/swaps").open("a") as swaps:
        swaps.writelines(f"{line}\n" for line in lines)


def test_swaps_with_escapes_and_deleted_files(root: Path) -> None:
    add_swap(
        root,
        "/dev/loop0                              partition\t1048572\t\t12\t\t100",
        "/var/my\\040swap\\134\\040(deleted) file\t\t8\t\t0\t\t-2",
    )
    first, second = swap.entries(root)
    assert (first.path, first.size_bytes, first.used_bytes, first.priority, first.deleted) == (
        "/dev/loop0",
        1048572 * 1024,
        12 * 1024,
        100,
        False,
    )
    assert (second.path, second.kind, second.priority, second.deleted) == (
        "/var/my swap\\",
        "file",
        -2,
        True,
    )
    assert swap.find(Path("/dev/loop0"), root) == first
    assert swap.find(Path("/dev/loop1"), root) is None


def test_no_swap_support(root: Path) -> None:
    (root / "proc/swaps").unlink()
    assert swap.entries(root) == []


def test_mounts_with_optional_fields_and_escapes(root: Path) -> None:
    (root / "proc/self/mountinfo").write_text(
        "27 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "40 27 0:9 / /mnt/a\\040b rw shared:1 master:2 - fuse.swapfs swapfs:x rw,user_id=0\n"
        "41 27 0:9 / /mnt/a\\040b rw - tmpfs none rw\n"
    )
    assert mounts.entries(root)[1] == MountEntry(
        Path("/mnt/a b"), "fuse.swapfs", "swapfs:x", os.makedev(0, 9)
    )
    top = mounts.at(Path("/mnt/a b"), root)
    assert top is not None
    assert top.fstype == "tmpfs"
    assert mounts.at(Path("/mnt"), root) is None


def test_loops_in_the_order_of_their_numbers(root: Path) -> None:
    add_loop(root, 10, "/b")
    add_loop(root, 2, "/a (deleted)", dio=0, discard=0, sector=512)
    (root / "sys/block/loop3").mkdir()  # not attached
    assert loop.devices(root) == [
        LoopDevice(Path("/dev/loop2"), "/a", True, False, 0, 512),
        LoopDevice(Path("/dev/loop10"), "/b", False, True, 4096, 4096),
    ]
    found = loop.find(Backing(Path("/b"), None), root)
    assert found is not None
    assert found.device == Path("/dev/loop10")
    assert loop.find(Backing(Path("/c"), None), root) is None


OURS = FileId(os.makedev(0, 41), 2)


@pytest.fixture
def files(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, FileId]:
    """What the kernel answers by the name of the device; who is not there may not be asked."""
    files: dict[str, FileId] = {}

    def read(node: Path) -> FileId:
        if node.name not in files:
            raise PermissionError(13, "Permission denied")
        return files[node.name]

    monkeypatch.setattr(loop, "read_backing_id", read)
    return files


@pytest.mark.parametrize("shown", ["/mnt/swap", "/swap", "/of/a/container/swap"])
@pytest.mark.parametrize(
    ("answer", "is_ours"),
    [(OURS, True), (FileId(OURS.device, 3), False), (FileId(os.makedev(8, 1), 2), False)],
)
def test_a_loop_device_is_known_by_its_file_whatever_the_path_says(
    root: Path, files: dict[str, FileId], shown: str, answer: FileId, is_ours: bool
) -> None:
    add_loop(root, 1, "/elsewhere/file")
    add_loop(root, 2, shown)
    files |= {"loop1": OURS, "loop2": answer}
    backing = Backing(Path("/mnt/swap"), OURS)
    for find in (loop.find, loop.find_user):
        found = find(backing, root)
        assert (found is not None and found.device.name) == ("loop2" if is_ours else False)


@pytest.mark.parametrize("file", [OURS, None])
@pytest.mark.parametrize(
    ("shown", "stands"), [("/mnt/swap", True), ("/swap", None), ("/a/swap", False)]
)
@pytest.mark.usefixtures("files")
def test_without_an_answer_the_path_decides(
    root: Path, shown: str, stands: bool | None, file: FileId | None
) -> None:
    add_loop(root, 2, shown)
    backing = Backing(Path("/mnt/swap"), file)
    (attached,) = loop.devices(root)
    assert loop.stands_on(attached, backing, root) is stands
    assert (loop.find(backing, root) is not None) is (stands is True)
    assert (loop.find_user(backing, root) is not None) is (stands is not False)


def test_a_file_system_that_hangs_is_asked_once_and_not_waited_for(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, asked = threading.Event(), []

    def read(node: Path) -> FileId:
        asked.append(node)
        answers.wait()
        return OURS

    monkeypatch.setattr(loop, "read_backing_id", read)
    monkeypatch.setattr(loop, "ASK_WAIT_S", 0.0)
    add_loop(root, 2, "/swap", sequence=5)
    backing = Backing(Path("/mnt/swap"), OURS)
    assert loop.find(backing, root) is None
    assert loop.find_user(backing, root) is not None
    answers.set()
    while loop.find(backing, root) is None:
        threading.Event().wait(0.001)
    assert asked == [root / "dev/loop2"]


def test_another_attachment_is_asked_anew(root: Path, files: dict[str, FileId]) -> None:
    add_loop(root, 2, "/swap", sequence=5)
    files["loop2"] = OURS
    backing = Backing(Path("/mnt/swap"), OURS)
    assert loop.find(backing, root) is not None
    files["loop2"] = FileId(1, 1)
    assert loop.find(backing, root) is not None, "asked again for nothing"
    (root / "sys/block/loop2/diskseq").write_text("6\n")
    assert loop.find(backing, root) is None


def test_meminfo(root: Path) -> None:
    (root / "proc/meminfo").write_text("MemTotal:  4 kB\nHugePages_Total: 0\nSwapTotal: 8 kB\n")
    assert proc.meminfo_bytes("SwapTotal", root=root) == {"SwapTotal": 8192}
    with pytest.raises(OperationError, match="no SwapCached"):
        proc.meminfo_bytes("SwapTotal", "SwapCached", root=root)


def test_oom_kills(root: Path) -> None:
    assert proc.oom_kills(root) == 0
    (root / "proc/vmstat").write_text("oom_kill 7\n")
    assert proc.oom_kills(root) == 7


def test_memory_total(root: Path) -> None:
    (root / "proc/meminfo").write_text("MemTotal:  4 kB\n")
    assert proc.memory_total_bytes(root) == 4096
    (root / "proc/meminfo").write_text("MemFree:  4 kB\n")
    with pytest.raises(OperationError):
        proc.memory_total_bytes(root)


class Tools:
    """Stands in for subprocess.run; *fail* names the tool that fails."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[list[str]] = []
        self.fail = ""
        self.loop: dict[str, int] = {}

    def run(self, words: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        assert "shell" not in options
        self.calls.append(words)
        if words[0] == self.fail:
            return subprocess.CompletedProcess(words, 1, "", f"{words[0]}: no way\nat all\n")
        if "--show" in words:
            add_loop(self.root, 7, words[-1], **self.loop)
            return subprocess.CompletedProcess(words, 0, "/dev/loop7\n", "")
        if words[:2] == ["losetup", "-d"]:
            (self.root / "sys/block/loop7/loop/backing_file").unlink()
        return subprocess.CompletedProcess(words, 0, "", "")


@pytest.fixture
def tools(root: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    tools = Tools(root)
    monkeypatch.setattr(subprocess, "run", tools.run)
    return tools


def test_attach_loop_asks_for_what_it_checks(root: Path, tools: Tools) -> None:
    attached = loop.attach(Path("/mnt/swap"), root=root)
    assert attached.device == Path("/dev/loop7")
    assert tools.calls == [
        ["losetup", "--show", "-f", "--sector-size=4096", "--direct-io=on", "/mnt/swap"]
    ]


@pytest.mark.parametrize(
    ("state", "says"),
    [({"dio": 0}, "direct I/O"), ({"discard": 0}, "discard"), ({"sector": 512}, "512 bytes")],
)
def test_attach_loop_detaches_what_is_not_as_asked(
    root: Path, tools: Tools, state: dict[str, int], says: str
) -> None:
    tools.loop = state
    with pytest.raises(OperationError, match=says):
        loop.attach(Path("/mnt/swap"), root=root)
    assert tools.calls[-1] == ["losetup", "-d", "/dev/loop7"]
    assert loop.devices(root) == []


def test_detach_refuses_while_swap_is_on(root: Path, tools: Tools) -> None:
    add_swap(root, "/dev/loop7 partition 4 0 1")
    with pytest.raises(OperationError, match="swap is on it"):
        loop.detach(Path("/dev/loop7"), root)
    assert tools.calls == []


def test_detach_that_the_kernel_put_off_is_an_error(
    root: Path, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_loop(root, 8, "/mnt/swap")
    add_loop(root, 7, "/other")
    monkeypatch.setattr(loop, "DETACH_WAIT_S", 0)
    with pytest.raises(OperationError, match="another process holds it open"):
        loop.detach(Path("/dev/loop8"), root)


@pytest.mark.parametrize("goes", [True, False])
def test_a_device_that_goes_by_itself_meanwhile_is_detached(
    root: Path, tools: Tools, monkeypatch: pytest.MonkeyPatch, goes: bool
) -> None:
    add_loop(root, 8, "/mnt/swap", sequence=3)

    def run(*words: object) -> str:
        if goes:  # autoclear, which losetup -D asks for
            (root / "sys/block/loop8/loop/backing_file").unlink()
        raise OperationError("losetup: /dev/loop8: detach failed: No such device or address")

    monkeypatch.setattr(loop, "run", run)
    if goes:
        loop.detach(Path("/dev/loop8"), root)
    else:
        with pytest.raises(OperationError, match="detach failed"):
            loop.detach(Path("/dev/loop8"), root)


def test_a_device_that_another_file_has_taken_since_is_detached(
    root: Path, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_loop(root, 8, "/mnt/swap", sequence=3)
    add_loop(root, 7, "/other")

    def run(*words: object) -> str:
        (root / "sys/block/loop8/diskseq").write_text("4\n")
        return ""

    monkeypatch.setattr(loop, "run", run)
    monkeypatch.setattr(loop, "DETACH_WAIT_S", 0)
    loop.detach(Path("/dev/loop8"), root)


def test_swap_tools(tools: Tools) -> None:
    device = Path("/dev/loop7")
    swap.mkswap(device, "a-name-longer-than-labels")
    swap.swapon(device, 100)
    swap.swapon(device, 5, discard=False)
    swap.swapoff(device)
    mounts.umount(Path("/mnt"))
    assert tools.calls == [
        ["mkswap", "-U", "clear", "-L", "swapfs:a-name-l", "/dev/loop7"],
        ["swapon", "--discard", "-p", "100", "/dev/loop7"],
        ["swapon", "-p", "5", "/dev/loop7"],
        ["swapoff", "/dev/loop7"],
        ["umount", "/mnt"],
    ]


def test_a_failing_tool_is_one_line(tools: Tools) -> None:
    tools.fail = "swapoff"
    with pytest.raises(OperationError) as caught:
        swap.swapoff(Path("/dev/loop7"))
    assert str(caught.value) == "swapoff /dev/loop7: swapoff: no way; at all"


def tool_ends(
    monkeypatch: pytest.MonkeyPatch, root: Path, status: int, said: str, oom_kills: int = 0
) -> None:
    """Have every tool end with *status*, and the kernel count *oom_kills* meanwhile."""
    (root / "proc/vmstat").write_text("pgpgin 5\noom_kill 3\n")

    def run(words: list[str], **_options: object) -> subprocess.CompletedProcess[str]:
        (root / "proc/vmstat").write_text(f"pgpgin 5\noom_kill {3 + oom_kills}\n")
        return subprocess.CompletedProcess(words, status, "", said)

    monkeypatch.setattr(subprocess, "run", run)


def test_swapoff_tells_another_one_from_a_failure(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Path("/dev/loop7")
    tool_ends(monkeypatch, root, 4, "swapoff: /dev/loop7: swapoff failed: Invalid argument\n")
    assert not swap.swapoff(device, root)
    tool_ends(monkeypatch, root, 2, "swapoff: /dev/loop7: swapoff failed: Cannot allocate memory\n")
    with pytest.raises(swap.NoMemory, match="Cannot allocate memory"):
        swap.swapoff(device, root)
    tool_ends(monkeypatch, root, 2, "swapoff: /dev/loop7: swapoff failed: Not allowed\n")
    with pytest.raises(OperationError, match="Not allowed") as caught:
        swap.swapoff(device, root)
    assert not isinstance(caught.value, swap.NoMemory)
    tool_ends(monkeypatch, root, 0, "")
    assert swap.swapoff(device, root)


@pytest.mark.parametrize(("status", "oom_kills"), [(-9, 1), (-9, 0), (-15, 1)])
def test_swapoff_knows_the_oom_killer(
    root: Path, monkeypatch: pytest.MonkeyPatch, status: int, oom_kills: int
) -> None:
    tool_ends(monkeypatch, root, status, "", oom_kills)
    with pytest.raises(OperationError, match=r"swapoff /dev/loop7: ended by") as caught:
        swap.swapoff(Path("/dev/loop7"), root)
    assert isinstance(caught.value, swap.OomKilled) is (status == -9 and oom_kills == 1)


def test_waiting_for_a_change_ends_at_once_when_the_area_is_gone(root: Path) -> None:
    swap.wait_for_change(Path("/dev/loop7"), 3600.0, root)
    add_swap(root, "/dev/loop7 partition 4 0 1")
    swap.wait_for_change(Path("/dev/loop7"), 0.0, root)


def test_a_missing_tool_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(words: list[str], **options: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", words[0])

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(OperationError, match="umount: cannot be run: No such file"):
        mounts.umount(Path("/mnt"))


def test_the_real_machine_can_be_read() -> None:
    assert proc.memory_total_bytes() > 1 << 20
    assert mounts.entries()
    swap.entries()
    loop.devices()


def test_what_cannot_be_seen_is_not_absent(root: Path) -> None:
    (root / "proc/swaps").unlink()
    assert swap.entries(root) == [], "a kernel without swap"
    shutil.rmtree(root / "proc")
    with pytest.raises(OperationError, match="proc/swaps"):
        swap.entries(root)
    shutil.rmtree(root / "sys")
    with pytest.raises(OperationError, match="loop devices cannot be seen"):
        loop.devices(root)


def test_a_device_that_cannot_be_seen_is_detached_after_all(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when sysfs is not mounted: losetup works, and nothing shows what it did."""
    shutil.rmtree(root / "sys")
    attached = {"/dev/loop7"}

    def losetup(*words: object) -> str:
        if "-d" in words:
            attached.discard(str(words[-1]))
        return "/dev/loop7\n"

    def ask(node: Path) -> FileId:
        if not attached:
            raise OSError(errno.ENXIO, "No such device or address")
        return FileId(1, 2)

    monkeypatch.setattr(loop, "run", losetup)
    monkeypatch.setattr(loop, "read_backing_id", ask)
    with pytest.raises(OperationError, match="loop devices cannot be seen") as caught:
        loop.attach(Path("/mnt/swap"), root=root)
    assert not hasattr(caught.value, "__notes__")
    assert not attached
