"""An ordinary user for tests that root has started: the account, and how to start this Python as that user.

The interpreter, its packages and the source tree may lie where only root can go (a home directory, a new
folder). They keep their paths all the same: the program starts in a mount namespace of its own, in which an
unreachable folder is covered by an empty one, and of what was in it only the needed parts are there again.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import shlex
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

NAME = "cktest"
ID_COUNT = 65536  # what one container with a full range of ids needs

# What may pass from root's environment to the user's.
PASSED_ON = (
    *("CI", "LANG", "LC_ALL", "PYTHONDEVMODE", "PYTHONWARNINGS", "ASAN_OPTIONS", "UBSAN_OPTIONS"),
    *("CK_TEST_PATIENCE", "PYTEST_TIMEOUT"),
)


def is_root() -> bool:
    return os.geteuid() == 0


# ---- the account -------------------------------------------------------------------------------------------


@cache
def account() -> pwd.struct_passwd:
    """The user, made if missing, with ranges of subordinate ids."""
    with open("/run/containerkit-tests.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # useradd does not wait for another useradd
        try:
            pwd.getpwnam(NAME)
        except KeyError:
            subprocess.run(["useradd", "--create-home", "--shell", "/bin/sh", NAME], check=True)
        for table, option in (("/etc/subuid", "--add-subuids"), ("/etc/subgid", "--add-subgids")):
            first = _free_range(Path(table))
            if first is not None:
                subprocess.run(["usermod", option, f"{first}-{first + ID_COUNT - 1}", NAME], check=True)
    return pwd.getpwnam(NAME)


def _free_range(table: Path) -> int | None:
    """The first id above all ranges given out; None if our user already has one."""
    rows = [line.split(":") for line in table.read_text().splitlines()] if table.exists() else []
    if any(owner == NAME for owner, _, _ in rows):
        return None
    return max([100_000, *(int(first) + int(count) for _, first, count in rows)])


# ---- what the user can reach -------------------------------------------------------------------------------


def _may_enter(directory: Path, user: pwd.struct_passwd) -> bool:
    """Whether the user may list and pass through the directory, by its mode."""
    status = directory.stat()
    if status.st_uid == user.pw_uid:
        needed = stat.S_IRUSR | stat.S_IXUSR
    elif status.st_gid == user.pw_gid:
        needed = stat.S_IRGRP | stat.S_IXGRP
    else:
        needed = stat.S_IROTH | stat.S_IXOTH
    return status.st_mode & needed == needed


def _without_nested(paths: Iterable[Path]) -> list[Path]:
    outer: list[Path] = []
    for path in sorted(set(paths)):
        if not any(path.is_relative_to(known) for known in outer):
            outer.append(path)
    return outer


def _needed(tree: Path) -> list[Path]:
    """The folders without which this Python does not start or finds no test."""
    named = [tree, *map(Path, [sys.prefix, sys.base_prefix, sys.base_exec_prefix, *sys.path])]
    return _without_nested(p for name in named if name.is_dir() for p in (name.absolute(), name.resolve()))


def _closed_ancestor(path: Path, user: pwd.struct_passwd) -> Path | None:
    return next((p for p in [*reversed(path.parents), path] if not _may_enter(p, user)), None)


@cache
def _revealing_script(tree: Path, stage: Path) -> str:
    """Shell commands for a new mount namespace that make what the user needs reachable; may be empty."""
    user = account()
    covered: dict[Path, list[Path]] = {}
    for path in _needed(tree):
        closed = _closed_ancestor(path, user)
        if closed is not None:
            # A folder that is closed itself is filled again piece by piece.
            covered.setdefault(closed, []).extend(path.iterdir() if path == closed else [path])
    saved, restored = [], []
    for number, path in enumerate(path for paths in covered.values() for path in paths):
        place = stage / str(number)
        make = "mkdir -p" if path.is_dir() else "touch"
        quoted, at = shlex.quote(str(path)), shlex.quote(str(place))
        place.mkdir(parents=True) if path.is_dir() else place.touch()
        saved.append(f"mount --rbind {quoted} {at}")
        restored.append(f"{make} {quoted}; mount --move {at} {quoted}")
    cover = [f"mount -t tmpfs -o mode=755 tmpfs {shlex.quote(str(path))}" for path in covered]
    return "\n".join(["umask 022", *saved, *cover, *restored]) if covered else ""


# ---- starting a program as the user ------------------------------------------------------------------------


def command(argv: Sequence[str], *, tree: Path, stage: Path) -> list[str]:
    """The command that runs ``argv`` as the user, unprivileged. ``stage`` is a folder for mount points."""
    as_user = [
        "setpriv",
        f"--reuid={NAME}",
        f"--regid={NAME}",
        "--init-groups",
        "--inh-caps=-all",
        "--",
        *argv,
    ]
    script = _revealing_script(tree, stage)
    if not script:
        return as_user
    private = [
        "unshare",
        "--mount",
        "--propagation",
        "slave",
        "--",
        "sh",
        "-ec",
        f'{script}\nexec "$@"',
        "sh",
    ]
    return [*private, *as_user]


def environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a login would set, with every folder for files below ``home``."""
    passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return passed | {
        "HOME": str(home),
        "USER": NAME,
        "LOGNAME": NAME,
        "SHELL": "/bin/sh",
        "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "TMPDIR": str(home / "tmp"),
        "XDG_RUNTIME_DIR": str(home / "run"),
        "HYPOTHESIS_STORAGE_DIRECTORY": str(home / "hypothesis"),
        "PYTHONDONTWRITEBYTECODE": "1",
        **(extra or {}),
    }


def make_home(home: Path) -> None:
    """A home directory with the folders that ``environment`` names, all the user's."""
    user = account()
    for directory in (home, home / "tmp", home / "run"):
        directory.mkdir(mode=0o700)
        os.chown(directory, user.pw_uid, user.pw_gid)


def run(argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
    """Like subprocess.run, with both outputs as one text; after the timeout the whole session is killed."""
    # A file and not a pipe: something left behind that holds a pipe open would make us wait for it.
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            argv,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(timeout)
            note = ""
        except subprocess.TimeoutExpired:
            note = f"killed after {timeout:.0f} seconds\n"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        return subprocess.CompletedProcess(argv, process.returncode, output.read() + note)
