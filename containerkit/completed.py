"""What a finished run was: how it ended, why, what it said, and what it used."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, AnyStr, Generic, NamedTuple

if TYPE_CHECKING:
    from .cgroup.oom import Oom
    from .launch import Arg
    from .process import Record
    from .timeline import Timeline

__all__ = ["Completed", "Outcome", "Usage"]


class Outcome(StrEnum):
    """Why a run ended."""

    EXITED = "exited"  #: by itself; ``returncode`` says how
    SIGNALED = "signaled"  #: by a signal, not one of ours
    TIMEOUT = "timeout"  #: it took longer than ``timeout`` and was ended
    OOM = "oom"  #: the kernel killed in it because it met its limit of memory; ``Completed.oom`` says the rest
    CPU_LIMIT = "cpu_limit"  #: the tree used ``limits.cpu_seconds`` of processor time and was killed
    OUTPUT_LIMIT = "output_limit"  #: it wrote more than ``limits.output_max``; the middle was cut, or it was killed


class Usage(NamedTuple):
    """What the program and all its descendants used, also those that outlived their parents.

    With a control group of its own (``limits`` that need one) the figures of the kernel's controllers that it has:
    processor time, memory and i/o then count whatever was ever in it, PID 1 too. Otherwise those of getrusage(2).
    """

    wall_seconds: float
    cpu_seconds: float
    user_seconds: float
    system_seconds: float
    memory_peak: int
    """Bytes. With a limit of memory the most that all of it together had at one time, the page cache and the kernel's
    memory for it too; else as ``max_rss``."""
    minor_faults: int
    major_faults: int
    blocks_in: int
    blocks_out: int
    voluntary_switches: int
    involuntary_switches: int
    max_rss: int = 0
    """The largest resident set, in bytes, that one of the processes had (ru_maxrss, getrusage(2))."""
    io_read_bytes: int | None = None
    """Bytes read from block devices; None where no controller counts them."""
    io_write_bytes: int | None = None
    """Bytes that were written to block devices; on v1 without those that the page cache wrote later."""
    pids_peak: int | None = None
    """The most processes and threads at one time, PID 1 among them; None where no controller counts them."""


class Completed(Generic[AnyStr]):
    """The result of ``run()``, shaped like subprocess.CompletedProcess and saying more.

    Attributes:
        args: what was run.
        returncode: the exit status, or minus the number of the signal that killed it.
        stdout: what it wrote, text or bytes; None when it was not captured.
        stderr: likewise.
        outcome: an :class:`Outcome`.
        usage: a :class:`Usage`.
        stdout_cut: how many bytes are missing from the middle of stdout.
        stderr_cut: likewise.
        oom: a :class:`containerkit.cgroup.Oom` when the kernel killed because the run met its limit of memory: the
            limit, the peak, and the victims. None otherwise. A program that goes on without the victim and exits with
            status 0 has outcome ``exited``.
        forks_refused: how many processes or threads the kernel refused to make for a limit on pids; None where no
            control group counted.
    """

    __slots__ = (
        "_record", "args", "forks_refused", "oom", "outcome", "returncode", "stderr", "stderr_cut", "stdout",
        "stdout_cut", "usage",
    )  # fmt: skip

    def __init__(
        self,
        args: Sequence[Arg],
        returncode: int,
        stdout: AnyStr | None,
        stderr: AnyStr | None,
        outcome: Outcome,
        usage: Usage,
        record: Record,
        cut: tuple[int, int],
        oom: Oom | None = None,
        forks_refused: int | None = None,
    ) -> None:
        self.args, self.returncode = args, returncode
        self.stdout: AnyStr | None = stdout
        self.stderr: AnyStr | None = stderr
        self.outcome, self.usage, self._record = outcome, usage, record
        self.stdout_cut, self.stderr_cut = cut
        self.oom, self.forks_refused = oom, forks_refused

    @property
    def timeline(self) -> Timeline:
        """When each step of the start was done."""
        from .timeline import Timeline

        return Timeline(*self._record)

    def __reduce__(self) -> tuple[object, ...]:
        from .timeline import told

        ops, *rest = self._record
        record = (told(ops), *rest)
        cut = (self.stdout_cut, self.stderr_cut)
        ended: tuple[object, ...] = (self.args, self.returncode, self.stdout, self.stderr, self.outcome, self.usage)
        return type(self), (*ended, record, cut, self.oom, self.forks_refused)

    @property
    def ok(self) -> bool:
        """Whether it ended by itself with status 0."""
        return self.outcome is Outcome.EXITED and self.returncode == 0

    def check_returncode(self) -> None:
        """Raise ProcessFailed unless :attr:`ok`."""
        if not self.ok:
            from .errors import ProcessFailed

            raise ProcessFailed(self)

    def __repr__(self) -> str:
        parts: list[Any] = [
            f"args={list(self.args)!r}",
            f"returncode={self.returncode}",
            f"outcome={self.outcome.value!r}",
        ]
        if self.oom is not None:
            parts.append(f"oom='{self.oom}'")
        for name in ("stdout", "stderr"):
            value = getattr(self, name)
            if value:
                parts.append(f"{name}={value if len(value) <= 60 else value[:60]!r}{'...' if len(value) > 60 else ''}")
        return f"Completed({', '.join(parts)})"
