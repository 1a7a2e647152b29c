"""Attestation: the caller looks at a process in front of its exec, and finds each fault that is in the plan."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from patience import PATIENCE

import containerkit as ck
from containerkit import (
    HOST,
    PIPE,
    Bind,
    Capabilities,
    Dev,
    Landlock,
    MountTree,
    Namespaces,
    OverlayFS,
    Proc,
    Process,
    Sandbox,
    Security,
    SpawnError,
    Sysfs,
    Tmpfs,
)
from containerkit import plan as p
from containerkit.kernel import calls
from containerkit.plan import Code, Op, Plan, Stage

BOTH = pytest.mark.both
ATTESTED = attrs.evolve(Security.strict(), attest=True)

Fault = Callable[[list[Op]], list[Op]]


# ---- what is as it was asked for passes ------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("preset", ["strict", "service", "compat"])
def test_a_start_that_is_what_was_asked_for_passes(preset: str) -> None:
    security = attrs.evolve(getattr(Security, preset)(), attest=True)
    assert ck.run(["echo", "hello"], security=security).stdout == "hello\n"


@BOTH
def test_every_kind_of_root_and_mount_passes(busybox_root: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    mounts = (
        Bind(tmp_path, "/in"),
        Bind(tmp_path, "/out", read_only=False, noexec=True, nosymfollow=True),
        ck.File("/etc/word", "content"),
        Tmpfs("/more", noexec=True),
        Sysfs("/more/sys"),
    )
    for root in (None, busybox_root, OverlayFS(busybox_root, read_only=True)):
        assert ck.run(["true"], rootfs=root, security=ATTESTED).ok
    assert ck.run(["cat", "/etc/word"], rootfs=busybox_root, mounts=mounts, security=ATTESTED).stdout == "content"


@BOTH
def test_programs_of_a_sandbox_are_attested_each() -> None:
    with Sandbox(security=ATTESTED) as box:
        assert box.run(["true"]).ok
        assert box.run(["true"]).ok


@BOTH
@pytest.mark.parametrize("init", [True, False])
def test_a_process_with_and_without_a_pid_1_is_attested(init: bool) -> None:
    namespaces = Namespaces(user="new", mnt="new", pid="new")
    options: dict[str, Any] = {"root": HOST, "namespaces": namespaces, "mounts": (Proc(), Dev(), Tmpfs("/tmp"))}
    with Process(["true"], init=init, security=ATTESTED, **options) as process:
        assert process.wait(10 * PATIENCE) == 0


@pytest.mark.root
def test_a_process_of_the_hosts_own_is_attested_as_far_as_it_differs() -> None:
    with Process(["echo", "hello"], stdout=PIPE, security=ATTESTED) as process:
        assert process.communicate(timeout=10 * PATIENCE)[0] == b"hello\n"


@pytest.mark.root
@pytest.mark.parametrize("options", [{"user": 1000}, {"user": "nobody"}, {"user": "1:2"}])
def test_other_users_are_attested(options: dict[str, Any]) -> None:
    assert ck.run(["true"], security=ATTESTED, **options).ok


@pytest.mark.root
def test_groups_are_attested() -> None:
    with Process(["true"], user=5, groups=(6, 7), security=ATTESTED) as process:
        assert process.wait(10 * PATIENCE) == 0


# ---- what is not is refused ------------------------------------------------------------------------------------------


def replaced(code: int, change: Callable[[Op], list[Op]]) -> Fault:
    """A fault that does something else in the place of one kind of step."""
    return lambda ops: [new for op in ops for new in (change(op) if op.code == code else [op])]


def again(op: Op, **other: Any) -> Op:
    """The same step with something changed."""
    old = {"flags": op.flags, "fd": op.fd, "slot": op.slot, "base": op.base, "a": op.a, "b": op.b}
    return Op(op.code, op.stage, op.words, *op.strings, **{**old, **other})


def before_pivot(*ops: Op) -> Fault:
    def change(given: list[Op]) -> list[Op]:
        at = next(n for n, op in enumerate(given) if op.code == Code.PIVOT)
        return [*given[:at], *ops, *given[at:]]

    return change


def in_slot(slot: int, code: int, **other: Any) -> Fault:
    return replaced(code, lambda op: [again(op, **other) if op.slot == slot else op])


HOST_AT_TMP = (
    Op(Code.TREE, Stage.INSIDE, "take the host", b"/usr", slot=p.SLOT_TEMP, b=1 << 18),
    Op(Code.ATTACH, Stage.INSIDE, "show it", b"tmp", slot=p.SLOT_TEMP, base=p.SLOT_ROOT),
)
FAULTS: dict[str, tuple[Fault, str]] = {
    "a capability is kept": (
        replaced(Code.CREDS, lambda op: [again(op, a=1 << 21)]),
        "CapBnd mask is 0x200000 and not 0x0",
    ),
    "the bounding set is left": (
        replaced(Code.CREDS, lambda op: [again(op, flags=op.flags & ~p.DROP_BOUNDING)]),
        "CapBnd mask is 0x",
    ),
    "no_new_privs is forgotten": (
        lambda ops: replaced(Code.CREDS, lambda op: [again(op, flags=op.flags & ~p.NNP)])(
            [op for op in ops if op.code not in (Code.SECCOMP, Code.LANDLOCK)]
        ),
        "NoNewPrivs is 0 and not 1",
    ),
    "the filter is not loaded": (replaced(Code.SECCOMP, lambda op: []), "Seccomp mode is 0 and not 2"),
    "a mount is missing": (
        replaced(Code.ATTACH, lambda op: [] if op.strings[0] == b"tmp" else [op]),
        "nothing is mounted on /tmp",
    ),
    "the root stays writable": (
        replaced(Code.ATTR, lambda op: [] if op.slot == p.SLOT_ROOT else [op]),
        "/ is mounted without ro",
    ),
    "/dev stays writable": (
        replaced(Code.ATTR, lambda op: [] if op.slot == p.SLOT_DEV else [op]),
        "/dev is mounted without ro",
    ),
    "/proc takes setuid programs": (in_slot(p.SLOT_PROC, Code.FS, a=0), "/proc is mounted without nodev, noexec"),
    "the host is mounted over /tmp": (before_pivot(*HOST_AT_TMP), "/tmp is mounted without"),
    "the host is mounted over /tmp with the flags of /tmp": (
        before_pivot(again(HOST_AT_TMP[0], a=calls.MOUNT_ATTR_NOSUID | calls.MOUNT_ATTR_NODEV), HOST_AT_TMP[1]),
        "and not tmpfs",
    ),
    "a mount more": (
        before_pivot(
            HOST_AT_TMP[0],
            Op(Code.ATTACH, Stage.INSIDE, "", b"host", flags=p.MKDIR, slot=p.SLOT_TEMP, base=p.SLOT_ROOT, a=0o755),
        ),
        "a mount that nobody asked for: <",
    ),
    "a destination is hidden": (
        before_pivot(
            Op(Code.TREE, Stage.INSIDE, "", b"/usr", slot=p.SLOT_TEMP, b=1 << 18),
            Op(Code.ATTACH, Stage.INSIDE, "", b"deep", slot=p.SLOT_TEMP, base=p.SLOT_ROOT),
        ),
        "nothing is mounted on /deep/er (it is hidden below <",
    ),
}


@pytest.fixture
def with_fault(monkeypatch: pytest.MonkeyPatch) -> Callable[[Fault], None]:
    """Puts a fault into every plan between its compilation and its bytes."""

    def put(fault: Fault) -> None:
        to_bytes = Plan.to_bytes

        def faulty(self: Plan) -> bytes:
            # The root is writable until the end: a fault that adds to it comes before.
            self.ops = fault(self.ops)
            return to_bytes(self)

        monkeypatch.setattr(Plan, "to_bytes", faulty)

    return put


@BOTH
@pytest.mark.parametrize("name", list(FAULTS))
def test_a_fault_in_the_plan_is_found_and_nothing_runs(
    name: str, with_fault: Callable[[Fault], None], tmp_path: Path
) -> None:
    tmp_path.chmod(0o777)
    fault, said = FAULTS[name]
    if name == "a mount more":
        fault = writable_first(fault)
    with_fault(fault)
    mounts = (Bind(tmp_path, "/out", read_only=False), Tmpfs("/deep/er"))
    with pytest.raises(SpawnError, match="attest the process: it is not what was asked for") as caught:
        ck.run(["touch", "/out/ran"], mounts=mounts, security=ATTESTED)
    assert said in (caught.value.hint or "")
    assert not (tmp_path / "ran").exists()


def writable_first(fault: Fault) -> Fault:
    """The step that makes the root read-only comes last, as a fault that adds to the root needs it."""

    def change(ops: list[Op]) -> list[Op]:
        last = [op for op in ops if op.code == Code.ATTR and op.slot == p.SLOT_ROOT]
        rest = fault([op for op in ops if op not in last])
        at = next(n for n, op in enumerate(rest) if op.code == Code.PIVOT)
        return [*rest[:at], *last, *rest[at:]]

    return change


@BOTH
@pytest.mark.parametrize("name", [name for name in FAULTS if "filter" not in name])
def test_without_attestation_the_same_fault_goes_unseen(name: str, with_fault: Callable[[Fault], None]) -> None:
    """The positive control: each of these faults lets a program start."""
    fault, _ = FAULTS[name]
    with_fault(writable_first(fault) if name == "a mount more" else fault)
    assert ck.run(["true"], mounts=[Tmpfs("/deep/er")], security=Security.strict()).ok


@pytest.mark.root
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"b": 5 | 5 << 32}, "Uid is"),
        ({"b": 1000 | 7 << 32}, "Gid is"),
        ({"flags": p.KEEP_CREDS}, "Uid is"),
    ],
)
def test_other_ids_than_those_asked_for_are_found(
    change: dict[str, int], said: str, with_fault: Callable[[Fault], None]
) -> None:
    keep = {"flags": lambda op: op.flags | p.KEEP_CREDS}
    with_fault(
        replaced(Code.CREDS, lambda op: [again(op, **{k: keep[k](op) if k in keep else v for k, v in change.items()})])
    )
    with pytest.raises(SpawnError) as caught:
        ck.run(["true"], user=1000, security=ATTESTED)
    assert said in (caught.value.hint or "")


@pytest.mark.root
def test_a_group_of_the_callers_is_found(with_fault: Callable[[Fault], None]) -> None:
    with_fault(
        replaced(
            Code.CREDS,
            lambda op: [Op(op.code, op.stage, op.words, *op.strings, b"\x1b\0\0\0", flags=op.flags, a=op.a, b=op.b)],
        )
    )
    with pytest.raises(SpawnError) as caught:
        ck.run(["true"], security=ATTESTED)
    assert "Groups is [" in (caught.value.hint or "")


@BOTH
def test_a_fault_in_a_joiner_is_found(with_fault: Callable[[Fault], None]) -> None:
    with Sandbox(security=ATTESTED) as box:
        assert box.run(["true"]).ok
        with_fault(FAULTS["the filter is not loaded"][0])
        with pytest.raises(SpawnError, match="Seccomp mode is 0"):
            box.run(["true"])


@BOTH
def test_a_destination_behind_a_link_cannot_be_attested(tmp_path: Path, busybox_root: Path) -> None:
    security = ATTESTED
    root = tmp_path / "root"
    root.mkdir()
    (root / "real").mkdir()
    (root / "link").symlink_to("real")
    for path in (tmp_path, root):
        path.chmod(0o755)
    mounts = (Bind(busybox_root / "bin", "/bin"), Tmpfs("/link"))
    with pytest.raises(SpawnError, match=r"nothing is mounted on /link \(a destination must not"):
        ck.run(["true"], rootfs=root, mounts=mounts, security=security)


@BOTH
def test_attestation_is_a_step_that_is_told() -> None:
    assert "wait until the caller has looked at it" in ck.explain(["true"], security=ATTESTED)
    assert "looked at it" not in ck.explain(["true"])


@pytest.mark.root
def test_a_root_with_mounts_of_its_own_is_attested_without_them(busybox_root: Path) -> None:
    with MountTree.clone(busybox_root) as tree:
        assert ck.run(["true"], rootfs=tree, security=attrs.evolve(ATTESTED, capabilities=Capabilities("KILL"))).ok


def test_it_may_stand_alone() -> None:
    security = Security(attest=True, landlock=Landlock({"/": "read execute"}))
    with Process(["true"], security=security, env={"PATH": os.environ["PATH"]}) as process:
        assert process.wait(10 * PATIENCE) == 0
