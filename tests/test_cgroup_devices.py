"""Device allow-lists of cgroups: the program and the v1 rules as data, and what the kernel makes of them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import ebpf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_device import DEVICES

import containerkit as ck
from containerkit import NotPermitted
from containerkit.cgroup.devices import assemble, changes, lift, restrict
from containerkit.cgroup.directory import OPEN, Directory
from containerkit.cgroup.layout import Layout
from containerkit.device import STANDARD, Device, allow_list
from containerkit.kernel import bpf

ACCESS = {"m": ebpf.MKNOD, "r": ebpf.READ, "w": ebpf.WRITE}
KIND = {"b": ebpf.BLOCK, "c": ebpf.CHAR}


# ---- as data ---------------------------------------------------------------------------------------------------------


def test_the_program_for_one_node_is_these_bytes() -> None:
    lines = [
        "61 12 0000 00000000",  # r2 = access << 16 | kind
        "bc 23 0000 00000000",
        "54 02 0000 ffff0000",
        "74 03 0000 10000000",
        "61 14 0400 00000000",  # r4 = major
        "61 15 0800 00000000",  # r5 = minor
        "55 02 0700 02000000",  # a character device?
        "bc 31 0000 00000000",
        "54 01 0000 05000000",  # nothing but "r"?
        "55 01 0400 00000000",
        "55 04 0300 01000000",
        "55 05 0200 03000000",
        "b4 00 0000 01000000",
        "95 00 0000 00000000",
        "b4 00 0000 00000000",
        "95 00 0000 00000000",
    ]
    assert assemble(allow_list(["c 1:3 r"])) == bytes.fromhex(" ".join(lines))


@settings(deadline=None)
@given(st.lists(DEVICES, max_size=6), st.lists(DEVICES, min_size=1, max_size=6))
def test_the_program_allows_what_the_rules_allow(rules: list[Device], requests: list[Device]) -> None:
    code = ebpf.decode(assemble(allow_list(rules)))
    for asked in requests:
        node = (asked.kind, asked.major or 0, asked.minor or 0)
        allowed = {letter for rule in rules if rule.covers(node) for letter in rule.access}
        answer = ebpf.run(code, KIND[asked.kind], sum(ACCESS[letter] for letter in asked.access), *node[1:])
        assert answer == (set(asked.access) <= allowed)


class Listing:
    """devices.list, as security/device_cgroup.c keeps it."""

    def __init__(self) -> None:
        self.default_allow = True
        self.exceptions: dict[tuple[str, int | None, int | None], set[str]] = {}

    def write(self, file: str, rule: str) -> None:
        if rule == "a":
            assert file == "devices.deny", "this would allow everything"
            self.default_allow, self.exceptions = False, {}
            return
        (device,) = allow_list([rule])
        if file == "devices.allow":
            self.exceptions.setdefault(device.node, set()).update(device.access)
        elif device.node in self.exceptions:  # an exact match alone is taken away
            self.exceptions[device.node] -= set(device.access)
            if not self.exceptions[device.node]:
                del self.exceptions[device.node]

    def __str__(self) -> str:
        if self.default_allow:
            return "a *:* rwm\n"
        return "".join(f"{Device(*node, ''.join(access))}\n" for node, access in self.exceptions.items())


@settings(deadline=None)
@given(st.lists(st.lists(DEVICES, max_size=4), min_size=1, max_size=3))
def test_the_v1_list_becomes_the_wanted_one_whatever_it_was(lists: list[list[Device]]) -> None:
    listing = Listing()
    for rules in lists:
        wanted = allow_list(rules)
        for file, rule in list(changes(str(listing), wanted)):
            listing.write(file, rule)
        assert sorted(str(listing).splitlines()) == [str(device) for device in wanted]


def test_a_v1_list_that_changes_never_loses_what_stays() -> None:
    before, after = allow_list(["c 1:3 rwm", "c 1:5 r"]), allow_list(["c 1:3 r", "c 1:8 r"])
    text = "\n".join(map(str, before))
    assert list(changes(text, after)) == [
        ("devices.allow", "c 1:3 r"),
        ("devices.allow", "c 1:8 r"),
        ("devices.deny", "c 1:3 wm"),
        ("devices.deny", "c 1:5 r"),
    ]


# ---- in the kernel ---------------------------------------------------------------------------------------------------

TRY = """
import errno, os, sys
open(sys.argv[1] + "/cgroup.procs", "w").write("0")
for node, flags in (line.split() for line in sys.stdin):
    try:
        if flags == "m":
            os.mknod(sys.argv[2] + "/made", 0o600 | 0o020000, eval(node))
            os.unlink(sys.argv[2] + "/made")
        else:
            os.close(os.open(node, {"r": os.O_RDONLY, "w": os.O_WRONLY, "rw": os.O_RDWR}[flags]))
        print("yes")
    except OSError as error:
        print(errno.errorcode[error.errno])
