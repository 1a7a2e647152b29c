"""What a finished run was: how it ended, why, what it said, and what it used."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, AnyStr, Generic, NamedTuple

if TYPE_CHECKING:
    from .launch import Arg
    from .process import Record
    from .timeline import Timeline

__all__ = ["Completed", "Outcome", "Usage"]


class Outcome(StrEnum):
    """Why a run ended."""

    EXITED = "exited"  #: by itself; ``returncode`` says how
    SIGNALED = "signaled"  #: by a signal, not one of ours
    TIMEOUT = "timeout"  #: it took longer than ``timeout`` and was ended
    CPU_LIMIT = "cpu_limit"  #: the tree used ``limits.cpu_seconds`` of processor time and was killed
    OUTPUT_LIMIT = "output_limit"  #: it wrote more than ``limits.output_max``; the middle was cut, or it was killed


class Usage(NamedTuple):
    """What the program and all its descendants used, also those that outlived their parents."""

    wall_seconds: float
    cpu_seconds: float
    user_seconds: float
    system_seconds: float
    memory_peak: int
    """The largest resident set, in bytes, that one of the processes had (ru_maxrss, getrusage(2))."""
    minor_faults: int
    major_faults: int
    blocks_in: int
    blocks_out: int
    voluntary_switches: int
    involuntary_switches: int


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
    """

    __slots__ = ("_record", "args", "outcome", "returncode", "stderr", "stderr_cut", "stdout", "stdout_cut", "usage")

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
    ) -> None:
        self.args, self.returncode = args, returncode
        self.stdout: AnyStr | None = stdout
        self.stderr: AnyStr | None = stderr
        self.outcome, self.usage, self._record = outcome, usage, record
        self.stdout_cut, self.stderr_cut = cut

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
        return type(self), (*ended, record, cut)

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
        for name in ("stdout", "stderr"):
            value = getattr(self, name)
            if value:
                parts.append(f"{name}={value if len(value) <= 60 else value[:60]!r}{'...' if len(value) > 60 else ''}")
        return f"Completed({', '.join(parts)})"
