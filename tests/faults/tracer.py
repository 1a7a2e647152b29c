"""Runs something in a fork of this process and lets one thing go wrong at one of its system calls, or its children's.

A small ptrace(2) tracer. Every process has a place: "host" is the fork, "host.1" the first process that it starts (the
helper of its first start), "host.1.1" what that one starts, and so on; (place, number) is a point: the entry of that
process's so-manieth system call. At one point a Fault strikes; from there on the processes run untraced. Programs are
let go at their exec: what they do is not ours.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

CAN_INJECT = platform.machine() == "x86_64"  # where the registers of a system call lie (sys/user.h)
ORIG_RAX, RAX = 15 * 8, 10 * 8

TRACEME, POKEUSER, CONT, DETACH, SYSCALL = 0, 6, 7, 17, 24
SETOPTIONS, GETEVENTMSG, GET_SYSCALL_INFO = 0x4200, 0x4201, 0x420E
OPTIONS = 1 | 2 | 4 | 8 | 16 | 0x100000  # SYSGOOD, fork, vfork, clone, exec, EXITKILL
EVENT_EXEC = 4
SYSCALL_STOP = signal.SIGTRAP | 0x80
WALL = 0x40000000
SECONDS = 30.0
"""A run that takes longer has hung."""

MARK = {"x86_64": 146, "aarch64": 125}.get(platform.machine(), -1)
"""sched_get_priority_max(2): nobody else calls it. It marks the part of the host program that is looked at."""
CLOSE = {"x86_64": 3, "aarch64": 57}.get(platform.machine(), -1)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


class Point(NamedTuple):
    place: str
    number: int


class Fault(NamedTuple):
    """SIGKILL, for the process at the point or for another one, or an errno as the call's answer.

    close(2) is done all the same, as the kernel does it.
    """

    signal: int = 0
    errno: int = 0
    victim: str = ""

    def __str__(self) -> str:
        return f"SIGKILL {self.victim}".rstrip() if self.signal else errno.errorcode[self.errno]


@dataclass
class Run:
    """What happened: the system calls of each place, what the host said at its end, what is wrong."""

    calls: dict[str, list[int]] = field(default_factory=dict)
    said: dict[str, Any] | None = None
    struck: bool = False
    wrong: list[str] = field(default_factory=list)


def mark() -> None:
    os.sched_get_priority_max(0)


def become_subreaper() -> None:
    """Orphans of what is traced come to this process: it can tell that none is left."""
    _libc.prctl(36, 1, 0, 0, 0)


def ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> bool:
    """False when the tracee is gone, which a SIGKILL may cause at any moment."""
    if _libc.ptrace(request, pid, address, data) >= 0:
        return True
    number = ctypes.get_errno()
    if number == errno.ESRCH:
        return False
    raise OSError(number, os.strerror(number), f"ptrace {request:#x}")


class _Tracer:
    def __init__(self, point: Point | None, fault: Fault) -> None:
        self.point, self.fault = point, fault
        self.run = Run()
        self.places: dict[int, str] = {}
        self.children: Counter[str] = Counter()
        self.execs: Counter[str] = Counter()
        self.waiting: set[int] = set()  # new ones whose parent's event has not come yet
        self.alive: set[int] = set()
        self.marks = 0
        self.answer: dict[int, int] = {}  # what the call that a process is in shall return
        self._info = ctypes.create_string_buffer(88)

    def loop(self, host: int) -> int:
        """Until the host has ended; its wait status."""
        self.places[host] = "host"
        self.alive.add(host)
        ptrace(SETOPTIONS, host, 0, OPTIONS)
        ptrace(SYSCALL, host)
        while True:
            pid, status = os.waitpid(-1, WALL)
            if os.WIFSTOPPED(status):
                self.stopped(pid, status >> 8 & 0xFF, status >> 16)
            else:
                self.alive.discard(pid)
                if pid == host:
                    return status

    def stopped(self, pid: int, sig: int, event: int) -> None:
        if pid not in self.places:
            self.alive.add(pid)
            self.waiting.add(pid)  # its first stop, before we know whose it is
            return
        if sig == SYSCALL_STOP:
            self.at_call(pid)
        elif event:
            self.at_event(pid, event)
        elif sig == signal.SIGSTOP and pid not in self.alive:
            self.alive.add(pid)
            self.go_on(pid)
        else:
            self.go_on(pid, sig)

    def go_on(self, pid: int, sig: int = 0) -> None:
        ptrace(DETACH if self.run.struck and pid not in self.answer else SYSCALL, pid, 0, sig)

    def at_event(self, pid: int, event: int) -> None:
        place = self.places[pid]
        if event == EVENT_EXEC:
            self.execs[place] += 1
            if self.execs[place] > 1 or place.count(".") != 1:
                ptrace(DETACH, pid)  # no longer ck-init
                return
        else:
            message = ctypes.c_ulong()
            ptrace(GETEVENTMSG, pid, 0, ctypes.addressof(message))
            child = int(message.value)
            self.children[place] += 1
            self.places[child] = f"{place}.{self.children[place]}"
            if child in self.waiting:
                self.waiting.discard(child)
                self.go_on(child)
        self.go_on(pid)

    def at_call(self, pid: int) -> None:
        ptrace(GET_SYSCALL_INFO, pid, len(self._info), ctypes.addressof(self._info))
        if self._info[0] == b"\1":
            self.at_entry(pid, int.from_bytes(self._info[24:32], "little"))
        elif pid in self.answer:
            ptrace(POKEUSER, pid, RAX, self.answer.pop(pid) & (1 << 64) - 1)
        self.go_on(pid)

    def at_entry(self, pid: int, call: int) -> None:
        place = self.places[pid]
        if place == "host":
            if call == MARK:
                self.marks += 1
            if call == MARK or self.marks != 1:
                return
        calls = self.run.calls.setdefault(place, [])
        if self.point == (place, len(calls)):
            self.strike(pid, call)
        calls.append(call)

    def strike(self, pid: int, call: int) -> None:
        self.run.struck = True
        if self.fault.signal:
            victims = [known for known, place in self.places.items() if place == self.fault.victim]
            for victim in victims or [pid]:
                with suppress(ProcessLookupError):
                    os.kill(victim, self.fault.signal)
            return
        self.answer[pid] = -self.fault.errno
        if call != CLOSE:
            ptrace(POKEUSER, pid, ORIG_RAX, (1 << 64) - 1)


def trace(
    scenario: Callable[[], dict[str, Any]], prepare: Callable[[], None], point: Point | None, fault: Fault
) -> Run:
    """Run ``scenario`` once, after ``prepare``, which is not looked at. What it returns is Run.said."""
    reading, writing = os.pipe()
    host = os.fork()
    if not host:
        os.close(reading)
        _be_host(scenario, prepare, writing)
    os.close(writing)
    os.waitpid(host, WALL)  # it has stopped itself
    tracer = _Tracer(point, fault)
    signal.signal(signal.SIGALRM, _expire)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        status = tracer.loop(host)
    except TimeoutError:
        tracer.run.wrong.append(f"it hung: {_describe(tracer)}")
        status = signal.SIGKILL
        _kill_all(tracer.alive)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    with open(reading, "rb") as file:
        os.set_blocking(reading, False)
        said = file.read() or b""
    killed = bool(fault.signal and point and point.place == "host" and tracer.run.struck)
    if said:
        tracer.run.said = json.loads(said)
    elif not killed and not tracer.run.wrong:
        tracer.run.wrong.append(f"the host ended with wait status {status}")
    _wait_for_all(tracer.run)
    return tracer.run


def _be_host(scenario: Callable[[], dict[str, Any]], prepare: Callable[[], None], writing: int) -> None:
    code = 1
    try:
        prepare()
        ptrace(TRACEME, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        os.write(writing, json.dumps(scenario()).encode())
        code = 0
    except BaseException as error:  # nothing may return into the fork's copy of the caller
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
    os._exit(code)


def _expire(*_: object) -> None:
    raise TimeoutError


def _describe(tracer: _Tracer) -> str:
    found = []
    for pid in sorted(tracer.alive):
        with suppress(OSError), open(f"/proc/{pid}/wchan") as file:
            found.append(f"{tracer.places.get(pid, '?')} in {file.read() or 'user code'}")
    return ", ".join(found)


def _kill_all(pids: set[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _wait_for_all(run: Run, seconds: float = 2.0) -> None:
    """Whatever is left comes to us, and must end by itself."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            pid, status = os.waitpid(-1, WALL | os.WNOHANG)
        except ChildProcessError:
            return
        if pid and os.WIFSTOPPED(status):
            ptrace(DETACH, pid)
        elif not pid and time.monotonic() > deadline:
            left = _children()
            run.wrong.append(f"processes left: {', '.join(left.values())}")
            _kill_all(set(left))
            deadline = time.monotonic() + seconds
        elif not pid:
            time.sleep(0.0005)


def _children() -> dict[int, str]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        pids = [int(word) for word in file.read().split()]
    found = {}
    for pid in pids:
        with suppress(OSError), open(f"/proc/{pid}/stat") as file:
            words = file.read().split()
            found[pid] = f"{words[1]} {words[2]}"
    return found
