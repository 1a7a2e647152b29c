"""Seccomp profiles in docker's and podman's JSON: what they say is what the filter answers."""

from __future__ import annotations

import ctypes
import json
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from security import bpf

from containerkit import Capabilities, InvalidValue
from containerkit.security import syscalls
from containerkit.security.seccomp import Action, Seccomp

ALLOW = int(Action.ALLOW)
EPERM = int(Action.errno("EPERM"))
ENOSYS = int(Action.errno("ENOSYS"))
PODMAN = Path("/usr/share/containers/seccomp.json")


def answer(policy: Seccomp, call: str, *args: int, machine: str = "x86_64", architecture: str | None = None) -> int:
    of = architecture or machine
    code = bpf.decode(policy.program(machine))
    return bpf.run(code, syscalls.numbers(of)[call], args, architecture=of).value


def profile(*entries: Mapping[str, Any], default: str = "SCMP_ACT_ERRNO", **more: Any) -> dict[str, Any]:
    return {"defaultAction": default, "syscalls": list(entries), **more}


def read(*entries: Mapping[str, Any], **more: Any) -> Seccomp:
    options = {key: more.pop(key) for key in ("capabilities", "kernel") if key in more}
    return Seccomp.from_json(profile(*entries, **more), architecture="x86_64", **options)


def allow(*names: str, **more: Any) -> dict[str, Any]:
    return {"names": list(names), "action": "SCMP_ACT_ALLOW", **more}


def condition(op: str, value: int, value_two: int = 0, index: int = 2) -> dict[str, Any]:
    return {"index": index, "value": value, "valueTwo": value_two, "op": op}


# ---- the format ------------------------------------------------------------------------------------------------------

SAMPLE = """
{
  "defaultAction": "SCMP_ACT_ERRNO",
  "defaultErrnoRet": 38,
  "defaultErrno": "ENOSYS",
  "archMap": [
    {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
    {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]}
  ],
  "syscalls": [
    {"names": ["read", "write", "_llseek", "sync_file_range2"], "action": "SCMP_ACT_ALLOW", "args": [], "comment": "",
     "includes": {}, "excludes": {}},
    {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [
      {"index": 0, "value": 4294967295, "valueTwo": 0, "op": "SCMP_CMP_EQ"}]},
    {"names": ["mount"], "action": "SCMP_ACT_ERRNO", "args": null, "errnoRet": 1, "errno": "EPERM",
     "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
    {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
    {"name": "ptrace", "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
    {"names": ["arch_prctl"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64", "x32"]}}
  ]
}
"""


@pytest.mark.parametrize("form", ["text", "bytes", "dict"])
def test_a_profile_is_read_from_text_and_from_what_json_makes_of_it(form: str) -> None:
    given: Any = {"text": SAMPLE, "bytes": SAMPLE.encode(), "dict": json.loads(SAMPLE)}[form]
    policy = Seccomp.from_json(given, architecture="x86_64", kernel=(5, 14))
    assert answer(policy, "read") == ALLOW
    assert answer(policy, "getpid") == ENOSYS
    assert answer(policy, "mount") == EPERM
    assert answer(policy, "ptrace") == ALLOW
    assert answer(policy, "arch_prctl") == ALLOW
    assert answer(policy, "personality", 0xFFFFFFFF) == ALLOW
    assert answer(policy, "personality", 1) == ENOSYS


def test_without_an_errno_it_is_eperm() -> None:
    assert answer(read(), "getpid") == EPERM
    denied = {"names": ["read"], "action": "SCMP_ACT_ERRNO"}
    assert answer(read(denied, default="SCMP_ACT_ALLOW"), "read") == EPERM


@pytest.mark.parametrize(
    ("name", "value"),
    [("KILL", 1 << 31), ("KILL_PROCESS", 1 << 31), ("KILL_THREAD", 1 << 31), ("TRAP", 0x30000), ("LOG", 0x7FFC0000),
     ("NOTIFY", 0x7FC00000), ("ALLOW", 0x7FFF0000)],
)  # fmt: skip
def test_every_action_is_the_kernels(name: str, value: int) -> None:
    assert answer(read({"names": ["read"], "action": f"SCMP_ACT_{name}"}), "read") == value
    assert answer(read(default=f"SCMP_ACT_{name}"), "read") == value


