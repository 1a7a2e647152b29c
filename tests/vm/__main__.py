"""Tests on another kernel: Debian's, in an emulated machine, and cgroup v2 with every controller.

    make test-vm                                     what has to run there, as root and as an ordinary user
    make test-vm ARGS="tests/test_x.py -k word"      these instead; ARGS is what pytest is given
    make test-vm SHORT=1                             a few, under systemd, in minutes
    make test-vm SYSTEMD=1 ARGS=tests/test_x.py      with systemd as the first process

The machine sees the files of this one, under an overlay: what it writes goes to a disk of its own and is gone
with it. It has this virtual environment and source tree at the same paths. It needs no hardware support (and so
runs inside of other machines), and is about ten times slower than one that has it: environment variable
``CK_TEST_PATIENCE`` tells the tests by how much to stretch their time-outs (``tests/patience.py``).

Processes: this program, and qemu. In the machine, ``initramfs.sh`` loads modules and mounts, then ``guest.sh``
mounts what a system has and runs the command, its output on a virtual console that is our output; it leaves the
exit status in a folder that both sides see, and turns the machine off. With systemd, ``guest.sh`` is a service.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kernel import Kernel
from machine import Machine, MachineError

TREE = Path(__file__).resolve().parents[2]
CACHE = TREE / "build" / "vm"

PATIENCE = int(os.environ.get("CK_TEST_PATIENCE", "10"))

# Not about the kernel: values, documents, packages, the test bench itself; or longer than an emulated machine has time.
LEFT_OUT = (
    *("attack", "faults", "images", "test_callers.py", "test_cgroup_guide.py", "test_docs.py", "test_imports.py"),
    *("test_native.py", "test_packaging.py", "test_public_api.py", "test_units.py"),
)
WHOLE = ["tests", *(f"--ignore=tests/{name}" for name in LEFT_OUT)]

# With systemd as the first process.
UNDER_SYSTEMD = ["tests/test_cgroup_systemd.py"]

# A few of each kind, by root, on the machine that most differs from ours.
SHORT = [
    *("tests/test_cgroup_systemd.py", "tests/kernel/test_probe.py", "tests/test_mounttree.py"),
    *("-k", "systemd or not user"),
]


def main() -> int:
    options, arguments = parse()
    worst = 0
    for systemd, command in work(options, arguments):
        print(f"in the machine{', under systemd' if systemd else ''}: {command}", flush=True)
        try:
            worst = max(worst, run(command, options, systemd=systemd))
        except (MachineError, subprocess.CalledProcessError) as error:
            print(f"error: {error}", file=sys.stderr)
            worst = max(worst, 1)
    return worst


def work(options: argparse.Namespace, arguments: list[str]) -> list[tuple[bool, str]]:
    """One command for each machine, and whether it has systemd."""
    if options.command:
        return [(options.systemd, options.command)]
    if arguments:
        return [(options.systemd, pytest(arguments))]
    if options.short:
        return [(True, pytest(SHORT))]
    return [(False, pytest(WHOLE)), (True, pytest(UNDER_SYSTEMD))]


def run(command: str, options: argparse.Namespace, *, systemd: bool) -> int:
    CACHE.mkdir(parents=True, exist_ok=True)
    kernel = Kernel.fetch(options.kernel, CACHE)
    with tempfile.TemporaryDirectory(prefix="machine-", dir=CACHE) as directory:
        machine = Machine(kernel, Path(directory), memory=options.memory, cpus=options.cpus)
        return machine.run(script(command), systemd=systemd, timeout=options.timeout)


def parse() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="tests/vm", description="Run tests in an emulated machine.")
    parser.add_argument("--short", action="store_true", help="few tests, unless some are named")
    parser.add_argument("--systemd", action="store_true", help="with systemd as the first process")
    parser.add_argument("--command", metavar="SHELL", help="run this instead of pytest")
    parser.add_argument("--kernel", default="linux-image-amd64", metavar="PACKAGE", help="Debian package (%(default)s)")
    parser.add_argument("--memory", default="2G", help="of the machine (%(default)s)")
    parser.add_argument("--cpus", type=int, default=2, help="of the machine (%(default)s)")
    parser.add_argument("--timeout", type=float, default=7200, help="seconds for one machine (%(default).0f)")
    return parser.parse_known_args()


def pytest(arguments: list[str]) -> str:
    # Without hypothesis' plugin, which imports all of hypothesis: ten seconds there. Tests with @given do without it.
    plugins = ["-pno:cacheprovider", "-pno:xdist", "-pno:hypothesispytest", "-pvm.at_once"]
    options = [*plugins, "-v", "--tb=short", "--color=no", "-s"]
    return shlex.join([sys.executable, "-m", "pytest", *options, *arguments])


def script(command: str) -> str:
    """The command as the machine runs it: here, in this environment."""
    passed_on = {name: os.environ[name] for name in ("LANG", "LC_ALL", "PATH") if name in os.environ}
    # CI: hypothesis then does not mind that a machine is slow.
    variables = passed_on | {"CI": "true", "HOME": "/root", "CK_TEST_PATIENCE": str(PATIENCE)}
    variables["PYTEST_TIMEOUT"] = str(60 * PATIENCE)
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    return "\n".join([*exports, f"cd {shlex.quote(str(TREE))}", command, ""])


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an end that takes the machine and its disk along
    started = time.monotonic()
    status = main()
    print(f"the machine ran for {time.monotonic() - started:.0f} s; exit status {status}")
    sys.exit(status)
