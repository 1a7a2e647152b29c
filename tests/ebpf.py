"""eBPF as far as a device program uses it: what the kernel's verifier lets pass, run step by step.

Written from the kernel's rules (Documentation/bpf/standardization/instruction-set.rst, check_cfg() and
cgroup_dev_is_valid_access()), and with nothing of the assembler that it tests.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

BLOCK, CHAR = 1, 2
MKNOD, READ, WRITE = 1, 2, 4


class Instruction(NamedTuple):
    code: int
    target: int
    source: int
    offset: int
    number: int


def decode(program: bytes) -> list[Instruction]:
    """The instructions, if the verifier would take them."""
    assert len(program) % 8 == 0
    code = [
        Instruction(code, registers & 15, registers >> 4, offset, number)
        for code, registers, offset, number in struct.iter_unpack("<BBhi", program)
    ]
    assert code[-1].code == 0x95, "the last instruction falls through"
    reached = {0}
    for at, line in enumerate(code):
        assert at in reached, f"{at}: unreachable"
        assert max(line.target, line.source) <= 9, f"{at}: register"
        if line.code == 0x55:
            assert 0 <= line.offset < len(code) - at - 1, f"{at}: jumps out of the program, or back"
            reached |= {at + 1, at + 1 + line.offset}
        elif line.code != 0x95:
            reached.add(at + 1)
    return code


def run(code: list[Instruction], kind: int, access: int, major: int, minor: int) -> int:
    """What the program answers: the whole of r0."""
    context = struct.pack("<III", access << 16 | kind, major, minor)
    registers: dict[int, int | str] = {1: "context"}

    def number(register: int) -> int:
        value = registers[register]
        assert isinstance(value, int), f"r{register} is a pointer"
        return value

    at = 0
    while True:
        line = code[at]
        at += 1
        match line.code:
            case 0x61:  # a word of the context
                assert registers[line.source] == "context"
                assert line.offset in (0, 4, 8)
                registers[line.target] = struct.unpack_from("<I", context, line.offset)[0]
            case 0xB4:
                registers[line.target] = line.number & 0xFFFFFFFF
            case 0xBC:
                registers[line.target] = number(line.source) & 0xFFFFFFFF
            case 0x54:
                registers[line.target] = number(line.target) & line.number & 0xFFFFFFFF
            case 0x74:
                registers[line.target] = (number(line.target) & 0xFFFFFFFF) >> line.number
            case 0x55:  # compares 64 bits with the sign-extended number
                if number(line.target) != line.number & 0xFFFFFFFFFFFFFFFF:
                    at += line.offset
            case 0x95:
                return number(0)
            case other:
                raise AssertionError(f"instruction {other:#x} is unknown")
