"""The plan: pure data, the same numbers on both of its ends, and a helper that no plan breaks."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import mutated_plans
import ordinary_user
import pytest
from hypothesis import given
from hypothesis import strategies as st

import containerkit
from containerkit import HOST, Bind, Dev, InvalidValue, Namespaces, Proc, Security, Sysfs, Tmpfs, explain, plan
from containerkit.kernel import helper
from containerkit.launch import Launch, compile_launch
from containerkit.plan import Mode, Op, Plan, Stage

PACKAGE = Path(containerkit.__file__).parent
TREE = PACKAGE.parent
CODES = {name: number for name, number in vars(plan.Code).items() if name.isupper()}

# ---- the header file -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def header() -> str:
    """plan.h without its comments."""
    path = PACKAGE / "_native/plan.h"
    if not path.exists():
        pytest.skip("an installed package has no C sources")
    return re.sub(r"/\*.*?\*/", " ", path.read_text(), flags=re.DOTALL)


def enumerators(header: str, pattern: str) -> dict[str, int]:
    """The names that match in the header's enumerations, and their values."""
    found: dict[str, int] = {}
    for body in re.findall(r"enum\s*\w*\s*\{(.*?)\}", header, flags=re.DOTALL):
        number = -1
        for entry in filter(None, map(str.strip, body.split(","))):
            name, _, value = (part.strip() for part in entry.partition("="))
            number = eval(value.replace("u", ""), {}) if value else number + 1  # noqa: S307  our own header
            if match := re.fullmatch(pattern, name):
                found[match[1]] = number
    return found


def definitions(header: str) -> dict[str, str]:
    return {name: value.strip() for name, value in re.findall(r"#define\s+(\w+)\s+(.+)", header)}


def test_operations_have_the_same_numbers_on_both_ends(header: str) -> None:
    theirs = enumerators(header, r"CK_OP_(\w+)")
    assert theirs.pop("COUNT") == max(CODES.values()) + 1
    assert theirs == CODES


def test_stages_and_modes_have_the_same_numbers_on_both_ends(header: str) -> None:
    stages = enumerators(header, r"CK_STAGE_(\w+)")
    assert stages.pop("COUNT") == len(Stage)
    assert stages == {stage.name: stage.value for stage in Stage}
    assert enumerators(header, r"CK_MODE_(\w+)") == {mode.name: mode.value for mode in Mode}


def test_flags_have_the_same_bits_on_both_ends(header: str) -> None:
    flags = enumerators(header, r"CK_F_(\w+)")
    assert len(flags) > 10
    assert len(set(flags.values())) == len(flags)
    assert {name: getattr(plan, name) for name in flags} == flags


def test_messages_have_the_same_numbers_on_both_ends(header: str) -> None:
    from containerkit import spawn

    theirs = enumerators(header, r"CK_MSG_(\w+)")
    assert len(theirs) == len(set(theirs.values()))
    ours = {name: getattr(spawn, f"_{name}", None) or getattr(spawn, name) for name in theirs}
    assert ours == theirs


def test_limits_and_descriptors_are_the_same_on_both_ends(header: str) -> None:
    defined = definitions(header)
    assert int(defined["CK_PLAN_MAGIC"].rstrip("u"), 16) == plan.MAGIC
    assert int(defined["CK_PLAN_VERSION"].rstrip("u")) == plan.VERSION
    assert int(defined["CK_SLOTS"]) == plan.SLOTS
    assert defined["CK_PLAN_MAX"] == "(16u << 20)"
    assert plan.SIZE_MAX == 16 << 20
    descriptors = enumerators(header, r"CK_FD_(\w+)")
    assert descriptors == {
        "PLAN": plan.FD_PLAN,
        "STATUS": plan.FD_STATUS,
        "OWNER": plan.FD_OWNER,
        "FIRST": plan.FD_FIRST,
    }


# Formats of struct for the C types that the header uses; native alignment is what a compiler does.
FORMATS = {"uint64_t": "Q", "uint32_t": "I", "int32_t": "i", "uint16_t": "H"}


