"""Which device nodes the processes of a cgroup may use: v1's files, and on v2 a program that we assemble.

The kernel asks at every open and mknod of a device node (devcgroup_check_permission() in linux/device_cgroup.h). v1 has
a list for each group. v2 has no files for it: it runs the programs that are attached to the group and to all above it,
and each of them must say yes (BPF_PROG_TYPE_CGROUP_DEVICE, Linux 4.15). Ours is a chain of comparisons, one link for
each rule, in the few instructions of eBPF below (Documentation/bpf/standardization/instruction-set.rst).

In both, devices that were opened before stay open: limits are set before a program starts.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from ..device import Device, allow_list, parse
from ..errors import NotFound, NotPermitted, syscall_error
from ..kernel import bpf
from ..kernel.fd import Fd

if TYPE_CHECKING:
    from .directory import Directory

__all__ = ["assemble", "lift", "restrict"]

NAME = b"ck_devices"
"""Of our programs, so that a later list replaces ours and not the one of a service manager."""

_MKNOD, _READ, _WRITE = 1, 2, 4  # linux/bpf.h: BPF_DEVCG_ACC_*
_KINDS = {"b": 1, "c": 2}  # BPF_DEVCG_DEV_*
_ALL = _MKNOD | _READ | _WRITE

# struct bpf_cgroup_dev_ctx: the upper half of the first word is the access, the lower the kind.
_ACCESS_AND_KIND, _MAJOR, _MINOR = 0, 4, 8

# Opcodes; those of 32 bits clear the upper half of the register.
_LOAD_WORD = 0x61  # dst = *(u32 *)(src + offset)
_SET, _COPY, _AND, _SHIFT_RIGHT = 0xB4, 0xBC, 0x54, 0x74  # 32 bits; _COPY from a register, the others with a number
_IF_NOT_EQUAL, _EXIT = 0x55, 0x95


def restrict(directory: Directory, devices: Sequence[Device]) -> None:
    """Let the processes of a cgroup use these device nodes and no others. What ``allow_list`` returned goes in.

    It may be called again, with another list, while processes run: what both lists allow is allowed throughout. (Only
    the first list of a v1 group begins with a moment in which nothing is.) In v1 the directory is one of the hierarchy
    of the controller ``devices``; in v2 it is any cgroup.

    Raises:
        NotPermitted: by v1 without CAP_SYS_ADMIN, or for a device that the group above may not use itself; by v2
            without CAP_BPF and CAP_NET_ADMIN (or CAP_SYS_ADMIN) in the first user namespace.
    """
    if directory.version == 2:
        _attach(directory.fileno(), assemble(devices))
    else:
        _write(directory, devices)


def lift(directory: Directory) -> None:
    """Take the list away again: what the groups above may use, this one may.

    On v1 it then has the list of the group above, as that is now. Raises NotPermitted as :func:`restrict` does.
    """
    if directory.version == 2:
        _detach(directory.fileno())
        return
    with open("../devices.list", opener=partial(os.open, dir_fd=directory.fileno())) as file:
        lines = file.read().splitlines()
    _write(directory, allow_list(lines))


# ---- v1 --------------------------------------------------------------------------------------------------------------


def _write(directory: Directory, devices: Sequence[Device]) -> None:
    for file, rule in changes(directory.read("devices.list"), devices):
        try:
            directory.write(file, rule)
        except NotPermitted as error:
            hint = (
                f"{rule!r}: it needs CAP_SYS_ADMIN, and the cgroup above must be allowed the same (devices.list there)"
            )
            raise syscall_error(error.errno or 0, error.syscall, error.filename, hint) from None


def changes(listing: str, devices: Sequence[Device]) -> Iterator[tuple[str, str]]:
    """(file, rule) to write, in order, so that ``devices.list`` becomes these devices.

    A group that was never restricted says "a *:* rwm". To deny all is refused to a group with children, but then only a
    group that is not restricted needs it: from then on single rules come and go.
    """
    lines = listing.splitlines()
    had = [device for line in lines if not line.startswith("a") for device in parse(line)]
    if any(line.startswith("a") for line in lines):
        yield "devices.deny", "a"
    wanted = {device.node: device for device in devices}
    for device in devices:
        yield "devices.allow", str(device)
    for device in had:
        kept = wanted[device.node].access if device.node in wanted else ""
        lost = "".join(letter for letter in device.access if letter not in kept)
        if lost:
            yield "devices.deny", str(Device(*device.node, lost))


# ---- v2 --------------------------------------------------------------------------------------------------------------


def _attach(cgroup: int, code: bytes) -> None:
    """The program lives for as long as the cgroup does."""
    with Fd(bpf.load_device_program(code, NAME)) as program:
        ours = _our_program(cgroup)
        if ours is None:
            bpf.attach_device_program(cgroup, program.fileno())
        else:
            with ours:
                bpf.attach_device_program(cgroup, program.fileno(), instead_of=ours.fileno())


def _detach(cgroup: int) -> None:
    ours = _our_program(cgroup)
    if ours is not None:
        with ours:
            bpf.detach_device_program(cgroup, ours.fileno())


def _our_program(cgroup: int) -> Fd | None:
    """The program that an earlier call has attached."""
    for number in bpf.device_programs(cgroup):
        with suppress(NotFound), Fd(bpf.open_program(number)) as program:  # somebody else's may go at any time
            if bpf.program_name(program.fileno()) == NAME:
                return Fd(program.detach())
    return None


def assemble(devices: Sequence[Device]) -> bytes:
    """The program that answers 1, "allowed", to what one of the devices allows as a whole, and 0 to everything else."""
    start = [
        _line(_LOAD_WORD, 2, source=1, offset=_ACCESS_AND_KIND),
        _line(_COPY, 3, source=2),
        _line(_AND, 2, number=0xFFFF),
        _line(_SHIFT_RIGHT, 3, number=16),
        _line(_LOAD_WORD, 4, source=1, offset=_MAJOR),
        _line(_LOAD_WORD, 5, source=1, offset=_MINOR),
    ]
    rules = [line for device in devices for line in _rule(device)]
    return b"".join([*start, *rules, *_answer(0)])


def _rule(device: Device) -> list[bytes]:
    """Answer 1, or fall through. Registers: 2 the kind, 3 the access, 4 and 5 the numbers, 1 is free."""
    # Tests from the last to the first: each knows how far it is to the end of the rule.
    lines = _answer(1)
    for register, number in ((5, device.minor), (4, device.major)):
        if number is not None:
            lines.insert(0, _line(_IF_NOT_EQUAL, register, offset=len(lines), number=number))
    forbidden = _ALL & ~sum({"m": _MKNOD, "r": _READ, "w": _WRITE}[letter] for letter in device.access)
    if forbidden:
        lines.insert(0, _line(_IF_NOT_EQUAL, 1, offset=len(lines)))
        lines[:0] = [_line(_COPY, 1, source=3), _line(_AND, 1, number=forbidden)]
    return [_line(_IF_NOT_EQUAL, 2, offset=len(lines), number=_KINDS[device.kind]), *lines]


def _answer(value: int) -> list[bytes]:
    return [_line(_SET, 0, number=value), _line(_EXIT, 0)]


def _line(code: int, register: int, *, source: int = 0, offset: int = 0, number: int = 0) -> bytes:
    """struct bpf_insn: opcode, both registers in a byte, a jump or an offset, a constant."""
    return struct.pack("=BBhi", code, register | source << 4, offset, number)
