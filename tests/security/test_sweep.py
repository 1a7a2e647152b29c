"""What each preset answers to every system call number from 0 to 600, in every ABI: on record, and asked of the kernel
by a process that has loaded the filter."""

from __future__ import annotations

import errno
import itertools
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from security import bpf

from containerkit.security import syscalls
from containerkit.security.seccomp import Action, Seccomp

PRESETS: dict[str, Callable[[], Seccomp]] = {
    "strict": Seccomp.strict, "service": Seccomp.service, "compat": Seccomp.compat,
}  # fmt: skip
ABIS = {"x86_64": ("x86_64", "i386", "x32"), "aarch64": ("aarch64",)}
LAST = 600
NOT_MADE = 4000  # sweep.c: the errno of a call that the filter allows
KILLERS = {"x86_64": {335, 336}}  # uretprobe and uprobe


def interpreted(policy: Seccomp, machine: str, abi: str, args: Sequence[int] = ()) -> Iterator[bpf.Run]:
    code = bpf.decode(policy.program(machine))
    for number in range(LAST + 1):
        if abi == "x32":
            yield bpf.run(code, bpf.X32 | number, args, architecture="x86_64")
        else:
            yield bpf.run(code, number, args, architecture=abi)


# ---- on record -------------------------------------------------------------------------------------------------------


def table(machine: str) -> str:
    lines = ["# The answers of the presets; * is by its arguments. Numbers without a name: first to last.", ""]
    for abi in ABIS[machine]:
        names = {} if abi == "x32" else {number: name for name, number in syscalls.numbers(abi).items()}
        columns = [[shown(run) for run in interpreted(make(), machine, abi)] for make in PRESETS.values()]
        rows = [(names.get(number, "-"), *answers) for number, answers in enumerate(zip(*columns, strict=True))]
        lines.append(row(abi, "", PRESETS))
        for (name, *answers), group in itertools.groupby(enumerate(rows), key=lambda item: item[1]):
            numbers = [number for number, _ in group]
            lines.append(row("-".join(map(str, dict.fromkeys((numbers[0], numbers[-1])))), name, answers))
        lines.append("")
    return "\n".join(lines)


def row(numbers: str, name: str, answers: Sequence[str] | dict[str, object]) -> str:
    return f"{numbers:8} {name:26} {' '.join(f'{answer:12}' for answer in answers)}".rstrip()


def shown(run: bpf.Run) -> str:
    return "*" if run.looked_at_arguments else str(Action(run.value))


@pytest.mark.parametrize("machine", ABIS)
def test_the_answers_of_the_presets_are_those_on_record(machine: str) -> None:
    """A change of a preset has to be seen: regenerate with UPDATE_GOLDEN=1 and read the diff."""
    golden = Path(__file__).parent / f"golden/sweep-{machine}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(table(machine))
    assert golden.read_text() == table(machine)


# ---- asked of the kernel ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if platform.machine() not in ABIS:
        pytest.skip("no table for this machine")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    program = tmp_path_factory.mktemp("sweep") / "sweep"
    subprocess.run([compiler, "-O1", "-o", program, Path(__file__).parent / "sweep.c"], check=True)
    return program


def asked(program: Path, policy: Seccomp | bytes, abi: str, args: Sequence[int] = ()) -> list[int]:
    """The errno that each call ended with; NOT_MADE where the filter allows it."""
    file = program.with_name("filter")
    file.write_bytes(policy if isinstance(policy, bytes) else policy.program())
    given = [f"{arg:x}" for arg in (*args, 0, 0, 0)[:3]]
    done = subprocess.run([program, file, abi, "0", str(LAST), *given], capture_output=True, text=True, timeout=30)
    if abi == "i386" and done.returncode in (-11, -4):
        pytest.skip("this kernel has no 32-bit emulation")
    assert done.returncode == 0, done
    return [int(line.split()[1]) for line in done.stdout.splitlines()]


def expected(run: bpf.Run) -> int:
    if run.value == Action.ALLOW:
        return NOT_MADE
    assert run.value >> 16 == 5, hex(run.value)
    return run.value & 0xFFFF


HIGH = 0xDEADBEEF << 32
ARGUMENTS = [
    (0, 0, 0),
    (1, 1, 0),
    (2, 2, 17),  # an IPv4 datagram socket
    (10, 1, 132),  # SCTP over IPv6
    (16, 3, 0),  # netlink
    (38, 5, 0),  # kernel crypto
    (HIGH | 40, HIGH | 1, HIGH),  # vsock, with bits that the kernel does not read
    (0x10000011, 0x5412, 0),  # clone with CLONE_NEWUSER; TIOCSTI
    (0x11, HIGH | 0x5412, 0),
    (0xFFFFFFFF, 0o20600, 0o60600),  # personality asks; device nodes
    (0x0040000, 0o10600, 0o100600),  # no address randomization; FIFO, file
]


@pytest.mark.parametrize("abi", ABIS.get(platform.machine(), ()))
@pytest.mark.parametrize("preset", PRESETS)
def test_the_kernel_answers_every_number_as_the_interpreter_does(sweep: Path, preset: str, abi: str) -> None:
    machine = platform.machine()
    policy = PRESETS[preset]()
    for args in ARGUMENTS:
        read = [arg & 0xFFFFFFFF for arg in args] if abi == "i386" else args
        wanted = [expected(run) for run in interpreted(policy, machine, abi, read)]
        got = asked(sweep, policy, abi, args)
        skipped = KILLERS.get(abi, set()) | (KILLERS["x86_64"] if abi == "x32" else set())
        differences = {n for n in range(LAST + 1) if got[n] != wanted[n]} - skipped
        assert not differences, {n: (got[n], wanted[n]) for n in differences}


def test_the_sweep_sees_a_call_that_a_filter_lets_through(sweep: Path) -> None:
    """The control: with one call more, one answer differs; and a filter that allows everything is seen to."""
    machine = platform.machine()
    number = syscalls.numbers(machine)["mount"]
    before, after = (asked(sweep, policy, machine) for policy in (Seccomp.strict(), Seccomp.strict().allow("mount")))
    assert [n for n in range(LAST + 1) if before[n] != after[n]] == [number]
    assert (before[number], after[number]) == (errno.EPERM, NOT_MADE)
    everything = asked(sweep, Seccomp(Action.ALLOW), machine)
    assert {everything[n] for n in range(LAST + 1)} - {0} == {NOT_MADE}


def test_a_filter_for_64_bits_alone_would_let_32_bit_calls_through(sweep: Path) -> None:
    """The naive twin does not look at the architecture: i386's execve is 11, which is x86-64's harmless munmap."""
    if platform.machine() != "x86_64":
        pytest.skip("x86")
    execve = syscalls.numbers("i386")["execve"]
    policy = Seccomp.strict().deny("execve")
    naive = policy.program()[16:]  # without its first two instructions
    assert asked(sweep, naive, "i386")[execve] == NOT_MADE
    assert asked(sweep, policy, "i386")[execve] == errno.ENOSYS