def layout(header: str, name: str) -> struct.Struct:
    """A structure of the header as struct.Struct sees it, with native alignment."""
    body = re.search(rf"struct {name}\s*\{{(.*?)\}}", header, flags=re.DOTALL)
    assert body is not None
    fields = re.findall(r"(\w+)\s+(\w+(?:\s*,\s*\w+)*)\s*;", body[1])
    return struct.Struct("@" + "".join(FORMATS[kind] * len(names.split(",")) for kind, names in fields))


def test_structures_have_the_same_layout_on_both_ends(header: str) -> None:
    from containerkit import spawn

    pairs = (("ck_plan_header", plan._HEADER), ("ck_op", plan._OP), ("ck_msg", spawn.MESSAGE))
    for name, ours in pairs:
        theirs = layout(header, name)
        assert theirs.size == ours.size, name
        assert theirs.format.lstrip("@") == ours.format.lstrip("="), name


# ---- encoding --------------------------------------------------------------------------------------------------------


class Read(NamedTuple):
    code: int
    stage: int
    flags: int
    fd: int
    slot: int
    base: int
    a: int
    b: int
    strings: tuple[bytes, ...]


def decode(data: bytes) -> tuple[tuple[int, ...], list[Read]]:
    """A plan from its bytes, as the helper reads it."""
    header = struct.unpack_from("=IIIIIIQiI", data)
    at, ops = struct.calcsize("=IIIIIIQiI"), []
    while at < len(data):
        size, code, stage, count, flags, fd, slot, base, _, a, b = struct.unpack_from("=IHHIIiiiiQQ", data, at)
        assert size % 8 == 0
        strings, place = [], at + struct.calcsize("=IHHIIiiiiQQ")
        for _ in range(count):
            (length,) = struct.unpack_from("=I", data, place)
            strings.append(data[place + 4 : place + 4 + length])
            assert data[place + 4 + length] == 0
            place += 4 + (length + 4 & ~3)
        assert 0 <= at + size - place < 8
        ops.append(Read(code, stage, flags, fd, slot, base, a, b, tuple(strings)))
        at += size
    return header, ops


numbers, ids = st.integers(0, 2**64 - 1), st.integers(-1, 127)
operations = st.builds(
    lambda code, stage, strings, flags, fd, slot, base, a, b: Op(
        code, stage, "words", *strings, flags=flags, fd=fd, slot=slot, base=base, a=a, b=b
    ),
    st.sampled_from(sorted(CODES.values())),
    st.sampled_from(Stage),
    st.lists(st.binary(max_size=40), max_size=5),
    st.integers(0, 2**32 - 1),
    ids,
    ids,
    ids,
    numbers,
    numbers,
)


@given(st.sampled_from(Mode), st.lists(operations, max_size=9), st.booleans(), st.integers(0, 2**32))
def test_a_plan_is_read_as_it_was_written(mode: Mode, ops: list[Op], hop: bool, flags: int) -> None:
    made = Plan(mode, flags)
    made.add(*ops)
    made.hop = hop
    data = made.to_bytes()
    header, read = decode(data)
    assert header == (plan.MAGIC, plan.VERSION, len(data), len(ops), mode, plan.FD_FIRST, flags, -1, hop)
    assert read == [Read(o.code, o.stage, o.flags, o.fd, o.slot, o.base, o.a, o.b, tuple(o.strings)) for o in ops]


def test_a_plan_that_is_too_large_is_refused_with_its_size() -> None:
    made = Plan(Mode.EXEC)
    made.add(Op(plan.Code.EXEC, Stage.PROGRAM, "execute", b"x" * (16 << 20)))
    with pytest.raises(InvalidValue, match=r"take 167\d+ bytes"):
        made.to_bytes()


def test_descriptors_are_numbered_in_the_order_in_which_they_are_handed_over() -> None:
    made = Plan(Mode.EXEC)
    assert [made.fd(50), made.fd(40), made.fd(50)] == [plan.FD_FIRST, plan.FD_FIRST + 1, plan.FD_FIRST + 2]
    assert made.fds == [50, 40, 50]


def test_closing_a_plan_closes_what_it_owns_and_only_that() -> None:
    mine, its = (os.open("/dev/null", os.O_RDONLY) for _ in range(2))
    made = Plan(Mode.EXEC)
    made.fds += [mine, its]
    made.owned.append(its)
    made.close()
    made.close()
    os.close(mine)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.close(its)


