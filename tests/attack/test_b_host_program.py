"""B, C, P: nothing of the program that starts a container is to be had from inside, or changed by starting it."""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from attack import subjects
from attack.subjects import Result, breach_if
from starts import host_said, wait_until

from containerkit import HOST, PIPE, Process, Sandbox, run

Subject = Callable[..., Result]


def as_init(subject: Subject) -> dict[str, Any]:
    """With a PID 1 that stays: ours always does."""
    return {} if subject is subjects.ours else {"init": True}


@pytest.mark.both
@pytest.mark.attack("B03", "C07", "P08", "P09", control="naive container")
def test_pid_1_shows_nothing_of_the_host_program(subject: Subject, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CK_SECRET", "canary-of-the-environment")
    look = """
    readlink /proc/1/exe; head -c 4 /proc/1/exe
    tr '\\0' '\\n' < /proc/1/environ; tr '\\0' ' ' < /proc/1/cmdline
    """
    said = subject(root, "/bin/sh", "-c", look, **as_init(subject)).output
    breach_if("python" in said, f"PID 1 is the host's interpreter: {said!r}")
    breach_if("canary" in said, f"PID 1 has the host's environment: {said!r}")
    breach_if("\x7fELF" in said, "the host's program can be read")


@pytest.mark.both
@pytest.mark.attack("C07", "I09", control="naive container")
def test_fifty_secrets_of_the_environment_are_nowhere(
    subject: Subject, root: Path, monkeypatch: pytest.MonkeyPatch, trials: Callable[[int], None]
) -> None:
    for number in range(50):
        monkeypatch.setenv(f"CK_SECRET_{number}", f"canary{number}")
    said = subject(root, "/bin/sh", "-c", "env; cat /proc/[0-9]*/environ 2>&-").output
    breach_if("canary" in said, "the host's environment is inside")
    trials(50)


@pytest.mark.both
@pytest.mark.attack("B01", control="naive container")
def test_no_descriptor_of_the_host_program_is_inside(
    subject: Subject, root: Path, host: subjects.Watched, trials: Callable[[int], None]
) -> None:
    held = [os.open(host, os.O_RDONLY | os.O_DIRECTORY) for _ in range(200)]
    try:
        for fd in held:
            os.set_inheritable(fd, True)
        find = "for fd in /proc/self/fd/*; do cat $fd/file; done 2>&-"
        said = subject(root, "/bin/sh", "-c", find).output
        breach_if("canary" in said, "a directory of the host is open inside")
        trials(200)
    finally:
        for fd in held:
            os.close(fd)


# ---- memory ----------------------------------------------------------------------------------------------------------


@contextmanager
def held_by_us(root: Path, secret: str) -> Iterator[int]:
    ballast = [f"{secret}:{number}" * 64 for number in range(1000)]
    with Process(
        ["/bin/busybox", "sleep", "60"], root=root, namespaces=subjects.Namespaces.all(), mounts=subjects.STANDARD
    ) as process:
        yield os.getpid()
        assert process.poll() is None
    assert len(ballast) == 1000


@contextmanager
def held_by_twin(root: Path, secret: str) -> Iterator[int]:
    """multiprocessing's way: what a fork of the host program then does has all of its memory."""
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    try:
        yield os.getpid()
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def descendants(parent: int) -> list[int]:
    found = [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    return found + [pid for child in found for pid in descendants(child)]


def memory_of(pid: int) -> Iterator[bytes]:
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            if line.split()[1].startswith("r") and not line.rstrip().endswith(
                ("[vvar]", "[vsyscall]", "[vvar_vclock]")
            ):
                first, _, last = line.split()[0].partition("-")
                memory.seek(int(first, 16))
                yield memory.read(int(last, 16) - int(first, 16))


@pytest.mark.root
@pytest.mark.attack("P01", control="a fork of the host program", ours=held_by_us, twin=held_by_twin)
def test_no_memory_of_the_host_program_is_in_a_process_of_the_container(
    subject: Callable[..., Any], root: Path, trials: Callable[[int], None]
) -> None:
    secret = secrets.token_hex(16)
    with subject(root, secret) as ourselves:
        wait_until(lambda: descendants(ourselves))
        searched = 0
        for pid in descendants(ourselves):
            for area in memory_of(pid):
                searched += 1
                breach_if(secret.encode() in area, f"process {pid} has the secret")
        assert searched > 5
        trials(searched)


@pytest.mark.both
@pytest.mark.attack("B03", "P08", control="test_nobody_can_write_to_the_memory_file")
def test_the_interpreter_and_its_libraries_are_the_same_afterwards(root: Path) -> None:
    """CVE-2019-5736: a program that writes to what it was started by."""
    for name, text in (("entry", None), ("script", "#!/proc/self/exe\n"), ("init", "#!/proc/1/exe\n")):
        if text is None:
            (root / "bin" / name).symlink_to("/proc/self/exe")
        else:
            (root / "bin" / name).write_text(text)
            (root / "bin" / name).chmod(0o755)
    before = digest_of_what_we_run()
    attack = "for exe in /proc/[0-9]*/exe /proc/self/exe; do echo hit > $exe; done"
    for args in (["/bin/entry", "-c", attack], ["/bin/script"], ["/bin/init"], ["/bin/sh", "-c", attack]):
        subjects.ours(root, *args)
    assert digest_of_what_we_run() == before


def digest_of_what_we_run() -> dict[str, str]:
    with open("/proc/self/maps") as maps:
        mapped = {line.split(maxsplit=5)[5].rstrip() for line in maps if len(line.split(maxsplit=5)) > 5}
    files = {os.path.realpath(sys.executable), *(path for path in mapped if path.startswith("/") and ".so" in path)}
    return {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in sorted(files) if os.path.exists(path)}


# ---- joining ---------------------------------------------------------------------------------------------------------


@pytest.mark.both
@pytest.mark.attack("B04", control="the same files outside")
@pytest.mark.parametrize("kind", ["directory", "host"])
def test_a_joiner_is_in_the_sandboxs_root(busybox_root: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "outside").write_text("canary")
    with Sandbox(rootfs=busybox_root if kind == "directory" else HOST) as box:
        box.run(["sh", "-c", "echo inside > /tmp/mark"])
        script = (
            f"cat /tmp/mark; cat {tmp_path}/outside /proc/self/root{tmp_path}/outside /proc/1/root{tmp_path}/outside"
        )
        assert box.run(["sh", "-c", script]).stdout == "inside\n"
    naive = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert "canary" in naive.stdout


# ---- arguments -------------------------------------------------------------------------------------------------------


def by_a_command(root: Path, *args: str) -> Result:
    command = ["unshare", "--user", "--map-root-user", "--mount", f"--root={root}", *args]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return Result(done.stdout, done.returncode)


@pytest.mark.both
@pytest.mark.attack("D12", control="unshare(1)", twin=by_a_command)
def test_a_program_that_is_called_like_an_option_is_a_program(subject: Subject, root: Path) -> None:
    for name in ("--help", "--version", "-", "--"):
        (root / "bin" / name).write_text("#!/bin/sh\necho ran\n")
        (root / "bin" / name).chmod(0o755)
        said = subject(root, name, **({"env": {"PATH": "/bin"}} if subject is subjects.ours else {})).output
        breach_if("Usage" in said or "util-linux" in said, f"{name} was taken for an option: {said[:60]!r}")


@pytest.mark.both
@pytest.mark.attack("D13", control="none: lengths are bounded by the format; tests/fuzz")
def test_lengths_beyond_every_field_are_refused_or_exact(root: Path) -> None:
    """CVE-2021-43784: a length that does not fit its field makes data into instructions."""
    for length in (0xFFFF, 0x10000, 0x10001, 0x100000):
        found = subjects.ours(root, "/bin/sh", "-c", "echo $#; env", binds=[(root, "/" + "x/" * (length // 2), True)])
        assert found.refused is not None
        found = subjects.ours(root, "/bin/sh", "-c", "echo ${#X} ${#Y}", env={"X": "x" * length, "Y": "y"})
        assert found.refused is not None or found.output == f"{length} 1\n"


# ---- output ----------------------------------------------------------------------------------------------------------

_FLOOD = """
def peak():
    return int(status("self")["VmHWM"].split()[0])  # kB, of this program alone
before = peak()
{start}
print((peak() - before) // 1024)
"""


def flood_ours() -> int:
    return int(
        host_said(_FLOOD.format(start='ck.run(["sh", "-c", "yes | head -c 200M"], limits=ck.Limits(output_max="1M"))'))[
            0
        ]
    )


def flood_twin() -> int:
    start = 'subprocess.run(["sh", "-c", "yes | head -c 200M"], capture_output=True)'
    return int(host_said(_FLOOD.format(start=start))[0])


@pytest.mark.both
@pytest.mark.attack("D07", control="subprocess.run", ours=flood_ours, twin=flood_twin)
def test_a_flood_of_output_takes_no_memory(subject: Callable[[], int]) -> None:
    grown = subject()
    breach_if(grown > 16, f"{grown} MiB of output are held in memory")


# ---- the host program itself -----------------------------------------------------------------------------------------

_WAKEUP = """
reading, writing = os.pipe2(os.O_NONBLOCK)
signal.set_wakeup_fd(writing)
signal.signal(signal.SIGUSR1, lambda *_: None)
for _ in range(20):
    {start}
try:
    print(len(os.read(reading, 4096)))
except BlockingIOError:
    print(0)
"""


def wakeup_ours() -> int:
    return int(host_said(_WAKEUP.format(start='ck.run(["sh", "-c", "kill -USR1 $$; true"])'))[0])


def wakeup_twin() -> int:
    start = "child = os.fork(); child or (os.kill(os.getpid(), 10), os._exit(0)); os.waitpid(child, 0)"
    return int(host_said(_WAKEUP.format(start=start))[0])


@pytest.mark.both
@pytest.mark.attack("P05", control="os.fork", ours=wakeup_ours, twin=wakeup_twin)
def test_a_signal_of_the_program_is_not_told_to_the_host_programs_event_loop(subject: Callable[[], int]) -> None:
    stray = subject()
    breach_if(stray, f"{stray} bytes in the host program's wakeup descriptor")


_FINALIZERS = """
import atexit, tempfile
kept = tempfile.TemporaryDirectory()
atexit.register(lambda: os.write(1, b"end\\n"))
for args in (["/nowhere/program"], ["/etc/passwd"], ["/"]):
    try:
        {start}
    except OSError:
        pass
print(os.path.isdir(kept.name), flush=True)
"""


def finalizers_ours() -> list[str]:
    return host_said(_FINALIZERS.format(start="Process(args, **ISOLATED).close()"))


def finalizers_twin() -> list[str]:
    start = """
        child = os.fork()
        if not child:
            try:
                os.execv(args[0], args)
            finally:
                sys.stderr = None
                sys.exit(127)
        os.waitpid(child, 0)"""
    return host_said(_FINALIZERS.format(start=start))


@pytest.mark.both
@pytest.mark.attack("P11", control="os.fork and a failing exec", ours=finalizers_ours, twin=finalizers_twin)
def test_a_start_that_fails_runs_no_finalizer_of_the_host_program(subject: Callable[[], list[str]]) -> None:
    said = subject()
    breach_if(said != ["True", "end"], f"finalizers ran in a copy: {said}")


# ---- a root that does not answer -------------------------------------------------------------------------------------

_HUNG = """
libc = ctypes.CDLL(None, use_errno=True)
fuse = os.open("/dev/fuse", os.O_RDWR)
at = sys.argv[1]
options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0".encode()
assert not libc.mount(b"hung", at.encode(), b"fuse", 0, options)
ticks = 0
def tick():
    global ticks
    while True:
        time.sleep(0.01)
        ticks += 1
threading.Thread(target=tick, daemon=True).start()
begin = time.monotonic()
try:
    # Without a user namespace: this file system does not map ids.
    Process(["/bin/true"], root=at, start_timeout=1, namespaces=ck.Namespaces(mnt="new", pid="new"))
except Exception as error:
    print(type(error).__name__)
print(ticks > 20, time.monotonic() - begin < 8)
naive = threading.Thread(target=os.path.isdir, args=[at], daemon=True)
naive.start()
naive.join(0.3)
print(naive.is_alive())
sys.stdout.flush()
libc.umount2(at.encode(), 2)
os.close(fuse)
"""


@pytest.mark.root
@pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="no /dev/fuse")
@pytest.mark.attack("P03", control="os.path.isdir of the same root, which waits")
def test_a_root_that_does_not_answer_does_not_stop_the_host_program(tmp_path: Path) -> None:
    said = host_said(_HUNG, str(tmp_path), prefix=["unshare", "--mount", "--propagation", "private"])
    assert said == ["TimeoutExpired", "True True", "True"]


# ---- a number that has a new owner -----------------------------------------------------------------------------------

_REUSE = """
def start_with(pid):
    with open("/proc/sys/kernel/ns_last_pid", "w") as file:
        file.write(str(pid - 1))
    return subprocess.Popen(["sleep", "60"])

gone = Process(["true"]) if sys.argv[1] == "ours" else subprocess.Popen(["true"])
pid = gone.pid
if sys.argv[1] == "ours":
    gone.wait()
else:
    os.waitpid(pid, 0)  # the program has waited by itself
for _ in range(100):
    successor = start_with(pid)
    if successor.pid == pid:
        break
    successor.kill()
    successor.wait()
assert successor.pid == pid, (successor.pid, pid)
if sys.argv[1] == "ours":
    gone.kill()
    gone.terminate()
else:
    os.kill(pid, 9)
time.sleep(0.05)
print(successor.poll())
successor.kill()
successor.wait()
if sys.argv[1] != "ours":
    gone.returncode = 0
"""
_OWN_PIDS = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


def reuse_ours() -> str:
    return host_said(_REUSE, "ours", prefix=_OWN_PIDS)[0]


def reuse_twin() -> str:
    return host_said(_REUSE, "twin", prefix=_OWN_PIDS)[0]


@pytest.mark.root
@pytest.mark.attack("I07", control="os.kill", ours=reuse_ours, twin=reuse_twin)
def test_a_signal_never_reaches_the_next_owner_of_a_number(subject: Callable[[], str]) -> None:
    breach_if(subject() != "None", "another process was killed")


# ---- what a sandbox opens on the host --------------------------------------------------------------------------------


@pytest.mark.both
@pytest.mark.attack("H01", "I03", control="a socket of the test's own")
def test_no_socket_has_a_name_that_others_could_reach() -> None:
    def names() -> set[str]:
        lines = Path("/proc/net/unix").read_text(errors="replace").splitlines()[1:]
        return {line.split(maxsplit=7)[7] for line in lines if len(line.split(maxsplit=7)) > 7}

    def listening() -> set[str]:
        rows = [
            row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
        ]
        mine = {
            os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{fd}")
        }
        return {row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in mine}

    ours = f"@ck-{os.getpid()}-"
    before, ports = names(), listening()
    with Sandbox() as box, box.process(["sleep", "60"], stdin=PIPE):
        new = {name for name in names() - before if "ck" in name}
        assert (new, listening()) == (set(), ports)
        with socket.socket(socket.AF_UNIX) as named:
            named.bind("\0" + ours[1:] + "control")
            assert any(name.startswith(ours) for name in names() - before)


@pytest.mark.both
@pytest.mark.attack("I02", control="tests/test_leaks.py plants one of each kind")
def test_nothing_is_left_in_the_directories_for_temporary_files() -> None:
    def files() -> set[str]:
        return {
            os.path.join(place, name)
            for place in ("/tmp", "/var/tmp", "/dev/shm", "/run", os.environ["TMPDIR"])
            if os.access(place, os.R_OK)
            for name in os.listdir(place)
            if ("ck" in name or "container" in name) and not name.startswith("ck-test")  # the tests' own
        }

    run(["true"])  # the directory of id ranges is made once
    before = files()
    run(["sh", "-c", "echo x > /tmp/ck-file; echo x > /dev/shm/ck-file"])
    assert files() <= before
