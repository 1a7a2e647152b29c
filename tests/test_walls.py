"""The walls of a Security beside system calls, Landlock and settings; its presets; and what a sandbox says of them."""

from __future__ import annotations

import ctypes
import os
import pickle
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
from patience import PATIENCE
from test_run import PYTHON, PYTHON_MOUNTS, fields

import containerkit as ck
from containerkit import (
    HOST,
    PIPE,
    Bind,
    Capabilities,
    InvalidValue,
    Landlock,
    Namespaces,
    Process,
    Sandbox,
    Security,
    SpawnError,
    Unsupported,
)

BOTH = pytest.mark.both
PRESETS = ("strict", "service", "compat")
STRICT = Security.strict()


def python(code: str, *args: str, security: Security = STRICT, **options: Any) -> ck.Completed[str]:
    return ck.run([PYTHON, "-I", "-S", "-c", code, *args], mounts=PYTHON_MOUNTS, security=security, **options)


def preset(name: str) -> Security:
    made: Security = getattr(Security, name)()
    return made


# ---- memory ----------------------------------------------------------------------------------------------------------

_WRITE_THEN_EXECUTE = """
import ctypes, mmap
libc = ctypes.CDLL(None, use_errno=True)
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE)
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
print(libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(4096), 5))
"""


@BOTH
def test_with_mdwe_memory_that_was_written_is_never_executed() -> None:
    code = _WRITE_THEN_EXECUTE.replace("import ctypes", "import sys; sys.path.append(sys.argv[1]); import ctypes")
    directory = os.path.dirname(os.path.dirname(ctypes.__file__))
    dynload = os.path.join(directory, "lib-dynload")
    code = code.replace("sys.path.append(sys.argv[1])", "sys.path[:0] = sys.argv[1:]")
    security = attrs.evolve(STRICT, mdwe=True)
    try:
        assert python(code, directory, dynload, security=security).stdout == "-1\n"
    except SpawnError as error:
        pytest.skip(str(error))
    assert python(code, directory, dynload).stdout == "0\n"


# ---- keys ------------------------------------------------------------------------------------------------------------


@contextmanager
def a_key_of_the_session(word: str) -> Iterator[None]:
    """In the session keyring of this thread, where programs that it starts find it."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    add_key = 248 if os.uname().machine == "x86_64" else 217
    session, unlink = -3, 9
    libc.syscall(add_key + 2, 1, None)  # a session keyring of our own: not the user's
    key = libc.syscall(add_key, b"user", word.encode(), b"secret", ctypes.c_size_t(6), session)
    if key < 0:
        pytest.skip(f"no key can be added here: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        libc.syscall(add_key + 2, unlink, key, session)


_LOOK_FOR_A_KEY = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
search, session = 10, -3
number = 250 if os.uname().machine == "x86_64" else 219
found = libc.syscall(number, search, session, b"user", sys.argv[1].encode(), 0)
print("found" if found > 0 else os.strerror(ctypes.get_errno()))
"""


@BOTH
def test_a_new_session_keyring_has_none_of_the_callers_keys() -> None:
    """In a process on the host's root, with no filter in the way: what is seen is the keyring alone."""
    with a_key_of_the_session("ck-test-key"):
        said = {}
        for fresh in (False, True):
            security = Security(session_keyring=fresh)
            command = [PYTHON, "-c", _LOOK_FOR_A_KEY, "ck-test-key"]
            with Process(command, stdout=PIPE, text=True, security=security) as process:
                said[fresh] = process.communicate(timeout=20 * PATIENCE)[0].strip()
    assert said[False] == "found"
    assert said[True] == "Required key not available"


@BOTH
def test_a_sandbox_may_have_a_session_keyring_of_its_own() -> None:
    assert ck.run(["true"], security=attrs.evolve(STRICT, session_keyring=True)).ok


# ---- what this kernel may not have -----------------------------------------------------------------------------------


@BOTH
def test_core_scheduling_is_had_or_refused() -> None:
    security = attrs.evolve(STRICT, core_scheduling=True)
    try:
        done = ck.run(["true"], security=security)
    except SpawnError as error:
        assert "core scheduling needs CONFIG_SCHED_CORE" in str(error)  # noqa: PT017
    else:
        assert done.ok