def test_places_for_mounts_run_out_in_words() -> None:
    made = Plan(Mode.EXEC)
    slots = [made.slot() for _ in range(plan.SLOTS - 1 - plan.FIRST_FREE_SLOT)]
    assert len(set(slots)) == len(slots)
    assert max(slots) < plan.SLOTS
    with pytest.raises(InvalidValue, match="bind a common parent"):
        made.slot()


# ---- compiling -------------------------------------------------------------------------------------------------------

STANDARD = (Proc(), Sysfs(), Dev(), Tmpfs("/tmp"))


def compiled(**options: object) -> Plan:
    given = {"namespaces": Namespaces.all(), "root": HOST, "mounts": STANDARD, "security": Security.strict(), **options}
    made = compile_launch(Launch(["/bin/true"], **given), None)  # type: ignore[arg-type]
    made.close()
    return made


def test_the_same_launch_compiles_to_the_same_bytes() -> None:
    assert compiled().to_bytes() == compiled().to_bytes()


def test_privilege_is_dropped_after_the_last_step_that_needs_it_and_before_the_program() -> None:
    inside = [op.code for op in compiled().in_order() if op.stage is Stage.INSIDE]
    assert inside.index(plan.Code.BECOME) == 0
    assert inside[-1] == plan.Code.CREDS
    assert inside.count(plan.Code.PIVOT) == 1
    mounts = {plan.Code.FS, plan.Code.ATTACH, plan.Code.TREE, plan.Code.MASK, plan.Code.READONLY, plan.Code.ATTR}
    assert not mounts & set(inside[inside.index(plan.Code.PIVOT) :])
    last = [op.code for op in compiled().in_order() if op.stage is Stage.PROGRAM]
    assert last[-1] == plan.Code.EXEC
    assert not mounts & set(last)


def test_every_root_is_private_before_anything_is_mounted() -> None:
    order = [op.code for op in compiled().in_order()]
    assert order.index(plan.Code.PRIVATE) < order.index(plan.Code.SCRATCH) < order.index(plan.Code.PIVOT)


def test_compiling_starts_nothing_and_keeps_nothing_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    compiled(mounts=(*STANDARD, Bind(tmp_path, "/data")))
    with pytest.raises(containerkit.NotFound):
        compiled(mounts=(Bind(tmp_path, "/data"), Bind(tmp_path / "missing", "/x")))
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_words_name_every_step_and_who_does_it(tmp_path: Path) -> None:
    text = explain(["/bin/echo", "hello"], mounts=[Bind(tmp_path, "/data")])
    for words in ("new namespaces: user, mnt, pid, ipc, uts", "make a new network", "bring the loopback",
                  "drop every capability", "execute /bin/echo hello", f"bind {tmp_path}", "stays as PID 1",
                  "make it the root"):  # fmt: skip
        assert words in text
    assert len(text.splitlines()) > 30


# ---- a helper that no plan breaks ------------------------------------------------------------------------------------


def run_helper(content: bytes, *, fds: int = 6) -> int:
    """The helper as a program of its own with these bytes as its plan; its exit status."""
    script = 'exec 3<"$1" 4<>/dev/null 5</dev/null; exec "$2"'
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        done = subprocess.run(["sh", "-c", script, "sh", file.name, helper.path()], timeout=10, check=False)
    return done.returncode


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"CKPL",
        b"\0" * 40,
        b"\xff" * 4096,
        struct.pack("=IIIIIIQiI", plan.MAGIC, plan.VERSION + 1, 40, 0, 0, 6, 0, -1, 0),
        struct.pack("=IIIIIIQiI", plan.MAGIC, plan.VERSION, 41, 0, 0, 6, 0, -1, 0),
        struct.pack("=IIIIIIQiI", plan.MAGIC, plan.VERSION, 40, 1, 0, 6, 0, -1, 0),
        struct.pack("=IIIIIIQiI", plan.MAGIC, plan.VERSION, 40, 0xFFFFFFFF, 0, 6, 0, -1, 0),
        struct.pack("=IIIIIIQiI", plan.MAGIC, plan.VERSION, 40, 0, 3, 6, 0, -1, 0),
        struct.pack("=IIIIIIQiI", plan.MAGIC, plan.VERSION, 40, 0, 0, 5, 0, -1, 0),
        struct.pack("=IIIIIIQiI", plan.MAGIC, plan.VERSION, 40, 0, 0, 6, 0, 6, 0),
    ],
    ids=["empty", "short", "zeros", "ones", "version", "size", "operations", "many", "mode", "descriptors", "cgroup"],
)
def test_what_is_no_plan_is_refused_before_anything_is_done(content: bytes) -> None:
    assert run_helper(content) == 64


