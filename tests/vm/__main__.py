"""Tests on another kernel: Debian's, in an emulated machine, and cgroup v2 with every controller.

    make test-vm                                     what has to run there, as root and as an ordinary user
    make test-vm ARGS="tests/test_x.py -k word"      these instead; ARGS is what pytest is given
    make test-vm SHORT=1                             one test or two of each kind, in minutes
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
import sys
import tempfile
import time
from pathlib import Path

from kernel import Kernel
from machine import Machine, MachineError

TREE = Path(__file__).resolve().parents[2]
CACHE = TREE / "build" / "vm"

PATIENCE = 10

# What depends on the kernel. The rest of the suite is about values, documents and packages.
WHOLE = (
    "tests/kernel tests/security tests/test_aio.py tests/test_attributes.py tests/test_bind.py tests/test_capture.py "
    "tests/test_checkup.py tests/test_fds.py tests/test_filesystems.py tests/test_helper_program.py "
    "tests/test_hostile_roots.py tests/test_idmap.py tests/test_leaks.py tests/test_life.py tests/test_limits.py "
    "tests/test_mounts.py tests/test_mounttree.py tests/test_namespace.py tests/test_overlayfs.py tests/test_plan.py "
    "tests/test_process.py tests/test_rootfs.py tests/test_run.py tests/test_sandbox.py tests/test_spawn_errors.py "
    "tests/test_streams.py tests/test_terminal.py tests/test_timeline.py tests/test_users.py "
)

SHORT = "tests/test_limits.py tests/test_mounttree.py tests/test_overlayfs.py "


def main() -> int:
    options, arguments = parse()
    work = arguments or (SHORT if options.short else WHOLE).split()
    command = options.command or shlex.join(pytest(work))
    CACHE.mkdir(parents=True, exist_ok=True)
    try:
        kernel = Kernel.fetch(options.kernel, CACHE)
        with tempfile.TemporaryDirectory(prefix="machine-", dir=CACHE) as directory:
            machine = Machine(kernel, Path(directory), memory=options.memory, cpus=options.cpus)
            return machine.run(script(command), systemd=options.systemd, timeout=options.timeout)
    except MachineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def parse() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="tests/vm", description="Run tests in an emulated machine.")
    parser.add_argument("--short", action="store_true", help="few tests, unless some are named")
    parser.add_argument("--systemd", action="store_true", help="with systemd as the first process")
    parser.add_argument("--command", metavar="SHELL", help="run this instead of pytest")
    parser.add_argument("--kernel", default="linux-image-amd64", metavar="PACKAGE", help="Debian package (%(default)s)")
    parser.add_argument("--memory", default="2G", help="of the machine (%(default)s)")
    parser.add_argument("--cpus", type=int, default=2, help="of the machine (%(default)s)")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for all of it (%(default).0f)")
    return parser.parse_known_args()


def pytest(arguments: list[str]) -> list[str]:
    options = ["-p", "no:cacheprovider", "-p", "vm.at_once", "-v", "--tb=short", "--color=no", "-s"]
    return [sys.executable, "-m", "pytest", *options, *arguments]


def script(command: str) -> str:
    """The command as the machine runs it: here, in this environment."""
    passed_on = {name: os.environ[name] for name in ("CI", "LANG", "LC_ALL", "PATH") if name in os.environ}
    variables = passed_on | {"HOME": "/root", "CK_TEST_PATIENCE": str(PATIENCE)}
    variables["PYTEST_TIMEOUT"] = str(60 * PATIENCE)
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    return "\n".join([*exports, f"cd {shlex.quote(str(TREE))}", command, ""])


if __name__ == "__main__":
    started = time.monotonic()
    status = main()
    print(f"the machine ran for {time.monotonic() - started:.0f} s; exit status {status}")
    sys.exit(status)
