"""ck-init as others see it: never the interpreter, never writable, and closed to those inside."""

from __future__ import annotations

import errno
import mmap
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starts import ISOLATED, host_said, in_root, isolated, settled, shell, sleeping

from containerkit import PIPE, Bind, Process, Sandbox, run
from containerkit.errors import SpawnError
from containerkit.kernel import helper
from containerkit.process import _pid_of

BOTH = pytest.mark.both
ROOT = pytest.mark.root


@pytest.fixture
def first() -> Iterator[int]:
    """PID 1 of a program's namespace, as the host counts."""
    with sleeping(**ISOLATED) as process:
        settled(process)
        yield _pid_of(process.fileno())


# ---- from outside ------------------------------------------------------------------------------------------


@ROOT
def test_pid_1_is_the_memory_file_and_not_the_interpreter(first: int) -> None:
    assert os.readlink(f"/proc/{first}/exe") == "/memfd:ck-init (deleted)"
    lines = Path(f"/proc/{first}/maps").read_text().splitlines()
    mapped = {line.split(maxsplit=5)[5] for line in lines if "/" in line}
    # Beside itself: the plan, and the page that it shares with the helper.
    assert mapped == {"/memfd:ck-init (deleted)", "/memfd:ck-plan (deleted)", "/dev/zero (deleted)"}


@ROOT
def test_pid_1_has_no_environment_and_a_fixed_name(first: int) -> None:
    assert Path(f"/proc/{first}/environ").read_bytes() == b""
    assert Path(f"/proc/{first}/cmdline").read_bytes() == b"ck-init\0"
    assert os.readlink(f"/proc/{first}/cwd") == "/"


@ROOT
def test_pid_1_holds_three_descriptors_and_none_of_the_programs(first: int) -> None:
    directory = f"/proc/{first}/fd"
    kinds = sorted(os.readlink(f"{directory}/{number}").split(":[0")[0] for number in os.listdir(directory))
    assert len(kinds) == 3
    assert [kind.partition(":")[0] for kind in kinds] == ["anon_inode", "anon_inode", "socket"]