@pytest.mark.parametrize(
    ("op", "value", "value_two", "holds", "fails"),
    [
        ("SCMP_CMP_EQ", 7, 0, [7], [0, 6, 8, 7 + (1 << 32)]),
        ("SCMP_CMP_NE", 7, 0, [0, 6, 8, 7 + (1 << 32)], [7]),
        ("SCMP_CMP_LT", 7, 0, [0, 6], [7, 8, 1 << 32, 6 + (1 << 32)]),
        ("SCMP_CMP_LE", 7, 0, [0, 7], [8, 1 << 32, 7 + (1 << 32)]),
        ("SCMP_CMP_GT", 7, 0, [8, 1 << 32, 1 << 63], [0, 7]),
        ("SCMP_CMP_GE", 7, 0, [7, 1 << 32, 1 << 63], [0, 6]),
        ("SCMP_CMP_LT", 7 + (1 << 32), 0, [0, 8, 6 + (1 << 32)], [7 + (1 << 32), 1 << 33]),
        ("SCMP_CMP_GE", 7 + (1 << 32), 0, [7 + (1 << 32), 1 << 33], [8, 6 + (1 << 32)]),
        ("SCMP_CMP_MASKED_EQ", 0x7E020000, 0, [0, 0x11, 0x80], [0x20000, 0x10000000, 0x10000011]),
        ("SCMP_CMP_MASKED_EQ", 0xF0, 0x30, [0x30, 0x3F, 0x130], [0, 0x20, 0x70]),
        ("SCMP_CMP_MASKED_EQ", 0xF0, 0x3F, [0x30, 0x3F], [0, 0x20, 0x70]),
        ("SCMP_CMP_MASKED_EQ", 0xF << 32, 1 << 32, [1 << 32, (1 << 32) + 5], [1, 2 << 32]),
    ],
)
def test_every_operator_compares_unsigned_numbers_of_64_bits(
    op: str, value: int, value_two: int, holds: Sequence[int], fails: Sequence[int]
) -> None:
    policy = read(allow("mmap", args=[condition(op, value, value_two)]))
    assert {arg: answer(policy, "mmap", 0, 0, arg) for arg in holds} == dict.fromkeys(holds, ALLOW)
    assert {arg: answer(policy, "mmap", 0, 0, arg) for arg in fails} == dict.fromkeys(fails, EPERM)


def test_all_conditions_of_a_rule_must_hold() -> None:
    policy = read(allow("mmap", args=[condition("SCMP_CMP_EQ", 1), condition("SCMP_CMP_EQ", 2, index=3)]))
    assert answer(policy, "mmap", 0, 0, 1, 2) == ALLOW
    assert answer(policy, "mmap", 0, 0, 1, 0) == EPERM
    assert answer(policy, "mmap", 0, 0, 0, 2) == EPERM


def test_the_sockets_that_docker_forbids_by_three_rules_stay_forbidden() -> None:
    policy = read(
        allow("socket", args=[condition("SCMP_CMP_LT", 38, index=0)]),
        allow("socket", args=[condition("SCMP_CMP_EQ", 39, index=0)]),
        allow("socket", args=[condition("SCMP_CMP_GT", 40, index=0)]),
    )
    assert {domain for domain in range(50) if answer(policy, "socket", domain) != ALLOW} == {38, 40}


@pytest.mark.parametrize("reverse", [False, True])
def test_where_rules_overlap_the_strictest_decides_in_either_order(reverse: bool) -> None:
    entries = [
        allow("clone"),
        {"names": ["clone"], "action": "SCMP_ACT_ERRNO", "args": [condition("SCMP_CMP_EQ", 5, index=1)]},
        {"names": ["clone"], "action": "SCMP_ACT_KILL_PROCESS", "args": [condition("SCMP_CMP_EQ", 6, index=2)]},
    ]
    policy = read(*(reversed(entries) if reverse else entries), default="SCMP_ACT_LOG")
    assert answer(policy, "clone", 0, 1, 0) == ALLOW
    assert answer(policy, "clone", 0, 5, 0) == EPERM
    assert answer(policy, "clone", 0, 5, 6) == 1 << 31


def test_of_two_rules_without_conditions_the_first_decides() -> None:
    denied = {"names": ["setns"], "action": "SCMP_ACT_ERRNO"}
    assert answer(read(allow("setns"), denied, default="SCMP_ACT_LOG"), "setns") == ALLOW
    assert answer(read(denied, allow("setns"), default="SCMP_ACT_LOG"), "setns") == EPERM


def test_a_rule_with_the_default_action_still_counts() -> None:
    """runc drops it (its commit 7158007 tells what came of that)."""
    policy = read(
        allow("socket"), {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "args": [condition("SCMP_CMP_EQ", 38)]}
    )
    assert answer(policy, "socket", 0, 0, 38) == EPERM


