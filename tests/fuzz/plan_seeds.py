"""Writes what plan_fuzz starts from: plans of real launches, each with some tapes. Argument: the directory."""

from __future__ import annotations

import itertools
import struct
import sys
from pathlib import Path

import mutated_plans

from containerkit.plan import AMBIENT, NNP, Code, Mode, Op, Plan, Stage

CHILDREN = (0, 1, 2, 3)
"""Who we are after the first and the second clone3: a bit each, 1 is the child."""

TAPES = (
    b"",
    bytes(200) + b"\2\0root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n",
    b"\1" * 400,
)


def plans() -> list[Plan]:
    """Those of the mutations, and the operations that they lack."""
    more = [
        Op(Code.NEWIDMAP, Stage.OUTSIDE, "", b"/usr/bin/newuidmap", b"0", b"1000", b"1"),
        Op(Code.CREDS, Stage.INSIDE, "", b"user", b"wheel", struct.pack("=I", 7), flags=NNP | AMBIENT, a=1 << 10),
        Op(Code.FDS, Stage.PROGRAM, "", struct.pack("=ii", 6, 9), struct.pack("=ii", 7, 3)),
        Op(Code.OOM_ADJ, Stage.JOIN, "", b"100"),
        Op(Code.MASK, Stage.INSIDE, "", b"proc/kcore", b"proc/keys", base=1, slot=2),
        Op(Code.READONLY, Stage.INSIDE, "", b"proc/sys", base=1),
        Op(Code.EXEC, Stage.PROGRAM, "", b"true", b"A=1", b"/bin/true", b"/usr/bin/true", a=1, b=1),
    ]
    made = [*mutated_plans.plans("/")]
    for mode in Mode:
        plan = Plan(mode)
        plan.hop = mode is Mode.INIT
        plan.fd(0), plan.fd(0)
        plan.add(*more)
        made.append(plan)
    return made


def main(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for number, plan in enumerate(plans()):
        content = plan.to_bytes()
        plan.close()
        for child, (kind, tape) in itertools.product(CHILDREN, enumerate(TAPES)):
            for fixed in (0, 0x8000):
                head = (1 + len(tape) | fixed).to_bytes(2, "little") + bytes([child])
                (directory / f"{number}-{child}-{kind}-{fixed:x}").write_bytes(head + tape + content)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