@BOTH
@pytest.mark.parametrize("module", ["apparmor", "selinux"])
def test_a_label_of_a_module_that_is_not_active_is_refused(module: str) -> None:
    active = {"apparmor": "/proc/self/attr/apparmor/exec", "selinux": "/sys/fs/selinux/enforce"}
    if os.path.exists(active[module]):
        pytest.skip(f"{module} is active here")
    with pytest.raises(Unsupported, match="is not active in this kernel"):
        ck.run(["true"], security=attrs.evolve(STRICT, **{module: "some_label"}))


def test_labels_are_single_printable_words() -> None:
    for wrong in ("", "two words", "a\nb", "a\0", "ö"):
        with pytest.raises(InvalidValue, match="not the name of a label"):
            Security(apparmor=wrong)


@BOTH
def test_a_label_is_written_to_the_process_that_becomes_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no module is active, the kernel's answer to the write shows where it went."""
    from containerkit import labels

    if os.path.exists("/sys/fs/selinux/enforce"):
        pytest.skip("SELinux is active here")
    exists = os.path.exists
    monkeypatch.setattr(labels.os.path, "exists", lambda path: "selinux" in str(path) or exists(path))
    with pytest.raises(SpawnError, match="take the SELinux context some:label at exec") as caught:
        ck.run(["true"], security=attrs.evolve(STRICT, selinux="some:label"))
    assert caught.value.path == "thread-self/attr/exec"


@pytest.mark.root
def test_a_proc_that_is_no_proc_is_not_used_for_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    from containerkit import labels

    opened = os.open
    monkeypatch.setattr(labels.os, "open", lambda path, *rest: opened("/tmp" if path == "/proc" else path, *rest))
    with pytest.raises(Unsupported, match="not the root of a proc file system"):
        labels.open_proc()


# ---- groups ----------------------------------------------------------------------------------------------------------

_START_WITH_GROUPS = """
import os, sys
os.setgroups([4, 27, 999])
sys.path[:0] = eval(sys.argv[1])
import containerkit as ck
options = eval(sys.argv[2], {"Security": ck.Security})
print(ck.run(["sh", "-c", "grep ^Groups: /proc/self/status; id -G"], **options).stdout)
with ck.Sandbox() as box:
    print(box.run(["grep", "^Groups:", "/proc/self/status"]).stdout)
"""


