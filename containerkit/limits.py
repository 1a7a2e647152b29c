"""How much a program may use."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .errors import InvalidValue
from .units import optional_size
from .value import Value, field, frozen

if TYPE_CHECKING:
    from attrs import Attribute

__all__ = ["Limits"]


def _positive(instance: object, attribute: Attribute[Any], value: object) -> None:
    if value is not None and not (isinstance(value, (int, float)) and value > 0):
        raise InvalidValue(f"{attribute.name}={value!r} must be more than 0, or None for no limit")


@frozen(kw_only=True)
class Limits(Value):
    """Bounds that hold with or without cgroups; each has a default that an ordinary program does not meet.

    Attributes:
        pids_max: processes and threads at one time (RLIMIT_NPROC, counted for the user in the sandbox's own user
            namespace; Linux 5.14). PID 1 counts as one.
        cpu_seconds: processor time of the whole tree, orphans included; PID 1 watches it and kills everything.
        output_max: bytes kept of each of stdout and stderr: the first and the last half. Eight times as much kills it.
        nofile: open descriptors of a process (RLIMIT_NOFILE), at most the caller's own limit.
        file_size_max: bytes of one file (RLIMIT_FSIZE).
    """

    pids_max: int | None = field(default=512, validator=_positive)
    cpu_seconds: float | None = field(default=None, validator=_positive)
    output_max: int | None = field(default=16 << 20, converter=optional_size)
    nofile: int | None = field(default=1024, validator=_positive)
    file_size_max: int | None = field(default=None, converter=optional_size)

    def rlimits(self) -> dict[str, int | tuple[int, int]]:
        """As resource limits of the program. No core is ever written.

        The limit of one byte is too small for a core file, and it is what the kernel takes as "do not start the host's
        crash handler either", which a limit of zero does not (core(5); do_coredump() in fs/coredump.c).
        """
        limits: dict[str, int | tuple[int, int]] = {"core": 1}
        if self.pids_max is not None:
            limits["nproc"] = self.pids_max
        if self.nofile is not None:
            limits["nofile"] = min(self.nofile, os.sysconf("SC_OPEN_MAX"))
        if self.file_size_max is not None:
            limits["fsize"] = self.file_size_max
        return limits
