"""Hands ck-init plans that no compiler would write, and watches how it ends.

Run as a program of its own, never as root: what a broken plan does, it does with the caller's rights. Arguments: the
helper, a root directory, a seed, how many. Prints a line of JSON for each end that must not be: a signal that says that
memory was broken, a sanitizer's report, a hang.
"""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import sys
import tempfile
import time
from contextlib import suppress

from containerkit import Bind, Dev, File, Namespaces, Proc, Security, Sysfs, Tmpfs
from containerkit._native._ck import ffi, lib
from containerkit.kernel import helper
from containerkit.launch import Launch, compile_launch
from containerkit.plan import CLONE_FLAGS, Code, Op, Plan, Stage
from containerkit.security.seccomp import Seccomp
from containerkit.security.supervisor import Supervisor

HEADER, OP = struct.Struct("=IIIIIIQiI"), struct.Struct("=IHHIIiiiiQQ")
# Not SIGILL, by which the helper ends when a broken filter refuses it exit_group, nor SIGSYS, a filter's own kill.
BROKEN = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGABRT, signal.SIGTRAP}
WALL = 0x40000000  # __WALL: the helper's end sends no signal, so plain wait(2) does not see it
SECONDS = 10.0
NUMBERS = (0, 1, 2, 7, 8, 127, 128, 255, 256, 4096, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


# BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS: exec fails, and so does even exit_group.
REFUSE_ALL = Op(Code.SECCOMP, Stage.PROGRAM, "refuse every system call", struct.pack("=HBBI", 6, 0, 0, 0x50026))


def plans(root: str) -> list[Plan]:
    mounts = [Proc(), Sysfs(), Dev(), Tmpfs("/tmp"), File("/etc/x", "x"), Bind(root, "/data")]
    common = {"root": root, "namespaces": Namespaces.all(), "security": Security.strict()}
    refuser = compile_launch(Launch(["/bin/true"], mounts=mounts[:1], **common), None)
    refuser.ops = [REFUSE_ALL if op.code == Code.SECCOMP else op for op in refuser.ops]
    asks = Seccomp.strict().notify("ptrace")
    return [
        refuser,
        compile_launch(Launch(["/bin/true"], mounts=mounts, hostname="x", rlimits={"core": 0}, **common), None),
        compile_launch(Launch(["/bin/true"], mounts=mounts[:3], tty=True, cpu_seconds=5, **common), None),
        compile_launch(Launch([], hold=True, mounts=mounts[:1], **common), None),
        compile_launch(Launch(["/bin/true"], umask=0o77, nice=1, affinity=[0]), None),
        compile_launch(Launch(["/bin/true"], security=Security(seccomp=asks), supervisor=Supervisor()), None),
    ]


def mutate(rng: random.Random, plan: bytes) -> bytes:
    """Either any bytes, which the checks must catch, or a plan in good form with wrong content."""
    if rng.random() < 0.25:
        return spoil(rng, plan)
    header = list(HEADER.unpack_from(plan))
    ops, at = [], HEADER.size
    while at < len(plan):
        size = OP.unpack_from(plan, at)[0]
        ops.append(bytearray(plan[at : at + size]))
        at += size
    for _ in range(rng.randint(1, 4)):
        change(rng, header, ops)
    header[2], header[3] = HEADER.size + sum(map(len, ops)), len(ops)
    return HEADER.pack(*header) + b"".join(ops)


def spoil(rng: random.Random, plan: bytes) -> bytes:
    data = bytearray(plan)
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    if rng.random() < 0.3:
        del data[rng.randrange(len(data)) :]
    if rng.random() < 0.2:
        data += rng.randbytes(rng.randint(1, 64))
    if rng.random() < 0.5 and len(data) >= 12:
        struct.pack_into("=I", data, 8, len(data))
    return bytes(data)


def change(rng: random.Random, header: list[int], ops: list[bytearray]) -> None:
    what = rng.randrange(8)
    op = rng.choice(ops) if ops else bytearray(OP.pack(OP.size, 1, 0, 0, 0, -1, -1, -1, 0, 0, 0))
    if what == 0:
        header[4] = rng.randrange(4)
    elif what == 1:
        header[6] ^= rng.choice(list(CLONE_FLAGS.values()))
        header[8] = rng.randrange(2)
    elif what == 2 and ops:
        ops.insert(rng.randrange(len(ops)), bytearray(rng.choice(ops)))
    elif what == 3 and ops:
        del ops[rng.randrange(len(ops))]
    elif what == 4:
        first, second = rng.randrange(len(ops) or 1), rng.randrange(len(ops) or 1)
        if ops:
            ops[first], ops[second] = ops[second], ops[first]
    elif what == 5:  # code and stage
        struct.pack_into("=HH", op, 4, rng.randrange(40), rng.randrange(5))
    elif what == 6:  # descriptor, slot, base, number of strings, flags
        offset = rng.choice((8, 12, 16, 20, 24))
        struct.pack_into("=I", op, offset, rng.choice((*NUMBERS, 1 << rng.randrange(17), rng.randrange(16))))
    else:  # a, b, and the strings
        fields = range(32, len(op) - 3, 4)
        struct.pack_into("=I", op, rng.choice(fields), rng.choice((*NUMBERS, rng.getrandbits(32))))


def attempt(helper_fd: int, data: bytes, plan: Plan, errors: int, null: int) -> str | None:
    """Start the helper with these bytes. What was wrong with its end, or None."""
    pair = ffi.new("int[2]", (-1, -1))
    lib.ck_socketpair(pair)
    memory, owner = os.memfd_create("plan"), os.pidfd_open(os.getpid())
    os.write(memory, data)
    fds = (null, null, errors, memory, pair[1], owner, *plan.fds)
    pidfd = ffi.new("int *", -1)
    result = lib.ck_spawn(helper_fd, fds, len(fds), pidfd)
    for fd in (memory, pair[1], owner, pidfd[0]):
        with suppress(OSError):
            os.close(fd)
    known = drain(pair[0]) if result >= 0 else []
    os.close(pair[0])  # PID 1 and those who hold a sandbox end with it
    trouble = reap(known)
    for fd in known:
        os.close(fd)
    return f"ck_spawn: {result}" if result < 0 else trouble


def drain(status: int) -> list[int]:
    """Take messages until the program runs, the start failed, or nobody is left to tell. The descriptors in them."""
    deadline, got = time.monotonic() + SECONDS, []
    buffer = bytearray(65536)
    while time.monotonic() < deadline:
        fds, count = ffi.new("int[64]"), ffi.new("int *", 64)
        view = ffi.from_buffer("char[]", buffer, require_writable=True)
        size = lib.ck_recv(status, view, len(buffer), fds, count, 200)
        if size > 0:
            got += [fds[i] for i in range(count[0])]
        if size == 0 or (size > 0 and struct.unpack_from("=I", buffer)[0] in (2, 3)):
            break
    return got


def reap(known: list[int]) -> str | None:
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            pid, status = os.waitpid(-1, WALL | os.WNOHANG)
        except ChildProcessError:
            return None
        if pid and os.WIFSIGNALED(status) and os.WTERMSIG(status) in BROKEN:
            for fd in known:
                with suppress(OSError):
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
            return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
        if pid == 0:
            if time.monotonic() > deadline:
                for fd in known:
                    with suppress(OSError):
                        signal.pidfd_send_signal(fd, signal.SIGKILL)
                return "did not end"
            time.sleep(0.0005)


def main(path: str, root: str, seed: int, count: int) -> None:
    assert os.geteuid() != 0, "a broken plan would do its harm with root's rights"
    helper_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC) if path else helper.fd()
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    bases = plans(root)
    with tempfile.TemporaryFile() as errors:
        for number in range(count):
            rng = random.Random(seed + number)  # noqa: S311  to be repeated, not to be secret
            plan = bases[number % len(bases)]
            good = number < len(bases)
            data = plan.to_bytes() if good else mutate(rng, plan.to_bytes())
            trouble = attempt(helper_fd, data, plan, errors.fileno(), null)
            errors.seek(0)
            said = errors.read().decode(errors="replace")
            errors.truncate(0)
            if "Sanitizer" in said or "runtime error" in said:
                trouble = said[:2000]
            if trouble is not None:
                print(json.dumps({"number": number, "seed": seed + number, "trouble": trouble}), flush=True)
    for plan in bases:
        plan.close()
    print(json.dumps({"done": count}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
