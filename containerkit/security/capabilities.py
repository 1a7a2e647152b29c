"""Capabilities by name."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import InvalidValue

__all__ = ["Capabilities"]

NAMES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)  # fmt: skip
"""In the kernel's order: the index is the number (linux/capability.h, Linux 6.18)."""


class Capabilities:
    """A set of capabilities (capabilities(7)): ``Capabilities("NET_BIND_SERVICE", "CAP_KILL")``. Immutable."""

    __slots__ = ("mask",)

    mask: int

    def __init__(self, *names: str) -> None:
        mask = 0
        for name in names:
            try:
                mask |= 1 << NAMES.index(name.upper().removeprefix("CAP_"))
            except ValueError:
                raise InvalidValue(
                    f"unknown capability {name!r}; they are named as in capabilities(7), with or without CAP_"
                ) from None
        object.__setattr__(self, "mask", mask)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("Capabilities is immutable; make another")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("Capabilities is immutable; make another")

    def __iter__(self) -> Iterator[str]:
        return (f"CAP_{name}" for number, name in enumerate(NAMES) if self.mask >> number & 1)

    def __contains__(self, name: str) -> bool:
        return bool(self.mask & Capabilities(name).mask)

    def __bool__(self) -> bool:
        return self.mask != 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Capabilities) and other.mask == self.mask

    def __hash__(self) -> int:
        return hash(self.mask)

    def __reduce__(self) -> tuple[object, ...]:
        return Capabilities, tuple(self)

    def __repr__(self) -> str:
        return f"Capabilities({', '.join(repr(name) for name in self)})"