"""


class Group:
    """A cgroup of one test, of the v1 hierarchy with devices or of v2."""

    def __init__(self, path: Path, version: int, scratch: Path) -> None:
        self.path, self.scratch = path, scratch
        path.mkdir()
        self.directory = Directory(os.open(path, OPEN), ("devices",) if version == 1 else (), version, str(path))

    def child(self) -> Group:
        return Group(self.path / "child", self.directory.version, self.scratch)

    def remove(self) -> None:
        self.directory.close()
        self.path.rmdir()

    def tries(self, *requests: str) -> list[str]:
        """What a process in the group is told when it opens a node ("/dev/null rw") or makes one ("0x103 m")."""
        argv = [sys.executable, "-I", "-S", "-c", TRY, self.path, self.scratch]
        done = subprocess.run(argv, input="\n".join(requests), capture_output=True, text=True, timeout=20)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
def group(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Group]:
    layout = Layout.current()
    hierarchy = layout.find("devices") if request.param == 1 else layout.unified
    if hierarchy is None:
        pytest.skip(f"no v{request.param} hierarchy for devices is mounted")
    made = Group(Path(hierarchy.base) / f"ck-test-devices-{os.getpid()}", request.param, tmp_path)
    yield made
    made.remove()


@pytest.mark.root
def test_a_listed_node_can_be_opened_and_no_other(group: Group) -> None:
    requests = ["/dev/null rw", "/dev/zero r", "/dev/zero w", "/dev/zero rw", "/dev/urandom r", "/etc/passwd r"]
    assert group.tries(*requests) == ["yes"] * 6  # without a list all of them can
    restrict(group.directory, allow_list(["/dev/null", "/dev/zero r"]))
    assert group.tries(*requests) == ["yes", "yes", "EPERM", "EPERM", "EPERM", "yes"]


@pytest.mark.root
def test_making_a_node_is_a_right_of_its_own(group: Group) -> None:
    null, zero = f"{os.makedev(1, 3)} m", f"{os.makedev(1, 5)} m"
    assert group.tries(null, zero) == ["yes", "yes"]
    restrict(group.directory, allow_list(["c 1:3 rw", "c 1:5 m"]))
    assert group.tries(null, zero, "/dev/null rw", "/dev/zero r") == ["EPERM", "yes", "yes", "EPERM"]


@pytest.mark.root
def test_an_empty_list_allows_nothing(group: Group) -> None:
    restrict(group.directory, ())
    assert group.tries("/dev/null r", "/dev/zero w", f"{os.makedev(1, 3)} m") == ["EPERM"] * 3


@pytest.mark.root
def test_rules_that_overlap_allow_together_what_each_allows(group: Group) -> None:
    restrict(group.directory, allow_list(["/dev/null r", "c 1:* w"]))
    assert group.tries("/dev/null rw", "/dev/zero rw", "/dev/zero w") == ["yes", "EPERM", "yes"]


@pytest.mark.root
def test_all_numbers_can_be_allowed(group: Group) -> None:
    restrict(group.directory, allow_list(["c *:* rw"]))
    assert group.tries("/dev/null rw", "/dev/urandom r", f"{os.makedev(1, 3)} m") == ["yes", "yes", "EPERM"]


@pytest.mark.root
def test_a_later_list_replaces_the_one_before(group: Group) -> None:
    restrict(group.directory, allow_list(["/dev/null"]))
    restrict(group.directory, allow_list(["/dev/zero"]))
    assert group.tries("/dev/null r", "/dev/zero r") == ["EPERM", "yes"]
    if group.directory.version == 2:
        assert len(bpf.device_programs(group.directory.fileno())) == 1


@pytest.mark.root
def test_a_list_that_is_lifted_is_gone(group: Group) -> None:
    lift(group.directory)  # there is none yet
    restrict(group.directory, allow_list(["/dev/null"]))
    lift(group.directory)
    assert group.tries("/dev/null rw", "/dev/zero r", f"{os.makedev(1, 3)} m") == ["yes"] * 3
    if group.directory.version == 2:
        assert bpf.device_programs(group.directory.fileno()) == []


@pytest.mark.root
def test_a_list_that_is_lifted_leaves_that_of_the_group_above(group: Group) -> None:
    restrict(group.directory, allow_list(["/dev/null", "/dev/zero"]))
    child = group.child()
    try:
        restrict(child.directory, allow_list(["/dev/null"]))
        assert child.tries("/dev/null r", "/dev/zero r", "/dev/full r") == ["yes", "EPERM", "EPERM"]
        lift(child.directory)
        assert child.tries("/dev/null r", "/dev/zero r", "/dev/full r") == ["yes", "yes", "EPERM"]
    finally:
        child.remove()


@pytest.mark.root
def test_a_list_can_change_above_groups_that_have_children(group: Group) -> None:
    restrict(group.directory, allow_list(["/dev/null", "/dev/zero"]))
    child = group.child()
    try:
        restrict(group.directory, allow_list(["/dev/zero", "/dev/full"]))
        assert child.tries("/dev/null r", "/dev/zero r") == ["EPERM", "yes"]
    finally:
        child.remove()


@pytest.mark.root
def test_a_child_gets_no_device_that_the_group_above_may_not_use(group: Group) -> None:
    restrict(group.directory, allow_list(["/dev/null"]))
    child = group.child()
    try:
        if group.directory.version == 1:
            with pytest.raises(NotPermitted, match="above") as caught:
                restrict(child.directory, allow_list(["/dev/zero"]))
            assert caught.value.errno == errno.EPERM
        else:
            restrict(child.directory, allow_list(["/dev/null", "/dev/zero"]))
        assert child.tries("/dev/zero r") == ["EPERM"]
    finally:
        child.remove()


@pytest.mark.root
def test_a_long_list_is_one_that_the_kernel_takes(group: Group) -> None:
    restrict(group.directory, allow_list([*STANDARD, *(f"b {major}:* r" for major in range(1, 200))]))
    assert group.tries("/dev/null rw", "/dev/kmsg r") == ["yes", "EPERM"]


@pytest.mark.root
@pytest.mark.parametrize("group", [2], ids=["v2"], indirect=True)
def test_the_program_of_another_stays_attached(group: Group) -> None:
    cgroup = group.directory.fileno()
    for name in (b"theirs", b"ck_devices_2"):
        program = bpf.load_device_program(assemble(allow_list(["/dev/null", "/dev/zero"])), name)
        bpf.attach_device_program(cgroup, program)
        os.close(program)
    for rules in (["/dev/null", "/dev/full"], ["/dev/zero", "/dev/full"]):
        restrict(group.directory, allow_list(rules))
    assert len(bpf.device_programs(cgroup)) == 3
    assert group.tries("/dev/null r", "/dev/zero r", "/dev/full r") == ["EPERM", "yes", "EPERM"]


@pytest.mark.root
def test_the_programs_of_a_sandbox_have_its_devices() -> None:
    limits = ck.Limits(devices=["/dev/null"])
    script = ["sh", "-c", "echo > /dev/null && echo null; head -c 1 /dev/zero || echo no"]
    assert ck.run(script, limits=limits).stdout == "null\nno\n"
    with ck.Sandbox(limits=limits) as sandbox:
        assert sandbox.run(script).stdout == "null\nno\n"


@pytest.mark.root
def test_a_terminal_that_the_list_has_not_is_said_to_be_missing() -> None:
    options = {"namespaces": ck.Namespaces(mnt="new", pid="new"), "root": ck.HOST, "mounts": [ck.Proc(), ck.Dev()]}
    with ck.Cgroup.create(limits=ck.Limits(devices=["/dev/null"])) as group:
        with pytest.raises(ck.SpawnError, match="c 136"):
            ck.Process(["true"], tty=True, cgroup=group, **options)
        group.update(ck.Limits(devices=["/dev/null", "c 5:2", "c 136:*"]))
        with ck.Process(["true"], tty=True, cgroup=group, **options) as process:
            assert process.wait() == 0


@pytest.mark.rootless
def test_without_the_capabilities_the_refusal_names_them() -> None:
    with pytest.raises(NotPermitted, match="CAP_BPF and CAP_NET_ADMIN"):
        bpf.load_device_program(assemble(()), b"refused")