@ROOT
def test_pid_1_of_a_strict_sandbox_has_no_capability() -> None:
    with Sandbox() as box:
        fields = dict(line.split(":\t", 1) for line in Path(f"/proc/{box.pid}/status").read_text().splitlines())
    assert {fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert fields["NoNewPrivs"] == "1"


@BOTH
def test_nobody_can_write_to_the_memory_file() -> None:
    run(["true"])
    fd = helper.fd()
    before = os.pread(fd, 1 << 20, 0)
    for attempt in (
        lambda number: os.pwrite(number, b"x", 0),
        lambda number: os.ftruncate(number, 0),
        lambda number: os.ftruncate(number, 1 << 20),
        lambda number: mmap.mmap(number, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
        lambda number: os.posix_fallocate(number, 0, 1 << 20),
        lambda number: os.fchmod(number, 0o666),
    ):
        with pytest.raises(OSError):  # noqa: PT011
            attempt(fd)
    with pytest.raises(OSError) as refused:  # noqa: PT011, PT012
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        try:
            os.pwrite(again, b"x", 0)
        finally:
            os.close(again)
    assert refused.value.errno in (errno.ETXTBSY, errno.EACCES, errno.EPERM)
    assert os.pread(fd, 1 << 20, 0) == before == Path(helper.path()).read_bytes()


@BOTH
def test_a_host_that_closes_every_descriptor_gets_a_new_memory_file() -> None:
    lines = host_said("""
        ck.run(["true"])
        os.closerange(3, 256)  # as daemons do
        held = [os.open("/dev/null", os.O_RDONLY) for _ in range(6)]  # somebody else's, with those numbers
        print(ck.run(["echo", "still works"]).stdout.strip())
        print({os.readlink(f"/proc/self/fd/{fd}") for fd in held})
    """)
    assert lines == ["still works", "{'/dev/null'}"]


@BOTH
def test_threads_that_are_the_first_at_the_same_time_share_one_memory_file() -> None:
    lines = host_said("""
        from concurrent.futures import ThreadPoolExecutor
        from containerkit.kernel import helper
        sys.setswitchinterval(1e-6)
        most = 0
        for _ in range(20):
            helper._helper = None
            helper._successors.clear()
            before = len(os.listdir("/proc/self/fd"))
            together = threading.Barrier(8)
            with ThreadPoolExecutor(8) as pool:
                used = {f.result() for f in [pool.submit(lambda: (together.wait(), helper.fd())[1]) for _ in range(8)]}
            most = max(most, len(used), len(os.listdir("/proc/self/fd")) - before)
        print(most)
    """)
    assert lines == ["1"]


# ---- from inside -------------------------------------------------------------------------------------------

LOOK = """
for name in exe cwd root; do readlink /proc/1/$name > /dev/null && echo OPEN; done
for name in fd map_files task/1/fd; do ls /proc/1/$name/ > /dev/null && echo OPEN; done
for name in environ maps auxv syscall; do head -c 100 /proc/1/$name | grep -q '' && echo OPEN; done
"""


@BOTH
@pytest.mark.parametrize("kind", ["isolated", "run", "sandbox"])
def test_the_program_cannot_look_into_pid_1(kind: str) -> None:
    script = f"({LOOK}) 2>/dev/null; echo; readlink /proc/self/exe"
    if kind == "isolated":
        said = shell(script, **ISOLATED)
    elif kind == "run":
        said = run(["sh", "-c", script]).stdout
    else:
        with Sandbox() as box:
            said = box.run(["sh", "-c", script]).stdout
    assert said.split() == [said.split()[-1]]  # nothing could be opened
    assert sys.executable not in said


@BOTH
def test_the_same_look_opens_another_process() -> None:
    """So the test above can fail."""
    script = LOOK.replace("/proc/1/", "/proc/$other/").replace("task/1/", "task/$other/")
    said = shell(f"sleep 60 & other=$!; sleep 0.05; ({script}) 2>/dev/null; echo", **ISOLATED)
    assert said.count("OPEN") >= 5


@BOTH
@pytest.mark.parametrize("entry", ["script", "link", "pid-1"])
@pytest.mark.parametrize("init", [True, False])
def test_an_entry_point_that_leads_to_the_helper_is_harmless(
    busybox_root: Path, tmp_path: Path, entry: str, init: bool
) -> None:
    """CVE-2019-5736: whoever executes /proc/self/exe must get nothing that they could write to."""
    tmp_path.chmod(0o755)
    if entry == "script":
        (tmp_path / "entry").write_text("#!/proc/self/exe\n")
        (tmp_path / "entry").chmod(0o755)
    else:
        (tmp_path / "entry").symlink_to("/proc/self/exe" if entry == "link" else "/proc/1/exe")
    interpreter, built = Path(sys.executable).resolve(), Path(helper.path())
    before = [(os.stat(path).st_mtime_ns, path.read_bytes()) for path in (interpreter, built)]
    options: dict[str, Any] = in_root(busybox_root, Bind(tmp_path, "/tmp"))
    try:
        with Process(["/tmp/entry"], stdout=PIPE, stderr=PIPE, init=init, **options) as process:
            assert process.communicate(timeout=10) == (b"", b"")
            assert process.returncode != 0
    except SpawnError:
        pass
    assert [(os.stat(path).st_mtime_ns, path.read_bytes()) for path in (interpreter, built)] == before
    assert run(["echo", "alive"]).stdout == "alive\n"


@BOTH
def test_the_helper_alone_does_nothing(tmp_path: Path) -> None:
    """Executed by somebody without a plan, in a root of theirs: it says nothing and fails."""
    tmp_path.chmod(0o755)
    copy = tmp_path / "ck-init"
    copy.write_bytes(Path(helper.path()).read_bytes())
    copy.chmod(0o755)
    for args in (["/tmp/h/ck-init"], ["/tmp/h/ck-init", "--help"], ["/tmp/h/ck-init", "3"]):
        with Process(args, stdout=PIPE, stderr=PIPE, **isolated(Bind(tmp_path, "/tmp/h"))) as process:
            assert process.communicate(timeout=10) == (b"", b"")
            assert process.returncode == 64
