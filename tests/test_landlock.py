"""Landlock: as a value, alone around a process of the host's, and as the second wall around a sandbox."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import attrs
import pytest
from patience import PATIENCE
from test_run import PYTHON, PYTHON_MOUNTS

import containerkit as ck
from containerkit import PIPE, Bind, InvalidValue, Landlock, Process, Sandbox, Security, SpawnError, Unsupported
from containerkit.kernel import calls
from containerkit.launch import Launch
from containerkit.security import landlock

BOTH = pytest.mark.both
ABI = calls.landlock_abi()


@pytest.fixture(autouse=True)
def _needs_landlock() -> None:
    if ABI < 2:
        pytest.skip(f"Landlock's ABI is {ABI} here")


def needs(abi: int) -> Any:
    return pytest.mark.skipif(abi > ABI, reason=f"needs Landlock ABI {abi}")


def under(policy: Landlock | None, script: str, *args: str | Path) -> subprocess.CompletedProcess[str]:
    """A shell on the host's own root, under a policy and nothing else."""
    security = Security(landlock=policy)
    command = ["sh", "-c", script, "sh", *map(str, args)]
    with Process(command, stdout=PIPE, stderr=PIPE, text=True, security=security) as process:
        out, err = process.communicate(timeout=20 * PATIENCE)
        assert process.returncode is not None
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def in_python(code: str, *args: str, security: Security, **options: Any) -> str:
    """What a Python program on the host's own root said."""
    command = [PYTHON, "-I", "-S", "-c", code, *args]
    with Process(command, stdout=PIPE, text=True, security=security, **options) as process:
        out, _ = process.communicate(timeout=20 * PATIENCE)
    return str(out).strip()


# ---- the value -------------------------------------------------------------------------------------------------------


def test_a_policy_is_a_frozen_value() -> None:
    policy = Landlock({"/": "read execute", "/srv": "write"}, connect_tcp=(443,), scopes=("signal",))
    assert policy == Landlock({"/": "execute, read", "/srv": "write"}, connect_tcp=[443], scopes="signal")
    assert pickle.loads(pickle.dumps(policy)) == policy  # noqa: S301
    assert eval(repr(policy), {"Landlock": Landlock}) == policy  # noqa: S307
    assert attrs.evolve(policy, strict=True) != policy
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        policy.strict = True  # type: ignore[misc]


def test_groups_of_rights_are_those_of_the_manual() -> None:
    assert landlock.rights("read") == 1 << 2 | 1 << 3
    assert landlock.rights("execute") == 1
    assert landlock.rights("read write execute devices") == (1 << 16) - 1
    assert landlock.rights("make_sym,refer") == 1 << 12 | 1 << 13


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        (({"srv": "read"},), {}, "must be absolute"),
        (({"/srv": "reed"},), {}, "unknown Landlock right 'reed'"),
        (({"/s\0v": "read"},), {}, "NUL"),
        ((), {"bind_tcp": [65536]}, "not a port"),
        ((), {"connect_tcp": ["http"]}, "not a port"),
        ((), {"scopes": ["abstract"]}, "unknown Landlock scope"),
    ],
)
def test_what_cannot_be_is_refused_by_name(arguments: Any, options: Any, said: str) -> None:
    with pytest.raises(InvalidValue, match=said):
        Landlock(*arguments, **options)


def test_a_policy_needs_no_new_privs() -> None:
    with pytest.raises(InvalidValue, match="no_new_privs"):
        Security(landlock=Landlock({}), no_new_privs=False)


