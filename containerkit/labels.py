"""AppArmor and SELinux labels: what a program's exec changes its label to.

They are written by the program's own process through the caller's /proc, which is held since before the start: no file
of the container's can stand in for it (CVE-2019-16884, CVE-2025-52881).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .errors import Unsupported
from .kernel import calls
from .plan import Code, Op, Plan, Stage

if TYPE_CHECKING:
    from .security import Security

__all__ = ["compile_labels"]


def compile_labels(plan: Plan, security: Security) -> None:
    """Add the steps. Raises Unsupported when the kernel has no such module."""
    apparmor, selinux = security.apparmor, security.selinux
    if apparmor is not None:
        if not os.path.exists("/proc/self/attr/apparmor/exec"):  # Linux 5.8
            raise Unsupported(f"apparmor={apparmor!r}: AppArmor is not active in this kernel (its lsm= parameter)")
        plan.add(_label_op(plan, "AppArmor profile", apparmor, b"apparmor/exec", b"exec " + apparmor.encode()))
    if selinux is not None:
        if not os.path.exists("/sys/fs/selinux/enforce"):
            raise Unsupported(f"selinux={selinux!r}: SELinux is not active in this kernel (its lsm= parameter)")
        plan.add(_label_op(plan, "SELinux context", selinux, b"exec", selinux.encode()))


def _label_op(plan: Plan, what: str, name: str, file: bytes, value: bytes) -> Op:
    fd = open_proc()
    plan.owned.append(fd)
    words = f"take the {what} {name} at exec"
    return Op(Code.SETTING, Stage.PROGRAM, words, b"thread-self/attr/" + file, value, fd=plan.fd(fd), b=1)


def open_proc() -> int:
    """The caller's /proc: the file system itself, not something that lies there under its name."""
    fd = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if calls.fs_magic(fd) != 0x9FA0 or os.fstat(fd).st_ino != 1:
        os.close(fd)
        raise Unsupported("/proc is not the root of a proc file system here: labels cannot be set")
    return fd
