"""Classic BPF as seccomp has it: what the kernel's checker lets pass, run step by step. Written from the kernel's rules
(bpf_check_classic, seccomp_check_filter), and with nothing of the compiler that it tests."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "i386": 0x40000003}
X32 = 0x40000000

LOAD, AND, RETURN, JUMP = 0x20, 0x54, 0x06, 0x05
COMPARE = {
    0x15: lambda a, k: a == k,
    0x25: lambda a, k: a > k,
    0x35: lambda a, k: a >= k,
    0x45: lambda a, k: a & k != 0,
}


class Instruction(NamedTuple):
    code: int
    jt: int
    jf: int
    k: int


@dataclass
class Run:
    value: int
    steps: int
    looked_at_arguments: bool


def decode(program: bytes) -> list[Instruction]:
    """The instructions, if the kernel would take them."""
    assert len(program) % 8 == 0
    code = [Instruction(*fields) for fields in struct.iter_unpack("<HBBI", program)]
    assert 1 <= len(code) <= 4096
    for at, (kind, jt, jf, k) in enumerate(code):
        left = len(code) - at - 1
        if kind in COMPARE:
            assert jt < left, f"{at}: leaves the program"
            assert jf < left, f"{at}: leaves the program"
        elif kind == JUMP:
            assert k < left, f"{at}: leaves the program"
        elif kind == LOAD:
            assert k % 4 == 0, f"{at}: not at a word"
            assert k < 64, f"{at}: beyond the call"
        else:
            assert kind in (AND, RETURN), f"{at}: instruction {kind:#x} is unknown"
    assert code[-1].code == RETURN
    return code


def run(code: Sequence[Instruction], number: int, args: Sequence[int] = (), *, architecture: str = "x86_64") -> Run:
    """What the filter answers to a call."""
    padded = [*args, *[0] * (6 - len(args))]
    call = struct.pack("<IIQ6Q", number, ARCHITECTURES[architecture], 0x7F0000001234, *padded)
    accumulator = at = steps = 0
    looked = False
    while True:
        kind, jt, jf, k = code[at]
        steps += 1
        at += 1
        if kind == RETURN:
            return Run(k, steps, looked)
        if kind == LOAD:
            (accumulator,) = struct.unpack_from("<I", call, k)
            looked = looked or k >= 8
        elif kind == AND:
            accumulator &= k
        elif kind == JUMP:
            at += k
        else:
            at += jt if COMPARE[kind](accumulator, k) else jf