@pytest.mark.parametrize(
    ("abi", "missing"),
    [
        (0, ["files (ABI 2)", "TCP ports (ABI 4)", "scopes (ABI 6)"]),
        (1, ["files (ABI 2)", "TCP ports (ABI 4)", "scopes (ABI 6)"]),
        (2, ["files (ABI 5)", "TCP ports (ABI 4)", "scopes (ABI 6)"]),
        (4, ["files (ABI 5)", "scopes (ABI 6)"]),
        (6, []),
        (9, []),
    ],
)
def test_what_an_older_kernel_lacks_is_left_out_or_refused(
    abi: int, missing: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Landlock({"/": "read"}, bind_tcp=(), scopes=landlock.SCOPES)
    assert policy.missing(abi) == missing
    monkeypatch.setattr(calls, "landlock_abi", lambda: abi)
    strict = attrs.evolve(policy, strict=True)
    if missing:
        with pytest.raises(Unsupported, match="cannot enforce"):
            strict.operation()
    else:
        assert strict.operation() == strict.operation()
    op = policy.operation()
    assert (op is None) == (abi < 2)
    if op is not None:
        files, net, scoped = (int.from_bytes(op.strings[0][at : at + 8], "little") for at in (0, 8, 16))
        assert files.bit_length() == {2: 14, 4: 15, 6: 16, 9: 16}[abi]
        assert (net, scoped) == (1 if abi >= 4 else 0, 3 if abi >= 6 else 0)


# ---- files -----------------------------------------------------------------------------------------------------------


@BOTH
def test_what_no_rule_allows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "open").mkdir()
    (tmp_path / "open/file").write_text("open")
    script = 'cat "$1/open/file"; cat "$1/secret"; echo x > "$1/open/new"; ls "$1"'
    policy = Landlock({"/usr": "read execute", "/lib": "read execute", "/lib64": "read execute", "/etc": "read",
                       "/bin": "read execute", tmp_path / "open": "read"})  # fmt: skip
    done = under(policy, script, tmp_path)
    assert done.stdout == "open"
    assert done.stderr.count("Permission denied") == 3, done.stderr
    assert not (tmp_path / "open/new").exists()
    control = under(None, script, tmp_path)
    assert control.stdout.startswith("opensecret")
    assert (tmp_path / "open/new").exists()


@BOTH
def test_each_group_of_rights_is_for_what_its_name_says(tmp_path: Path) -> None:
    script = """
    exec 3>&1 >/dev/null 2>&1; cd "$1"
    (echo x > file) && echo wrote >&3; cat file && echo read >&3; ls . && echo listed >&3; mkdir made && echo made >&3
    mkdir -p a b; (echo x > a/moved); mv a/moved b/ && echo moved >&3; ./program && echo executed >&3; :
    """
    (tmp_path / "file").write_text("x")
    (tmp_path / "program").write_text("#!/bin/true\n")
    (tmp_path / "program").chmod(0o755)
    system = dict.fromkeys(("/usr", "/bin", "/lib", "/lib64", "/etc", "/proc"), "read execute")
    system["/dev"] = "read write"
    did = {
        rights: under(Landlock({**system, tmp_path: rights}), script, tmp_path).stdout.split()
        for rights in ("read", "write", "execute read", "write_file truncate")
    }
    assert did["read"] == ["read", "listed"]
    assert did["write"] == ["wrote", "made", "moved"]
    assert did["execute read"] == ["read", "listed", "executed"]
    assert did["write_file truncate"] == ["wrote"]
    (tmp_path / "made").rmdir()
    assert under(None, script, tmp_path).stdout.split() == ["wrote", "read", "listed", "made", "moved", "executed"]


