"""What can go wrong, as types.

::

    ContainerkitError
    ├── InvalidValue (ValueError)              a value that no kernel call could accept; nothing was tried
    │   └── InvalidLayer                       an archive that is hostile, broken or beyond a limit; ``entry``
    ├── Unsupported                            this kernel, or this user, cannot do it; says what would
    │   └── CgroupUnavailable                  a limit or a control group cannot be had here; ``reason`` says why
    ├── ClosedHandle (ValueError)              a handle was used after close()
    ├── SyscallError (OSError)                 the kernel refused; ``syscall``, ``errno``, ``filename``, ``hint``
    │   ├── NotPermitted (PermissionError)
    │   ├── NotFound (FileNotFoundError)
    │   ├── Exists (FileExistsError)
    │   └── Busy
    ├── SpawnError (OSError)                   a process did not start; ``step``, ``errno``, ``path``, ``hint``
    │   ├── ProgramNotFound (FileNotFoundError)
    │   └── ProgramNotExecutable (PermissionError)
    ├── CallGone                               a supervised system call no longer waits for its answer
    ├── BadAddress                             a supervised program passed a pointer to nowhere
    ├── ContainerNotFound (LookupError)        the store has no container of that name or id
    ├── VolumeNotFound (LookupError)           the store has no volume of that name
    ├── NameTaken                              another container or volume has that name
    ├── WrongState                             a container runs, or does not, where the other is needed
    ├── MonitorLost                            the monitor of a container ended, or does not answer
    ├── ImageNotFound (LookupError)            nothing of that name is in the store, archive or registry
    ├── ContentMismatch                        content has another size or digest than its descriptor says
    ├── InUse                                  something still needs what was to be removed
    ├── StoreError                             the store is damaged, or is none
    ├── TreeProcessLost                        the process that works on trees of strangers ended, or needed too much
    ├── RegistryError                          a registry refused or is out of reach; ``url``, ``status``, ``code``
    │   └── AuthenticationFailed
    ├── StatusLost (ChildProcessError)         someone else reaped a process before we could
    ├── TimeoutExpired (subprocess.TimeoutExpired, TimeoutError)
    └── ProcessFailed (subprocess.CalledProcessError)

Subclasses of OSError keep its contract: ``errno``, ``strerror`` and ``filename`` are set and the builtin subclass for
the errno is a base class, so ``except PermissionError`` works. All of them pickle.
"""

from __future__ import annotations

import errno as _errno
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._call_errors import BadAddress, CallGone
    from ._container_errors import ContainerNotFound, MonitorLost, NameTaken, VolumeNotFound, WrongState
    from ._image_errors import (
        AuthenticationFailed,
        ContentMismatch,
        ImageNotFound,
        InUse,
        InvalidLayer,
        RegistryError,
        StoreError,
        TreeProcessLost,
    )
    from ._outcome_errors import ProcessFailed, TimeoutExpired

__all__ = [
    "AuthenticationFailed",
    "BadAddress",
    "Busy",
    "CallGone",
    "CgroupUnavailable",
    "ClosedHandle",
    "ContainerNotFound",
    "ContainerkitError",
    "ContentMismatch",
    "Exists",
    "ImageNotFound",
    "InUse",
    "InvalidLayer",
    "InvalidValue",
    "MonitorLost",
    "NameTaken",
    "NotFound",
    "NotPermitted",
    "ProcessFailed",
    "ProgramNotExecutable",
    "ProgramNotFound",
    "RegistryError",
    "SpawnError",
    "StatusLost",
    "StoreError",
    "SyscallError",
    "TimeoutExpired",
    "TreeProcessLost",
    "Unsupported",
    "VolumeNotFound",
    "WrongState",
]


_IMAGES = frozenset(
    {
        "AuthenticationFailed", "ContentMismatch", "ImageNotFound", "InUse", "InvalidLayer", "RegistryError",
        "StoreError", "TreeProcessLost",
    }
)  # fmt: skip
_CONTAINERS = frozenset({"ContainerNotFound", "MonitorLost", "NameTaken", "VolumeNotFound", "WrongState"})