# ---- conditions on a rule --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("includes", "excludes", "applies"),
    [
        ({}, {}, True),
        ({"caps": ["CAP_CHOWN"]}, {}, True),
        ({"caps": ["CAP_CHOWN", "CAP_SYS_ADMIN"]}, {}, False),
        ({"caps": ["CAP_SYS_ADMIN"]}, {}, False),
        ({}, {"caps": ["CAP_CHOWN"]}, False),
        ({}, {"caps": ["CAP_SYS_ADMIN", "CAP_CHOWN"]}, False),
        ({}, {"caps": ["CAP_SYS_ADMIN"]}, True),
        ({"arches": ["amd64"]}, {}, True),
        ({"arches": ["arm64", "s390x"]}, {}, False),
        ({}, {"arches": ["amd64"]}, False),
        ({}, {"arches": ["arm64"]}, True),
        ({"minKernel": "6.1"}, {}, True),
        ({"minKernel": "6.2"}, {}, False),
        ({"minKernel": "5.14"}, {}, True),
        ({}, {"minKernel": "6.1"}, False),
        ({}, {"minKernel": "6.10"}, True),
        ({"caps": ["CAP_CHOWN"], "arches": ["arm64"]}, {}, False),
        (None, None, True),
    ],
)
def test_a_rule_applies_only_where_it_says(includes: Any, excludes: Any, applies: bool) -> None:
    entry = allow("read", includes=includes, excludes=excludes)
    policy = read(entry, capabilities=Capabilities("CHOWN"), kernel=(6, 1))
    assert answer(policy, "read") == (ALLOW if applies else EPERM)