@BOTH
def test_a_rule_for_a_file_is_for_that_file_alone(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    system = dict.fromkeys(("/usr", "/bin", "/lib", "/lib64", "/etc"), "read execute")
    done = under(Landlock({**system, tmp_path / "one": "read write"}), 'cat "$1/one" "$1/two"', tmp_path)
    assert done.stdout == "one"


@BOTH
def test_a_rule_for_a_path_that_is_not_there_is_an_error() -> None:
    with pytest.raises(SpawnError, match="no /nowhere inside the root") as caught:
        under(Landlock({"/": "read execute", "/nowhere": "read"}), "true")
    assert caught.value.path == "/nowhere"
    assert caught.value.syscall == "openat2"


@BOTH
def test_standard_streams_can_be_opened_again_by_name(tmp_path: Path) -> None:
    system = dict.fromkeys(("/usr", "/bin", "/lib", "/lib64", "/etc", "/proc", "/dev"), "read execute")
    security = Security(landlock=Landlock(system))
    with (tmp_path / "log").open("w") as log:
        log.write("before\n")
        log.flush()
        script = 'echo through the name >> /proc/self/fd/1; echo x > "$1/other"'
        command = ["sh", "-c", script, "sh", str(tmp_path)]
        with Process(command, stdout=log, stderr=subprocess.DEVNULL, security=security) as process:
            process.wait(10 * PATIENCE)
    assert (tmp_path / "log").read_text() == "before\nthrough the name\n"
    assert not (tmp_path / "other").exists()


_SIXTEEN_LAYERS = """
import ctypes, sys
sys.path[:0] = eval(sys.argv[1])
from containerkit import Landlock, Process, Security, SpawnError
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
no_character_devices = (ctypes.c_uint64 * 1)(1 << 6)
for layer in range(16):
    ruleset = libc.syscall(444, no_character_devices, ctypes.c_size_t(8), 0)
    assert libc.syscall(446, ruleset, 0) == 0
try:
    Process(["true"], security=Security(landlock=Landlock({"/": "read execute"})))
except SpawnError as error:
    print(error)
"""


@BOTH
def test_sixteen_layers_are_what_the_kernel_takes() -> None:
    """The seventeenth is an error, and not a program without it."""
    command = [sys.executable, "-c", _SIXTEEN_LAYERS, repr(sys.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50 * PATIENCE, check=True)
    assert "landlock_restrict_self: Argument list too long" in done.stdout
    assert "confined 16 times" in done.stdout


# ---- ports, sockets, signals -----------------------------------------------------------------------------------------

_TCP = """
import socket, sys
def attempt(what, port):
    with socket.socket() as s:
        s.settimeout(2)
        try: getattr(s, what)(("127.0.0.1", port))
        except PermissionError: return "refused"
        except OSError as error: return type(error).__name__
    return "ok"
print(attempt("bind", 0), attempt("connect", int(sys.argv[1])), attempt("connect", 9))
"""


@BOTH
@needs(4)
def test_tcp_ports_are_an_allow_list() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        only = Security(landlock=Landlock(connect_tcp=[port], bind_tcp=[]))
        assert in_python(_TCP, str(port), security=only) == "refused ok refused"
        control = in_python(_TCP, str(port), security=Security())
        assert control.startswith("ok ok ")
        assert "refused" not in control.split()[:2]


_ABSTRACT = """
import socket, sys
with socket.socket(socket.AF_UNIX) as s:
    try: s.connect("\\0" + sys.argv[1])
    except PermissionError: print("refused")
    else: print("connected")
"""


@BOTH
@needs(6)
def test_an_abstract_socket_outside_is_out_of_reach_also_in_the_hosts_network() -> None:
    name = f"ck-{uuid.uuid4()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0" + name)
        server.listen()
        options: dict[str, Any] = {"network": "host", "mounts": PYTHON_MOUNTS}
        command = [PYTHON, "-I", "-S", "-c", _ABSTRACT, name]
        assert ck.run(command, **options).stdout == "refused\n"
        loose = attrs.evolve(Security.strict(), landlock=None)
        assert ck.run(command, security=loose, **options).stdout == "connected\n"


@BOTH
@needs(6)
def test_a_process_outside_cannot_be_signalled() -> None:
    """Not even by the same user in the same pid namespace."""
    with subprocess.Popen(["sleep", "60"]) as victim:
        code = "import os, sys\ntry: os.kill(int(sys.argv[1]), 0)\nexcept PermissionError: print('refused')\n"
        code += "else: print('reached')"
        scoped = Security(landlock=Landlock(scopes="signal"))
        assert in_python(code, str(victim.pid), security=scoped) == "refused"
        assert in_python(code, str(victim.pid), security=Security()) == "reached"
        victim.kill()


@BOTH
@needs(6)
def test_programs_of_one_sandbox_reach_each_others_abstract_sockets() -> None:
    serve = "import socket, sys\ns = socket.socket(socket.AF_UNIX); s.bind('\\0inside'); s.listen(); print('up')\n"
    serve += "sys.stdout.flush(); s.accept()[0].close()"
    command = [PYTHON, "-I", "-S", "-c", serve]
    with Sandbox(mounts=PYTHON_MOUNTS) as box, box.process(command, stdout=PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "up\n"
        assert box.run([PYTHON, "-I", "-S", "-c", _ABSTRACT, "inside"]).stdout == "connected\n"
        server.wait(10 * PATIENCE)


# ---- around a sandbox ------------------------------------------------------------------------------------------------


@BOTH
def test_what_is_mounted_writable_can_be_written_and_all_else_read(tmp_path: Path) -> None:
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    tmp_path.chmod(0o755)
    script = """
    cat /in/file /out/file; echo
    for at in /out /tmp /root /dev/shm; do
        echo 1 > $at/a && echo 2 >> $at/a && mkdir $at/d && mv $at/a $at/d/b && ln $at/d/b $at/c && ln -s c $at/l &&
        mkfifo $at/f && rm -r $at/d $at/c $at/l $at/f && echo $at
    done
    echo 5 > /proc/self/oom_score_adj && echo x > /dev/null && echo also
    """
    mounts = (Bind(tmp_path / "in", "/in"), Bind(tmp_path / "out", "/out", read_only=False))
    done = ck.run(["sh", "-c", script], mounts=mounts)
    assert done.stdout.split() == ["inout", "/out", "/tmp", "/root", "/dev/shm", "also"], done.stderr


def without_landlock() -> Security:
    return attrs.evolve(Security.strict(), landlock=None)


class Mistaken(Bind):
    """A read-only mount whose compiler forgets to make it read-only."""

    def compile(self, build: Any) -> None:
        Bind(self.source, self.target, read_only=False).compile(build)


@BOTH
def test_a_mount_that_is_writable_by_mistake_is_not_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    mounts = (Mistaken(tmp_path, "/data"),)
    assert "Permission denied" in ck.run(["touch", "/data/hit"], mounts=mounts).stderr
    assert not (tmp_path / "hit").exists()
    ck.run(["touch", "/data/hit"], mounts=mounts, security=without_landlock(), check=True)
    assert (tmp_path / "hit").exists()


@BOTH
def test_a_directory_of_the_host_that_was_opened_before_is_out_of_reach(tmp_path: Path) -> None:
    """Were a descriptor to leak through every other wall, it would lead nowhere."""
    tmp_path.chmod(0o755)
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "secret").chmod(0o644)
    script = "cat /proc/self/fd/9/secret"
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        said = {name: leak(fd, script, security) for name, security in policies().items()}
    finally:
        os.close(fd)
    assert said["naive"] == "secret"
    assert said["strict"] == ""


def policies() -> dict[str, Security]:
    return {"naive": without_landlock(), "strict": Security.strict()}


def leak(fd: int, script: str, security: Security) -> str:
    """The output of a program in a sandbox, which is given a directory of the host's by a broken check."""
    launch = Launch(
        ["sh", "-c", script],
        root=ck.HOST,
        namespaces=ck.Namespaces.all(),
        mounts=(ck.Proc(), ck.Dev(), ck.Tmpfs("/tmp")),
        security=security,
        pass_fds={},
    )
    launch.pass_fds = Unchecked({9: fd})
    process = Process._from_launch(launch, stdin=ck.DEVNULL, stdout=PIPE, stderr=ck.DEVNULL)
    process._wrap_streams(True, None, None)
    with process:
        return str(process.communicate(timeout=10 * PATIENCE)[0])


class Unchecked(dict[int, int]):
    """Descriptors that a mistake passes on without a look at what they are."""


@pytest.fixture(autouse=True)
def _unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    from containerkit import launch

    check = launch._fds_op

    def unchecked(plan: Any, pass_fds: Any) -> Any:
        with monkeypatch.context() as patched:
            if isinstance(pass_fds, Unchecked):
                patched.setattr(launch, "check_stream", lambda fd, what: None)
            return check(plan, pass_fds)

    monkeypatch.setattr(launch, "_fds_op", unchecked)


@BOTH
def test_a_moved_mount_point_does_not_keep_the_next_program_from_starting(busybox_root: Path) -> None:
    mounts = (ck.Tmpfs("/a/b"),)
    with Sandbox(rootfs=busybox_root, mounts=mounts) as box:
        assert box.run(["sh", "-c", "mv /a /moved; touch /moved/b/x"]).ok
        assert box.run(["sh", "-c", "ls /moved/b"]).stdout == "x\n"


@BOTH
def test_nothing_can_be_mounted_under_rules_for_files() -> None:
    security = attrs.evolve(Security.unconfined_as_the_caller(), no_new_privs=True, landlock=Landlock.around_mounts())
    script = "mount -t tmpfs none /tmp || echo refused"
    done = ck.run(["sh", "-c", script], security=security)
    assert done.stdout == "refused\n"
    assert "refused" not in ck.run(["sh", "-c", script], security=attrs.evolve(security, landlock=None)).stdout


@BOTH
def test_explain_tells_where_it_stands() -> None:
    steps = ck.explain(["true"]).splitlines()
    index = next(n for n, step in enumerate(steps) if "Landlock" in step)
    assert "/ read execute" in steps[index]
    assert "/tmp read write execute" in steps[index]
    assert any("system call filter" in step for step in steps[index:])