def __getattr__(name: str) -> Any:
    # These two derive from subprocess's exceptions, and importing subprocess costs more than the rest of the package:
    # it is paid by those who name them or meet them.
    if name in ("TimeoutExpired", "ProcessFailed"):
        from . import _outcome_errors

        return getattr(_outcome_errors, name)
    if name in ("BadAddress", "CallGone"):
        from . import _call_errors

        return getattr(_call_errors, name)
    if name in _CONTAINERS:
        from . import _container_errors

        return getattr(_container_errors, name)
    if name in _IMAGES:
        from . import _image_errors

        return getattr(_image_errors, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class ContainerkitError(Exception):
    """The root of everything that this library raises on purpose."""


class InvalidValue(ContainerkitError, ValueError):
    """An argument that cannot work, found before anything was tried."""


class Unsupported(ContainerkitError):
    """Something was asked for that this kernel or this user cannot provide. Nothing weaker is done instead."""


class CgroupUnavailable(Unsupported):
    """A control group, or a limit that only one can keep, is not to be had on this machine or for this user.

    Attributes:
        reason: "not mounted", "read-only", "outside" (of what is mounted), "controller" (the machine has it not, or
            did not hand it down), "limit" (the controller has no such limit), "not delegated" (to this user),
            "busy" (the cgroup has processes of its own, and v2 then gives its children no controllers), or "manager"
            (systemd did not give one, or could not be asked).
    """

    reason: str

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.reason)


class ClosedHandle(ContainerkitError, ValueError):
    """A handle was used after it was closed."""


class StatusLost(ContainerkitError, ChildProcessError):
    """The host program reaped a process that containerkit waits for, and the kernel is too old to tell its status."""


class _KernelError(ContainerkitError, OSError):
    """What SyscallError and SpawnError share: the fields, the text, and pickling by fields."""

    def __init__(self, fields: dict[str, Any]) -> None:
        number = fields.get("errno", 0)
        super().__init__(number, os.strerror(number))
        self.__dict__.update(fields)
        path = fields.get("path")
        if path is not None:
            self.filename = path

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ({**self.__dict__, "errno": self.errno},)


class SyscallError(_KernelError):
    """The kernel refused a call.

    Attributes:
        syscall: its name, as in section 2 of the manual.
        errno: the answer.
        strerror: the answer in words.
        filename: the object it was about, if it has a name.
        hint: what to do about it, or None.
    """

    syscall: str
    hint: str | None

    def __str__(self) -> str:
        about = f" {self.filename!r}" if self.filename is not None else ""
        text = f"{self.syscall}{about}: {self.strerror} ({_errno.errorcode.get(self.errno or 0, self.errno)})"
        return f"{text}\n  {self.hint}" if self.hint else text


class NotPermitted(SyscallError, PermissionError):
    """EPERM or EACCES."""


class NotFound(SyscallError, FileNotFoundError):
    """ENOENT."""


class Exists(SyscallError, FileExistsError):
    """EEXIST."""


class Busy(SyscallError):
    """EBUSY: somebody still uses it."""


class SpawnError(_KernelError):
    """A process did not start. Nothing of it is left behind.

    Attributes:
        step: what was being done, in words (the line of :meth:`Process.explain` that failed).
        syscall: the system call that failed, or None.
        errno: the kernel's answer.
        strerror: the answer in words.
        path: the file, directory or mount point it was about, or None.
        hint: what to do about it, or None.
    """

    step: str
    syscall: str | None
    path: str | bytes | None
    hint: str | None

    def __str__(self) -> str:
        call = f"{self.syscall}: " if self.syscall else ""
        name = _errno.errorcode.get(self.errno or 0, self.errno)
        text = f"could not {self.step}: {call}{self.strerror} ({name})"
        return f"{text}\n  {self.hint}" if self.hint else text


class ProgramNotFound(SpawnError, FileNotFoundError):
    """The program, or the interpreter that it names, does not exist inside the root."""


class ProgramNotExecutable(SpawnError, PermissionError):
    """The program exists inside the root, but may not be executed."""


_BY_ERRNO: dict[int, type[SyscallError]] = {
    _errno.EPERM: NotPermitted,
    _errno.EACCES: NotPermitted,
    _errno.ENOENT: NotFound,
    _errno.EEXIST: Exists,
    _errno.EBUSY: Busy,
}


def syscall_error(number: int, syscall: str, path: object = None, hint: str | None = None) -> SyscallError:
    """The exception for a kernel answer: the subclass follows the errno, as OSError's own does."""
    name = os.fspath(path) if isinstance(path, os.PathLike) else path
    return _BY_ERRNO.get(number, SyscallError)({"errno": number, "syscall": syscall, "path": name, "hint": hint})
