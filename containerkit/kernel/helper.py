"""ck-init as an executable that nobody can change: a sealed memory file, made once in a process."""

from __future__ import annotations

import errno
import fcntl
import os

from ..errors import Unsupported

_MFD_EXEC = 0x10
_F_SEAL_EXEC = 0x20
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE

# The descriptor and the inode behind it; replaced as one value, so that a reader never sees half of it.
_helper: tuple[int, int] | None = None
_successors: dict[tuple[int, int] | None, tuple[int, int]] = {}


def path() -> str:
    """Where the built helper lies in the package."""
    return os.path.join(os.path.dirname(os.path.dirname(__file__)), "_native", "ck-init")


def fd() -> int:
    """The descriptor to execute. It is this process's, for as long as it lives.

    A program started from it sees ``/memfd:ck-init`` as its executable: not the host's interpreter, and not writable by
    anybody (CVE-2019-5736). Where memory files may not be executed (``vm.memfd_noexec`` = 2, Linux 6.3) it is the
    installed file, opened read-only, which the kernel protects from writers while it runs.
    """
    global _helper
    known = _helper
    if known is None or not _is_still(*known):
        made = _sealed_copy()
        ours = (made, os.fstat(made).st_ino)
        # Threads may come here at once: the first one's copy is everybody's. A lock could be held in a forked copy.
        _helper = first = _successors.setdefault(known, ours)
        if first is not ours:
            os.close(made)
        known = first
    return known[0]


def _is_still(number: int, inode: int) -> bool:
    """Whether nobody closed our descriptor and got its number for another file (daemons close all they find)."""
    try:
        return os.fstat(number).st_ino == inode
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        return False


def _require_kernel() -> None:
    """Refuse a kernel older than our floor: never fall back to something weaker in silence."""
    release = os.uname().release
    major, minor = (int("".join(c for c in part if c.isdigit()) or 0) for part in release.split(".")[:2])
    if (major, minor) < (5, 14):
        raise Unsupported(
            f"Linux {release} is too old: containerkit needs 5.14 (mount_setattr, cgroup.kill, nosymfollow)"
        )


def _sealed_copy() -> int:
    _require_kernel()
    try:
        source = os.open(path(), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Unsupported(
            f"the helper program {path()!r} is missing: containerkit was not built; `pip install .` builds it"
        ) from None
    try:
        memory = _memfd()
    except PermissionError:
        return source
    try:
        image = os.read(source, 1 << 20)
        os.write(memory, image)
        try:
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS | _F_SEAL_EXEC)
        except OSError:  # F_SEAL_EXEC is Linux 6.3's
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(memory)
        raise
    finally:
        os.close(source)
    return memory


def _memfd() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("ck-init", flags | _MFD_EXEC)
    except PermissionError:
        raise
    except OSError:  # MFD_EXEC is Linux 6.3's
        return os.memfd_create("ck-init", flags)
