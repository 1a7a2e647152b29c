"""bpf(2) as far as cgroup device programs need it: load, attach, and find out what is attached (Linux 5.6)."""

from __future__ import annotations

import errno
import struct
from typing import Any

from .._native._ck import ffi, lib
from .calls import check

# linux/bpf.h: enum bpf_cmd, bpf_prog_type, bpf_attach_type
_LOAD, _ATTACH, _DETACH, _FD_BY_ID, _INFO_BY_FD, _QUERY = 5, 8, 9, 13, 15, 16
_TYPE_CGROUP_DEVICE = 15
_ATTACH_CGROUP_DEVICE = 6
_ALLOW_MULTI, _REPLACE = 2, 4

# The heads of union bpf_attr; the kernel takes what is missing for zero.
_LOAD_ATTR = struct.Struct(
    "=IIQQIIQII16s"
)  # type, count, insns, license, log (level, size, buffer), version, flags, name
_ATTACH_ATTR = struct.Struct("=IIIII")  # target, program, type, flags, replaced
_QUERY_ATTR = struct.Struct("=IIIIQI4x")  # target, type, query flags, attach flags, ids, count
_INFO_NAME = slice(64, 80)  # struct bpf_prog_info.name
_PROGRAMS_MAX = 64  # BPF_CGROUP_MAX_PROGS

_HINT = (
    "a device program needs CAP_BPF and CAP_NET_ADMIN, or CAP_SYS_ADMIN, in the first user namespace: run as root, or "
    "leave devices= out and rely on mounts without device nodes (nodev), which every sandbox has"
)


def load_device_program(code: bytes, name: bytes) -> int:
    """A descriptor of a program of type BPF_PROG_TYPE_CGROUP_DEVICE, checked by the kernel's verifier (Linux 4.15)."""
    instructions, licence = ffi.from_buffer("char[]", code), ffi.new("char[]", b"MIT")
    attr = _LOAD_ATTR.pack(
        _TYPE_CGROUP_DEVICE, len(code) // 8, _address(instructions), _address(licence), 0, 0, 0, 0, 0, name
    )
    return _bpf(_LOAD, bytearray(attr), "load a device program")


def attach_device_program(cgroup: int, program: int, *, instead_of: int = -1) -> None:
    """Attach it to a v2 cgroup beside those of others, or in the place of one: all of them must say yes."""
    flags, old = (_ALLOW_MULTI, 0) if instead_of < 0 else (_ALLOW_MULTI | _REPLACE, instead_of)
    attr = _ATTACH_ATTR.pack(cgroup, program, _ATTACH_CGROUP_DEVICE, flags, old)
    _bpf(_ATTACH, bytearray(attr), "attach a device program")


def detach_device_program(cgroup: int, program: int) -> None:
    _bpf(_DETACH, bytearray(_ATTACH_ATTR.pack(cgroup, program, _ATTACH_CGROUP_DEVICE, 0, 0)), "detach a device program")


def device_programs(cgroup: int) -> list[int]:
    """The ids of the device programs attached to a v2 cgroup itself, without those of the groups above."""
    ids = ffi.new("uint32_t[]", _PROGRAMS_MAX)
    attr = bytearray(_QUERY_ATTR.pack(cgroup, _ATTACH_CGROUP_DEVICE, 0, 0, _address(ids), _PROGRAMS_MAX))
    _bpf(_QUERY, attr, "list device programs")
    return [int(ids[i]) for i in range(_QUERY_ATTR.unpack(attr)[5])]


def open_program(number: int) -> int:
    return _bpf(_FD_BY_ID, bytearray(struct.pack("=III", number, 0, 0)), "open a program")


def program_name(program: int) -> bytes:
    info = ffi.new("char[]", _INFO_NAME.stop)
    _bpf(_INFO_BY_FD, bytearray(struct.pack("=IIQ", program, _INFO_NAME.stop, _address(info))), "look at a program")
    return bytes(ffi.buffer(info)[_INFO_NAME]).rstrip(b"\0")


def _bpf(command: int, attr: bytearray, doing: str) -> int:
    """The answers are written into ``attr``."""
    view = ffi.from_buffer("char[]", attr, require_writable=True)
    result = lib.ck_bpf(command, view, len(attr))
    return check(result, "bpf", doing, _HINT if result == -errno.EPERM else None)


def _address(data: Any) -> int:
    return int(ffi.cast("uintptr_t", data))