@pytest.mark.root
@pytest.mark.parametrize(
    "options", ["{}", "dict(user=1000)", "dict(user='nobody')", "dict(security=Security.compat())"]
)
def test_no_group_of_the_caller_comes_along(options: str) -> None:
    """CVE-2022-36109 and its kin."""
    import sys

    command = [sys.executable, "-c", _START_WITH_GROUPS, repr(sys.path), options]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=50 * PATIENCE)
    numbers = {word for line in done.stdout.splitlines() for word in line.replace("Groups:", "").split()}
    assert numbers <= {"0", "1000", "65534"}
    control = subprocess.run(
        ["setpriv", "--groups", "4,27,999", "unshare", "--user", "--map-root-user", "id", "-G"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(control.stdout.split()) > 1  # a naive one keeps them, under another number


# ---- presets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_one_value_that_can_be_printed_and_pickled(name: str) -> None:
    security = preset(name)
    assert security is preset(name)
    assert pickle.loads(pickle.dumps(security)) == security  # noqa: S301
    assert repr(security).startswith("Security(capabilities=")
    assert security.no_new_privs
    assert not security.user_namespaces


@BOTH
@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("strict", ()),
        ("service", ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETFCAP", "SETGID", "SETUID")),
        ("compat", ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETFCAP", "SETGID",
                    "SETPCAP", "SETUID", "SYS_CHROOT")),
    ],
)  # fmt: skip
def test_a_preset_keeps_these_capabilities_and_no_others(name: str, kept: tuple[str, ...]) -> None:
    status = fields(ck.run(["cat", "/proc/self/status"], security=preset(name)).stdout)
    mask = Capabilities(*kept).mask
    found = {field: int(status[field], 16) for field in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    assert found == {"CapInh": 0, "CapPrm": mask, "CapEff": mask, "CapBnd": mask, "CapAmb": 0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


@pytest.mark.root
def test_services_change_owners_and_users_and_strict_programs_do_not() -> None:
    script = "touch /tmp/a; chown 5:6 /tmp/a && stat -c %u:%g /tmp/a; setpriv --reuid 7 --clear-groups id -u"
    assert ck.run(["sh", "-c", script], security=Security.service()).stdout.split() == ["5:6", "7"]
    assert ck.run(["sh", "-c", script]).stdout == ""


@BOTH
@pytest.mark.parametrize("name", PRESETS)
def test_explain_names_every_wall(name: str) -> None:
    lines = dict(line.split(": ", 1) for line in preset(name).explain().splitlines())
    assert set(lines) >= {"capabilities", "setuid programs", "seccomp", "Landlock", "user namespaces"}
    assert lines["user namespaces"] == "none inside"
    assert lines["Landlock"] == ("none" if name == "compat" else lines["Landlock"])


def test_explain_tells_of_every_option() -> None:
    security = Security(
        capabilities=Capabilities("KILL"),
        ambient=True,
        landlock=Landlock({"/srv": "read"}, bind_tcp=[80]),
        mdwe=True,
        sysctls={"net.core.somaxconn": 5},
        low_ports=True,
        session_keyring=True,
        core_scheduling=True,
        apparmor="profile",
        selinux="context",
        attest=True,
    )
    said = security.explain()
    for word in (
        "CAP_KILL; ambient too", "every system call", "/srv read; bind TCP 80", "MDWE", "net.core.somaxconn = 5",
        "below 1024", "session keyring", "core scheduling", "AppArmor: profile", "SELinux: context", "attested",
    ):  # fmt: skip
        assert word in said, word
    assert "gain what their owner has" in Security.unconfined_as_the_caller().explain()


# ---- what a sandbox says ---------------------------------------------------------------------------------------------


@BOTH
def test_enforced_tells_the_walls_of_the_programs_too() -> None:
    with Sandbox() as box:
        walls = box.enforced()
        assert box.enforced() == walls  # and looking changes nothing
        assert box.run(["true"]).ok
    assert walls["capabilities"] == "none, and none to be had"
    assert walls["seccomp"] == str(STRICT.seccomp).removeprefix("seccomp: ")
    assert "/tmp read write execute" in walls["Landlock"]
    assert walls["nested user namespaces"] == "none: user.max_user_namespaces is 0"
    if os.geteuid() == 0:  # the kernel lets an ordinary user drop none of theirs (setgroups(2), user_namespaces(7))
        assert walls["groups"] == "none beside its own"
    assert "paths of /proc are covered" in walls["covers"]


@BOTH
def test_enforced_claims_no_wall_of_programs_that_is_not_there() -> None:
    with Sandbox(security=Security.unconfined_as_the_caller()) as box:
        walls = box.enforced()
    assert not {"capabilities", "no_new_privs", "seccomp", "Landlock", "nested user namespaces"} & walls.keys()


@BOTH
def test_enforced_shows_what_of_the_host_is_seen(busybox_root: Path, tmp_path: Path) -> None:
    with Sandbox(rootfs=busybox_root) as box:
        assert box.enforced()["of the host"].startswith("devices /dev/full /dev/null")
    tmp_path.chmod(0o755)
    mounts = (Bind(tmp_path, "/in"), Bind(tmp_path, "/out", read_only=False))
    with Sandbox(rootfs=busybox_root, mounts=mounts) as box:
        assert box.enforced()["of the host"].startswith("read-only /in; writable /out; devices ")
    with Sandbox() as box:
        assert "/usr" in box.enforced()["of the host"]


@BOTH
def test_enforced_sees_a_mount_of_the_host_that_nobody_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The positive control: the answer comes from the mount table, not from what was asked for."""
    from containerkit import mounts

    compile_it = mounts.Tmpfs.compile

    def wrong(self: Any, build: Any) -> None:
        compile_it(self, build)
        Bind("/usr", "/tmp/host", read_only=False, idmap=False).compile(build)

    monkeypatch.setattr(mounts.Tmpfs, "compile", wrong)
    with Sandbox() as box:
        assert "writable /tmp/host;" in box.enforced()["of the host"]


@BOTH
def test_a_process_has_the_same_walls_without_a_sandbox() -> None:
    namespaces = Namespaces(user="new", mnt="new", pid="new")
    mounts = (ck.Proc(), ck.Tmpfs("/tmp"))
    options: dict[str, Any] = {"root": HOST, "namespaces": namespaces, "mounts": mounts, "security": STRICT}
    with Process(["cat", "/proc/sys/user/max_user_namespaces"], stdout=PIPE, text=True, **options) as process:
        assert process.communicate(timeout=10 * PATIENCE)[0] == "0\n"
