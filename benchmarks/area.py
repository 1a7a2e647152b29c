"""The scratch area of a run: a directory, a root file system in it, and the removal of all leftovers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

APPLETS = ("true", "sh", "cat", "ls", "echo", "id", "sleep", "rm", "dd")
ROOT_DIRS = ("bin", "dev", "etc", "proc", "sys", "tmp")
ENGINE_DIRS = (Path("/run/docker"), Path("/run/containerd"))  # dockerd makes these whatever its options say


def mount_points() -> list[tuple[str, str]]:
    """(mount point, file system type) of every mount, in mount order."""
    rows = (line.split(" - ") for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return [(left.split()[4], right.split()[0]) for left, right in rows]


def kill_members(top: Path) -> None:
    for procs in top.glob("**/cgroup.procs"):
        with suppress(OSError):
            for pid in procs.read_text().split():
                os.kill(int(pid), signal.SIGKILL)


def remove_empty_tree(top: Path) -> None:
    """rmdir from the leaves up; what is not empty, or in use, stays."""
    for directory, _, _ in os.walk(top, topdown=False):
        with suppress(OSError):
            os.rmdir(directory)


class Area:
    """A context manager. Everybody may pass through its directory: mapped users must reach the root in it.

    `cgroup` is the name below which every contestant's control groups go. `stack` takes what must end before
    the directory is removed.
    """

    def __init__(self) -> None:
        self.stack = ExitStack()
        self.foreign = [path for path in ENGINE_DIRS if path.exists()]
        self.path = Path(tempfile.mkdtemp(prefix="ckbench-"))
        self.cgroup = self.path.name
        self.path.chmod(0o755)

    def __enter__(self) -> Area:
        try:
            self._check_reachable()
            self.rootfs = self._make_rootfs()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):  # a second Ctrl-C must not stop the cleaning
            signal.signal(number, signal.SIG_IGN)
        try:
            self.stack.close()
        finally:
            self._remove()

    def _check_reachable(self) -> None:
        for parent in self.path.parents:
            if not parent.stat().st_mode & 0o001:
                raise SystemExit(f"{parent} is closed to other users: set TMPDIR to a place that is not")

    def _make_rootfs(self) -> str:
        busybox = shutil.which("busybox")
        if busybox is None:
            raise SystemExit("busybox is not installed: the root file system needs it (busybox-static)")
        root = self.path / "root"
        for name in ROOT_DIRS:
            (root / name).mkdir(parents=True)
        shutil.copy(busybox, root / "bin" / "busybox")
        for applet in APPLETS:
            (root / "bin" / applet).symlink_to("busybox")
        for path in (root, *root.iterdir(), root / "bin" / "busybox"):
            path.chmod(0o755)
        return str(root)

    def _remove(self) -> None:
        self._end_cgroups()
        for point, _ in reversed(mount_points()):
            if point.startswith(f"{self.path}/"):
                subprocess.run(["umount", "-l", point], check=False)
        shutil.rmtree(self.path, ignore_errors=True)
        for path in ENGINE_DIRS:
            if path not in self.foreign:
                remove_empty_tree(path)

    def _end_cgroups(self) -> None:
        """Kill what an interrupted engine left in our groups, and remove them. A group is busy until its last
        process has gone, and a monitor that sees its container die may still start another."""
        hierarchies = (Path(point) for point, kind in mount_points() if kind in ("cgroup", "cgroup2"))
        tops = [path / self.cgroup for path in hierarchies]
        for _ in range(50):
            for top in tops:
                kill_members(top)
                remove_empty_tree(top)
            if not any(top.exists() for top in tops):
                return
            time.sleep(0.1)
