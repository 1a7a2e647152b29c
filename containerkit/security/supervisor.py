"""System calls that a Python function answers: the supervisor's side of seccomp user notification (seccomp_unotify(2)).

A policy hands calls out with :meth:`Seccomp.notify`. Such a call waits in the kernel; its number, its arguments and the
thread that made it come out of a *listener*, a descriptor that ck-init sent to us when it had loaded the filter. A
:class:`Supervisor` reads them, one :class:`Call` each, and sends an :class:`Answer` back.

What an answer is worth
-----------------------
A call's number and arguments are what the kernel saw: they do not change any more. What they *point to* does: another
thread of the program can write to that memory while we look at it. So

* what :meth:`Call.read` returned is true of a moment that is over. ``Answer.allow()`` lets the kernel read the memory
  again, and it may read something else. Never allow because of what a pointer pointed to.
* The way that holds is to act on the copy: read once, decide, do it ourselves on a descriptor taken from the program
  (:meth:`Call.descriptor`), and answer with the result. A descriptor's number, too, may be made to mean another file
  meanwhile, so what is looked at must be the copy that is then used.
* A process id in a call may be reused once the process has ended. Everything here that looks a process up asks the
  kernel afterwards whether the call still waits, for then it cannot have ended.
"""

from __future__ import annotations

import errno as _errno
import os
import sys
import traceback
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import BadAddress, CallGone, InvalidValue, SyscallError, syscall_error
from ..kernel import unotify
from . import syscalls

if TYPE_CHECKING:
    from .supervision import Supervision

__all__ = ["Answer", "Call", "Supervisor"]

_AUDIT_ARCH = {0xC000003E: "x86_64", 0xC00000B7: "aarch64", 0x40000003: "i386"}
_CONTINUE = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
_PAGE = 4096


class Answer:
    """What becomes of a supervised call; made by one of its four methods."""

    __slots__ = ("_cloexec", "_error", "_file", "_flags", "_number", "_value")

    def __init__(self, value: int = 0, error: int = 0, flags: int = 0, file: Any = None) -> None:
        self._value, self._error, self._flags, self._file = value, error, flags, file
        self._number: int | None = None
        self._cloexec = True

    @classmethod
    def allow(cls) -> Answer:
        """The kernel makes the call, as if nobody had asked. It reads the memory behind pointers again: see above."""
        return cls(flags=_CONTINUE)

    @classmethod
    def deny(cls, error: int | str = _errno.EPERM) -> Answer:
        """The call is not made and fails with this error, by name or number."""
        number = getattr(_errno, error, None) if isinstance(error, str) else error
        if not isinstance(number, int) or not 0 < number < 4096:
            raise InvalidValue(f"errno {error!r} must be a name as in errno(3), or a number from 1 to 4095")
        return cls(error=number)

    @classmethod
    def value(cls, number: int) -> Answer:
        """The call is not made and returns this: we have done what it was for, or say so."""
        if not -(1 << 63) <= number < 1 << 63:
            raise InvalidValue(f"{number} is more than a system call can return")
        return cls(value=number)

    @classmethod
    def descriptor(cls, file: Any, *, number: int | None = None, cloexec: bool = True) -> Answer:
        """The call is not made; the program gets a copy of this descriptor, and the call returns its number there.

        ``file`` is a number, or has ``fileno()`` and ``close()``. It is given away: closed when the answer was sent.
        ``number`` is which one it becomes there, replacing what had it; any free one otherwise.
        """
        answer = cls(file=file)
        answer._number, answer._cloexec = number, cloexec
        return answer

    def _send(self, listener: int, call: int) -> None:
        if self._file is None:
            unotify.send(listener, call, self._value, self._error, self._flags)
            return
        fd = self._file if isinstance(self._file, int) else self._file.fileno()
        unotify.add_fd(listener, call, fd, target=self._number, cloexec=self._cloexec, answer=True)

    def _close(self) -> None:
        file, self._file = self._file, None
        if isinstance(file, int):
            os.close(file)
        elif file is not None:
            file.close()

    def __repr__(self) -> str:
        if self._file is not None:
            return f"Answer.descriptor({self._file!r})"
        if self._flags:
            return "Answer.allow()"
        return f"Answer.deny({_errno.errorcode.get(self._error)!r})" if self._error else f"Answer.value({self._value})"