def test_the_helper_alone_does_nothing() -> None:
    assert subprocess.run([helper.path(), "--help"], timeout=10, check=False, capture_output=True).returncode == 64


BAD = {
    "no code": {"code": 0},
    "unknown code": {"code": max(CODES.values()) + 1},
    "unknown stage": {"stage": 5},
    "slot too high": {"slot": 128},
    "slot too low": {"slot": -2},
    "base too high": {"base": 128},
    "descriptor that was not given": {"fd": 6},
    "negative descriptor": {"fd": -2},
}


@pytest.mark.parametrize("bad", BAD)
def test_an_operation_with_an_index_out_of_bounds_is_refused(bad: str) -> None:
    values = {"code": plan.Code.UMASK, "stage": 4, "fd": -1, "slot": -1, "base": -1, **BAD[bad]}
    op = struct.pack(
        "=IHHIIiiiiQQ", 56, values["code"], values["stage"], 0, 0, values["fd"], values["slot"], values["base"], 0, 0, 0
    )
    content = struct.pack("=IIIIIIQiI", plan.MAGIC, plan.VERSION, 40 + len(op), 1, 0, 6, 0, -1, 0) + op
    assert run_helper(content) == 64


@pytest.mark.parametrize("code", ["TREE", "FS", "CLONE", "PTY"])
def test_an_operation_that_fills_a_slot_must_name_one(code: str) -> None:
    made = Plan(Mode.EXEC)
    made.add(Op(CODES[code], Stage.JOIN, "x", b"tmpfs"))
    assert run_helper(made.to_bytes()) == 64


@pytest.mark.parametrize("length", [1, 2, 7, 0x7FFFFFFF, 0xFFFFFFF8, 0xFFFFFFFF])
def test_a_string_that_is_longer_than_its_operation_is_refused(length: int) -> None:
    op = (
        struct.pack("=IHHIIiiiiQQ", 64, plan.Code.CHDIR, 4, 1, 0, -1, -1, -1, 0, 0, 0)
        + struct.pack("=I", length)
        + b"/xyz"
    )
    content = struct.pack("=IIIIIIQiI", plan.MAGIC, plan.VERSION, 40 + len(op), 1, 0, 6, 0, -1, 0) + op
    assert run_helper(content) == 64


def mutations(helper_path: str, root: Path, seed: int, count: int) -> list[dict[str, object]]:
    program = [sys.executable, mutated_plans.__file__, helper_path, str(root), str(seed), str(count)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(program, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    *found, last = map(json.loads, done.stdout.splitlines())
    assert last == {"done": count}
    return found


@pytest.mark.rootless
def test_three_hundred_broken_plans_break_nothing(busybox_root: Path) -> None:
    assert mutations("", busybox_root, seed=int.from_bytes(os.urandom(4), "little"), count=300) == []


@pytest.fixture(scope="module")
def sanitized_helper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sanitized")
    command = [sys.executable, str(TREE / "build_ext.py"), "--sanitize", "--out", str(directory)]
    built = subprocess.run(command, check=False, capture_output=True, text=True)
    if built.returncode:
        pytest.skip(f"no compiler with sanitizers: {built.stderr}")
    return directory / "ck-init"


@pytest.mark.slow
@pytest.mark.rootless
@pytest.mark.parametrize("seed", range(0, 20_000, 1000))
def test_twenty_thousand_broken_plans_break_nothing_that_a_sanitizer_sees(
    busybox_root: Path, sanitized_helper: Path, seed: int
) -> None:
    assert mutations(str(sanitized_helper), busybox_root, seed, count=1000) == []


@pytest.mark.root
def test_broken_plans_are_never_tried_as_root() -> None:
    with pytest.raises(AssertionError, match="root's rights"):
        mutated_plans.main("", "/", 0, 1)
    assert ordinary_user.is_root()
