"""A process that times starts on request: in mounts of its own, or with a loaded program around it.

Requests and answers are lines of JSON on stdin and stdout:

    {"do": "command", "argv": [...], "count": n}   ->  {"seconds": [...]}    subprocess.run
    {"do": "run", "rootfs": path, "count": n}      ->  {"seconds": [...]}    containerkit.run, in it
    {"do": "memory", "bytes": n}                   ->  {"seconds": []}       holds n bytes in 4 KiB pages
    {"do": "threads", "count": n, "pause": s}      ->  {"seconds": []}       has n threads busy, with pauses

or {"error": text}. It ends with its stdin.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from area import Area
from timing import Unavailable, first_reason, timed_command, timed_run

PAGE = 4096
PBKDF2_ROUNDS = 1_000  # some half a millisecond

held: list[mmap.mmap] = []
busy: list[threading.Thread] = []
pause = 0.0


def hold_memory(size: int) -> None:
    """Small pages, as a heap that grew over time has them: a huge page would hide 511 page-table entries."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    for offset in range(0, size, PAGE):
        memory[offset] = 1
    held.append(memory)


def stay_busy() -> None:
    """Busy in C without the GIL: with busy Python code a start would wait 5 ms for each switch of threads."""
    while True:
        hashlib.pbkdf2_hmac("sha256", b"password", b"salt", PBKDF2_ROUNDS)
        if pause:
            time.sleep(pause)


def have_threads(count: int, seconds: float) -> None:
    global pause
    pause = seconds
    while len(busy) < count:
        busy.append(threading.Thread(target=stay_busy, daemon=True))
        busy[-1].start()


def answer(request: dict[str, Any]) -> list[float]:
    match request["do"]:
        case "command":
            return [timed_command(request["argv"]) for _ in range(request["count"])]
        case "run":
            return [timed_run(request["rootfs"]) for _ in range(request["count"])]
        case "memory":
            hold_memory(request["bytes"])
        case "threads":
            have_threads(request["count"], request["pause"])
    return []


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the benchmark, which then closes our stdin
    for line in sys.stdin:
        try:
            reply: dict[str, Any] = {"seconds": answer(json.loads(line))}
        except Exception as error:
            reply = {"error": first_reason(error)}
        print(json.dumps(reply), flush=True)


class Worker:
    """The benchmark's end. `prefix` is a command that prepares the surroundings and executes what follows."""

    def __init__(self, area: Area, prefix: Sequence[str] = ()) -> None:
        argv = [*prefix, sys.executable, __file__]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        area.stack.callback(self.close)

    def ask(self, do: str, **arguments: object) -> list[float]:
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Unavailable("the worker process has ended") from None
        line = self._process.stdout.readline()
        if not line:
            raise Unavailable("the worker process has ended")
        reply = json.loads(line)
        if "error" in reply:
            raise Unavailable(reply["error"])
        seconds: list[float] = reply["seconds"]
        return seconds

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


if __name__ == "__main__":
    main()