class Call:
    """A system call that waits for its answer.

    Attributes:
        name: as in syscalls(2), or its number as text if this library does not know it.
        number: its number.
        architecture: "x86_64", "aarch64", or "i386" for a 32-bit call, which has its own numbers.
        args: six integers, as the registers had them.
        pid: the thread that made it, as this process sees it; 0 if it cannot see it.
    """

    __slots__ = ("_id", "_listener", "_memory_fd", "architecture", "args", "name", "number", "pid")

    def __init__(self, listener: int, notification: unotify.Notification) -> None:
        self._listener = listener
        self._id, self.pid, self.number, architecture, self.args = notification
        self.architecture = _AUDIT_ARCH.get(architecture, f"{architecture:#x}")
        self.name = _name(self.architecture, self.number)
        self._memory_fd = -1

    def check(self) -> None:
        """Raises CallGone unless it still waits: then ``pid`` still means the process that made it."""
        if not unotify.is_waiting(self._listener, self._id):
            raise CallGone(f"{self!r} no longer waits: a signal interrupted it, or its process has ended")

    def read(self, address: int, size: int) -> bytes:
        """Memory of the program, which it may change at any moment: see :class:`Supervisor`.

        Raises BadAddress if it has no such memory, CallGone. Needs the right to trace the program (ptrace(2)): what
        root, and an ordinary user for a program in its own user namespace, have. They have it from the program's exec
        on: for a user the start itself is out of reach.
        """
        found = self._read_some(address, size)
        if len(found) < size:
            raise BadAddress(f"{self!r}: no {size} bytes of memory at {address:#x}")
        return found

    def read_string(self, address: int, limit: int = _PAGE) -> bytes:
        """Text up to its NUL, which is not returned: a path, for instance. Raises as :meth:`read` does."""
        found = b""
        while len(found) < limit:
            at = address + len(found)
            piece = self._read_some(at, min(limit - len(found), _PAGE - at % _PAGE))
            text, nul, _ = piece.partition(b"\0")
            found += text
            if nul:
                return found
            if not piece:
                break
        raise BadAddress(f"{self!r}: no text of less than {limit} bytes at {address:#x}")

    def write(self, address: int, content: bytes) -> None:
        """Write to the program's memory: a result of the call. Raises as :meth:`read` does."""
        memory = self._memory()
        try:
            written = os.pwrite(memory, content, address) if 0 <= address < 1 << 63 else 0
        except OSError:
            written = 0
        if written < len(content):
            raise BadAddress(f"{self!r}: no {len(content)} bytes of writable memory at {address:#x}")
        self.check()

    def descriptor(self, number: int) -> int:
        """A copy of one of the program's descriptors; the caller's to close.

        Raises CallGone, or a SyscallError with EBADF if it has no such descriptor. Needs the right to trace the
        program.
        """
        process = self._open_process()
        try:
            self.check()
            return unotify.getfd(process, number & 0xFFFFFFFF if number < 1 << 31 else -1)
        finally:
            os.close(process)

    def install(self, fd: int, *, number: int | None = None, cloexec: bool = True) -> int:
        """Give the program a copy of a descriptor of ours, before the answer; its number there. Raises CallGone."""
        return unotify.add_fd(self._listener, self._id, fd, target=number, cloexec=cloexec, answer=False)

    def _read_some(self, address: int, size: int) -> bytes:
        memory = self._memory()
        try:
            found = os.pread(memory, size, address) if 0 <= address < 1 << 63 else b""
        except OSError:  # EIO: nothing there
            found = b""
        self.check()
        return found

    def _memory(self) -> int:
        if self._memory_fd < 0:
            try:
                self._memory_fd = os.open(f"/proc/{self.pid}/mem", os.O_RDWR | os.O_CLOEXEC)
            except OSError as error:
                self.check()
                raise _untraceable(error, f"/proc/{self.pid}/mem") from None
            self.check()
        return self._memory_fd

    def _open_process(self) -> int:
        """A pidfd means a whole process, whose threads have the same descriptors."""
        try:
            with open(f"/proc/{self.pid}/status", "rb") as status:
                leader = next(int(line.split()[1]) for line in status if line.startswith(b"Tgid:"))
            return os.pidfd_open(leader)
        except (OSError, StopIteration) as error:
            self.check()
            raise _untraceable(error, f"/proc/{self.pid}/status") from None

    def _close(self) -> None:
        if self._memory_fd >= 0:
            os.close(self._memory_fd)
            self._memory_fd = -1

    def __repr__(self) -> str:
        return f"<{self.name}({', '.join(hex(arg) for arg in self.args)}) of {self.pid}>"


def _untraceable(error: Exception, path: str) -> SyscallError:
    number = error.errno if isinstance(error, OSError) else None
    return syscall_error(
        number or _errno.ESRCH, "open", path, "to look into the program takes the right to trace it (ptrace(2))"
    )


_names: dict[str, dict[int, str]] = {}


def _name(architecture: str, number: int) -> str:
    known = _names.get(architecture)
    if known is None:
        try:
            known = {number: name for name, number in syscalls.numbers(architecture).items()}
        except KeyError:
            known = {}
        _names[architecture] = known
    return known.get(number, str(number))


class Supervisor:
    """Decides about the system calls that a policy hands out: subclass it, and write :meth:`handle`.

    ::

        class NoKill(ck.Supervisor):
            def handle(self, call):
                print("somebody wants to send signal", call.args[1])
                return ck.Answer.deny("EPERM")

        policy = ck.Seccomp.strict().notify("kill")
        ck.run(["sh", "-c", "kill 1"], security=ck.Security(seccomp=policy, ...), supervisor=NoKill())

    ``handle`` runs in a thread of its own for each program that is started with this object. ``async def handle`` runs
    in the event loop, for programs started with :mod:`containerkit.aio`. It ends with the program, when nothing is left
    that the filter binds, or when the program's handle is closed, which waits for a handler that is under way.

    A handler that raises denies: BadAddress is answered with EFAULT, anything else goes to :meth:`failed` and is
    answered with EPERM. When the supervisor is gone, the calls fail with ENOSYS.

    What an answer is worth, and what it is not, stands at the head of containerkit/security/supervisor.py: do not allow
    because of what a pointer pointed to.
    """

    threads: ClassVar[int] = 1
    """How many calls of one program may be handled at the same time. With more than one, ``handle`` must be able to."""

    def handle(self, call: Call) -> Answer | Awaitable[Answer]:
        """The answer to a call. Denied, unless a subclass says otherwise."""
        return Answer.deny()

    def failed(self, call: Call, error: BaseException) -> None:
        """``handle`` raised, and the call is denied: prints the traceback. For a subclass to change."""
        print(f"supervisor: {call!r} is denied, because its handler raised:", file=sys.stderr)
        traceback.print_exception(error)

    def _supervise(self) -> Supervision:
        from .supervision import Supervision

        return Supervision(self)