@pytest.mark.parametrize("key", ["archMap", "architectures"])
def test_32_bit_programs_run_if_the_profile_says_so(key: str) -> None:
    more: dict[str, Any] = {
        "archMap": {"archMap": json.loads(SAMPLE)["archMap"]},
        "architectures": {"architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]},
    }[key]
    assert answer(read(allow("stat64"), **more), "stat64", architecture="i386") == ALLOW
    assert answer(read(allow("stat64")), "stat64", architecture="i386") == ENOSYS


def test_the_log_flag_is_kept() -> None:
    assert read(flags=["SECCOMP_FILTER_FLAG_LOG"]).log
    assert not read(flags=["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]).log


# ---- what cannot be kept ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ({}, "defaultAction None"),
        (profile(default="SCMP_ACT_TRACE"), "SCMP_ACT_TRACE"),
        (profile({"names": ["read"], "action": "allow"}), "'allow'"),
        (profile({"names": ["read"]}), "action None"),
        (profile(allow("read", args=[condition("SCMP_CMP_LIKE", 1)])), "SCMP_CMP_LIKE"),
        (profile(allow("read", args=[condition("SCMP_CMP_EQ", 1, index=6)])), "index=6"),
        (profile(allow("read", args=[{"op": "SCMP_CMP_EQ", "value": 1}])), "index=None"),
        (profile(allow("read", args=[condition("SCMP_CMP_EQ", 1 << 64)])), "64 bits"),
        (profile(allow("read", args=[condition("SCMP_CMP_EQ", "1")])), "value '1'"),  # type: ignore[arg-type]
        (profile(allow("read", args="x")), "'args'"),
        (profile(allow("read", args=[condition("SCMP_CMP_NE", 1), condition("SCMP_CMP_NE", 2)])), "two conditions"),
        (profile({"names": "read", "action": "SCMP_ACT_ALLOW"}), "'names'"),
        (profile({"names": [3], "action": "SCMP_ACT_ALLOW"}), "'names'"),
        (profile(allow("read", includes={"caps": ["CAP_NOTHING"]})), "CAP_NOTHING"),
        (profile(allow("read", excludes=[None])), "'excludes'"),
        (profile(allow("read", includes={"minKernel": "four"})), "four"),
        (profile({"names": ["read"], "action": "SCMP_ACT_ERRNO", "errno": "EWHAT"}), "EWHAT"),
        (profile({"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 4096}), "4096"),
        (profile(flags=["SECCOMP_FILTER_FLAG_NEW"]), "SECCOMP_FILTER_FLAG_NEW"),
        (profile({"names": ["raed"], "action": "SCMP_ACT_ERRNO"}, default="SCMP_ACT_ALLOW"), "'raed'"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": ["read"]}, "'syscalls'"),
    ],
    ids=str,
)
def test_what_cannot_be_kept_as_written_is_refused(broken: Any, words: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        Seccomp.from_json(broken, architecture="x86_64")
    assert words in str(caught.value)


def test_an_unknown_call_is_skipped_where_that_only_tightens() -> None:
    assert answer(read(allow("read", "call_of_the_future")), "read") == ALLOW


def test_an_unknown_call_that_only_another_machine_has_is_skipped() -> None:
    denied = {"names": ["s390_sthyi", "read"], "action": "SCMP_ACT_ERRNO"}
    assert answer(read(denied, default="SCMP_ACT_ALLOW"), "read") == EPERM


# ---- against libseccomp, which runc and crun use ---------------------------------------------------------------------


class _Comparison(ctypes.Structure):
    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


_OPS = ("", "NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")
_CODES = {"ALLOW": 0x7FFF0000, "ERRNO": 0x50000, "KILL": 0, "KILL_PROCESS": 1 << 31, "LOG": 0x7FFC0000, "TRAP": 0x30000}


def by_libseccomp(given: Mapping[str, Any]) -> bytes:
    """The same profile as a runtime gives it to libseccomp; it must not have includes and excludes."""
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        pytest.skip("libseccomp is not installed")
    library.seccomp_init.restype = ctypes.c_void_p

    def code(action: str, error: int | None) -> int:
        kind = _CODES[action.removeprefix("SCMP_ACT_")]
        return kind | (1 if error is None else error) if kind == 0x50000 else kind

    default = code(given["defaultAction"], given.get("defaultErrnoRet"))
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(default)))
    for entry in given["syscalls"]:
        action = code(entry["action"], entry.get("errnoRet"))
        for name in entry["names"]:
            number = library.seccomp_syscall_resolve_name(name.encode())
            if number == -1 or action == default:
                continue
            items = entry.get("args") or []
            comparisons = (_Comparison * len(items))()
            for place, item in enumerate(items):
                op = _OPS.index(item["op"].removeprefix("SCMP_CMP_"))
                comparisons[place] = _Comparison(item["index"], op, item["value"], item["valueTwo"])
            result = library.seccomp_rule_add_array(context, ctypes.c_uint32(action), number, len(items), comparisons)
            assert result == 0, (name, result)
    with tempfile.TemporaryFile() as file:
        assert library.seccomp_export_bpf(context, file.fileno()) == 0
        file.seek(0)
        program = file.read()
    library.seccomp_release(context)
    return program


def without_conditions_on_rules(given: Mapping[str, Any], capabilities: set[str]) -> dict[str, Any]:
    """Docker's reading of includes and excludes, for amd64 and a new kernel."""
    kept = []
    for entry in given["syscalls"]:
        includes, excludes = entry.get("includes") or {}, entry.get("excludes") or {}
        if (
            set(includes.get("caps", ())) <= capabilities
            and not set(excludes.get("caps", ())) & capabilities
            and "amd64" in includes.get("arches", ["amd64"])
            and "amd64" not in excludes.get("arches", [])
            and "minKernel" not in excludes
        ):
            kept.append(entry)
    return {**given, "syscalls": kept}


WORDS = [0, 1, 2, 3, 8, 9, 10, 16, 17, 38, 39, 40, 0x20000, 0x20008, 0x10000011, 0x7E020000, 0xFFFFFFFF]


def agree(program: bytes, policy: Seccomp, draws: int) -> None:
    theirs, ours = bpf.decode(program), bpf.decode(policy.program("x86_64"))
    chance = random.Random(4)  # noqa: S311
    for name, number in syscalls.numbers("x86_64").items():
        for _ in range(draws):
            args = [chance.choice(WORDS) for _ in range(6)]
            assert bpf.run(ours, number, args).value == bpf.run(theirs, number, args).value, (name, args)


@pytest.mark.parametrize("caps", [(), ("SYS_ADMIN",), ("AUDIT_WRITE", "SYS_CHROOT"), ("DAC_READ_SEARCH", "SYS_PTRACE")])
def test_podmans_own_profile_gets_the_answers_that_libseccomp_gives(caps: tuple[str, ...]) -> None:
    if not PODMAN.exists():
        pytest.skip("podman's profile is not installed (golang-github-containers-common)")
    given = json.loads(PODMAN.read_text())
    capabilities = Capabilities(*caps)
    policy = Seccomp.from_json(given, capabilities=capabilities, architecture="x86_64")
    agree(by_libseccomp(without_conditions_on_rules(given, set(capabilities))), policy, draws=20)


@pytest.mark.parametrize("seed", range(20))
def test_random_profiles_get_the_answers_that_libseccomp_gives(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    names = ["read", "mmap", "mprotect", "getpid", "socket", "clone", "exit_group", "statx", "write"]
    # One rule for a call: of overlapping rules each has its own idea.
    entries = [
        {
            "names": [name],
            "action": f"SCMP_ACT_{chance.choice(['ALLOW', 'ERRNO', 'KILL_PROCESS', 'LOG', 'TRAP'])}",
            "errnoRet": chance.choice([1, 22, 38]),
            "args": [
                condition(f"SCMP_CMP_{chance.choice(_OPS[1:])}", chance.choice(WORDS), chance.choice(WORDS), index)
                for index in chance.sample(range(6), chance.randrange(4))
            ],
        }
        for name in chance.sample(names, chance.randrange(1, len(names)))
    ]
    default = f"SCMP_ACT_{chance.choice(['ALLOW', 'ERRNO', 'KILL_PROCESS'])}"
    given = profile(*entries, default=default, defaultErrnoRet=38)
    agree(by_libseccomp(given), Seccomp.from_json(given, architecture="x86_64"), draws=12)
