"""Seccomp policies: the values, and the bytes that they compile to, run step by step and held against the rules."""

from __future__ import annotations

import errno
import functools
import json
import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from security import bpf, oracle
from tools import generate_syscalls

from containerkit import InvalidValue, Unsupported
from containerkit.security import syscalls
from containerkit.security.seccomp import Action, Arg, Rule, Seccomp

PRESETS = {"strict": Seccomp.strict, "service": Seccomp.service}
HIGH = 0xDEADBEEF << 32
ALLOW = int(Action.ALLOW)


def refused(name: str) -> int:
    return int(Action.errno(name))


@functools.cache
def decoded(program: bytes) -> list[bpf.Instruction]:
    return bpf.decode(program)


def answer(
    policy: Seccomp, call: str | int, *args: int, machine: str = "x86_64", architecture: str | None = None
) -> int:
    """What the compiled filter answers; the arguments may be negative."""
    of = architecture or machine
    number = syscalls.numbers(of)[call] if isinstance(call, str) else call
    words = [arg & 0xFFFFFFFFFFFFFFFF for arg in args]
    return bpf.run(decoded(policy.program(machine)), number, words, architecture=of).value


# ---- the table of numbers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64", "i386"])
def test_the_numbers_agree_with_the_installed_kernel_headers(architecture: str) -> None:
    try:
        headers = generate_syscalls.from_headers()[architecture]
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no compiler, or no kernel headers for this: {error}")
    ours = syscalls.numbers(architecture)
    newest = max(ours.values())
    assert len(headers) > 300
    assert {name: ours.get(name) for name, number in headers.items() if number <= newest} == {
        name: number for name, number in headers.items() if number <= newest
    }


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64", "i386"])
def test_no_two_names_have_one_number(architecture: str) -> None:
    numbers = syscalls.numbers(architecture)
    assert len(set(numbers.values())) == len(numbers)


def test_numbers_from_424_on_are_the_same_everywhere() -> None:
    tables = [syscalls.numbers(architecture) for architecture in ("x86_64", "aarch64", "i386")]
    newer = [{name: number for name, number in table.items() if number >= 424} for table in tables]
    assert newer[0] == newer[1] == newer[2]
    assert newer[0]["file_setattr"] == 469


def test_what_the_generator_knows_beyond_the_headers_is_in_the_table() -> None:
    numbers = syscalls.numbers("x86_64")
    later = generate_syscalls.LATER | generate_syscalls.LATER_X86_64
    assert {name: numbers[name] for name in later} == later


@pytest.mark.root
def test_which_arguments_are_ints_agrees_with_the_running_kernel(tmp_path: Path) -> None:
    code = f"""
        import importlib.util, json, pathlib
        spec = importlib.util.spec_from_file_location("g", {generate_syscalls.__file__!r})
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        print(json.dumps(module.ints(pathlib.Path({str(tmp_path)!r}))))
    """
    script = 'mount -t tracefs none "$1" && exec "$2" -c "$3"'
    lines = "\n".join(line.strip() for line in code.splitlines())
    command = ["unshare", "--mount", "sh", "-c", script, "sh", str(tmp_path), sys.executable, lines]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no tracefs here: {done.stderr}")
    found = json.loads(done.stdout)
    if len(found) < 200:
        pytest.skip("this kernel does not trace system calls (CONFIG_FTRACE_SYSCALLS)")
    assert {name: syscalls.INTS.get(name) for name in found} == found


# ---- values ----------------------------------------------------------------------------------------------------------


def test_a_policy_is_changed_by_adding_a_rule_and_the_old_one_stays() -> None:
    policy = Seccomp().allow("read")
    other = policy.deny("read")
    assert answer(policy, "read") == ALLOW
    assert answer(other, "read") == refused("EPERM")


def test_equal_policies_are_equal_and_hash_alike_also_when_one_was_compiled() -> None:
    one, other = (Seccomp().allow("read", where=Arg(0, "==", 1)) for _ in range(2))
    one.program("x86_64")
    assert one == other
    assert hash(one) == hash(other)
    assert one != one.allow("write")


def test_a_policy_is_frozen() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Seccomp.strict().default = Action.ALLOW  # type: ignore[misc]


def test_a_policy_survives_pickling() -> None:
    policy = Seccomp.strict()
    assert pickle.loads(pickle.dumps(policy)) == policy  # noqa: S301


def test_presets_are_made_once() -> None:
    assert Seccomp.strict() is Seccomp.strict()
    assert Seccomp.strict().program("x86_64") is Seccomp.strict().program("x86_64")


IMPOSSIBLE: dict[str, Callable[[], object]] = {
    "a misspelt call": lambda: Seccomp().allow("raed"),
    "a call in capitals": lambda: Seccomp().allow("READ"),
    "a seventh argument": lambda: Arg(6, "==", 0),
    "an argument before the first": lambda: Arg(-1, "==", 0),
    "another operator": lambda: Arg(0, "=", 0),
    "65 bits": lambda: Arg(0, "==", 1 << 64),
    "65 bits, negative": lambda: Arg(0, "==", -(1 << 63) - 1),
    "a string": lambda: Arg(0, "==", "1"),  # type: ignore[arg-type]
    "in a number": lambda: Arg(0, "in", 1),
    "equal to several numbers": lambda: Arg(0, "==", (1, 2)),
    "a mask of 65 bits": lambda: Arg(0, "==", 0, mask=1 << 64),
    "a number with bits outside of the mask": lambda: Arg(0, "==", 3, mask=2),
    "an unknown errno": lambda: Action.errno("ENOTHING"),
    "an errno that is too large": lambda: Action.errno(4096),
    "a negative errno": lambda: Action.errno(-1),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_what_no_filter_could_hold_is_refused(what: str) -> None:
    with pytest.raises(InvalidValue):
        IMPOSSIBLE[what]()


def test_a_machine_without_a_table_is_refused() -> None:
    with pytest.raises(Unsupported, match="riscv64"):
        Seccomp.strict().program("riscv64")


def test_a_name_of_another_architecture_is_accepted_and_has_no_effect() -> None:
    plain = Seccomp().allow("read")
    assert plain.allow("socketcall").program("x86_64") == plain.program("x86_64")
    assert plain.allow("open").program("aarch64") == plain.program("aarch64")


def test_a_policy_tells_itself_in_words_the_first_asked_first() -> None:
    policy = Seccomp(multiarch=True, log=True).allow("read", "write").deny("ioctl", where=Arg(1, "==", 0x5412))
    assert policy.explain().splitlines() == [
        "EPERM: ioctl where argument 1 == 0x5412",
        "allow: read write",
        "ENOSYS: everything else",
        "ENOSYS: calls of other architectures, but for 32-bit x86",
        "what is refused goes to the audit log",
    ]
    assert str(policy) == "seccomp: ENOSYS but for 2 rules"


def test_a_policy_prints_as_code_that_makes_it() -> None:
    policy = Seccomp().rule(Action.KILL, "ptrace", where=Arg(0, "in", (1, 2), mask=0xFF))
    assert eval(repr(policy)) == policy  # noqa: S307


def test_the_flags_are_those_that_the_policy_needs() -> None:
    assert Seccomp().flags == 4
    assert Seccomp(log=True).flags == 4 | 2
    assert Seccomp().notify("connect").flags == 4 | 8 | 32


# ---- the bytes, against the rules ------------------------------------------------------------------------------------


def agree(policy: Seccomp, number: int, args: Sequence[int], machine: str, architecture: str) -> None:
    got = bpf.run(decoded(policy.program(machine)), number, args, architecture=architecture).value
    expected = oracle.answer(policy, number, args, machine=machine, architecture=architecture)
    assert got == expected, f"{architecture} {number} {[hex(arg) for arg in args]}: {got:#x}, not {expected:#x}"


@pytest.mark.parametrize("multiarch", [False, True])
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_number_of_every_abi_gets_what_the_rules_say(preset: str, machine: str, multiarch: bool) -> None:
    policy = attrs.evolve(PRESETS[preset](), multiarch=multiarch)
    interesting = [*range(601), 9999, 0x3FFFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
    for architecture in ("x86_64", "i386", "aarch64"):
        for number in interesting:
            agree(policy, number, [0] * 6, machine, architecture)
            agree(policy, number, [0xFFFFFFFFFFFFFFFF] * 6, machine, architecture)
            if number <= 600:
                agree(policy, number | bpf.X32, [0] * 6, machine, architecture)


EDGES = [0, 1, 2, 7, 8, 10, 16, 38, 40, 0x5412, 0x541C, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x1000, 0x6000, 0x20008]
WORDS = [*EDGES, *(HIGH | word for word in EDGES), 0xFFFFFFFFFFFFFFFF, 1 << 63, 1 << 32, (1 << 32) + 1]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "call", ["clone", "ioctl", "mknod", "mknodat", "personality", "socket", "socketpair", "unshare"]
)
def test_conditions_of_the_presets_hold_for_edges_of_arguments(preset: str, call: str) -> None:
    number = syscalls.numbers("x86_64")[call]
    for first in WORDS:
        for second in WORDS:
            for third in (0, 9, HIGH, 0x6000, 0x1000):
                agree(PRESETS[preset](), number, [first, second, third, 0, 0, 0], "x86_64", "x86_64")


NAMES = (
    "read", "write", "open", "openat", "ioctl", "mmap", "clone", "socket", "listns", "statx", "mseal", "getpid", "stat",
    "chmod", "mount", "exit", "futex", "unshare", "ptrace", "prctl",
)  # fmt: skip
NUMBERS = st.sampled_from(WORDS) | st.integers(0, (1 << 64) - 1) | st.integers(0, 20)
ACTIONS = st.sampled_from([Action.ALLOW, Action.KILL, Action.errno(1), Action.NOTIFY, Action.errno(4095)])
MASKS = st.just((1 << 64) - 1) | NUMBERS
ARGS = st.one_of(
    st.builds(Arg, st.integers(0, 5), st.sampled_from(["<", "<=", ">", ">="]), NUMBERS, mask=MASKS),
    st.builds(
        lambda index, op, value, mask: Arg(index, op, value & mask, mask=mask),
        st.integers(0, 5),
        st.sampled_from(["==", "!="]),
        NUMBERS,
        MASKS,
    ),
    st.builds(
        lambda index, op, values, mask: Arg(index, op, [value & mask for value in values], mask=mask),
        st.integers(0, 5),
        st.sampled_from(["in", "not in"]),
        st.lists(NUMBERS, max_size=5),
        MASKS,
    ),
)
RULES = st.builds(
    Rule,
    ACTIONS,
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=4).map(tuple),
    st.lists(ARGS, max_size=3).map(tuple),
)
POLICIES = st.builds(Seccomp, ACTIONS, st.lists(RULES, max_size=12).map(tuple), multiarch=st.booleans())


def words_near(policy: Seccomp, chance: random.Random) -> list[int]:
    """Six arguments that have something to do with the policy's conditions."""
    values = [arg.value for rule in policy.rules for arg in rule.where]
    numbers = [number for value in values for number in (value if isinstance(value, tuple) else (value,))] + WORDS
    changes = [0, 0, 1, -1, 1 << 32, HIGH, 1 << 63]
    return [(chance.choice(numbers) ^ chance.choice(changes)) & 0xFFFFFFFFFFFFFFFF for _ in range(6)]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(policy=POLICIES, seed=st.integers(0, 1 << 32))
def test_any_policy_answers_any_call_as_its_rules_say(policy: Seccomp, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    for machine in ("x86_64", "aarch64"):
        code = bpf.decode(policy.program(machine))
        for architecture in ("x86_64", "aarch64", "i386"):
            numbers = syscalls.numbers(architecture)
            mentioned = [numbers[name] for name in NAMES if name in numbers]
            for number in (*mentioned, *mentioned, chance.randrange(600), chance.randrange(1 << 32)):
                args = words_near(policy, chance)
                got = bpf.run(code, number, args, architecture=architecture).value
                assert got == oracle.answer(policy, number, args, machine=machine, architecture=architecture)


def test_a_rule_with_the_default_action_is_an_exception_from_the_rules_before_it() -> None:
    policy = Seccomp(Action.ALLOW).deny("mmap", where=Arg(1, "==", 1)).allow("mmap", where=Arg(2, "==", 2))
    assert answer(policy, "mmap", 0, 1, 0) == refused("EPERM")
    assert answer(policy, "mmap", 0, 1, 2) == ALLOW


@pytest.mark.parametrize("count", [60, 250, 400])
def test_targets_further_than_a_jump_reaches_are_reached(count: int) -> None:
    policy = Seccomp(Action.KILL)
    names = sorted(syscalls.numbers("x86_64"), key=syscalls.numbers("x86_64").__getitem__)
    for step in range(count):
        value = step * 0x1_0000_0001
        policy = policy.rule(
            Action.errno(step % 4000 + 1), names[step * 7 % len(names)], where=(Arg(5, "==", value), Arg(4, "!=", 3))
        )
    code = decoded(policy.program("x86_64"))
    assert len(code) > 255
    for number in range(len(names)):
        agree(policy, number, [0] * 6, "x86_64", "x86_64")
    for step in range(count):
        number = syscalls.numbers("x86_64")[names[step * 7 % len(names)]]
        agree(policy, number, [0, 0, 0, 0, 2, step * 0x1_0000_0001], "x86_64", "x86_64")
        agree(policy, number, [0, 0, 0, 0, 3, step * 0x1_0000_0001], "x86_64", "x86_64")


def test_a_long_list_of_values_is_one_condition() -> None:
    values = tuple(range(0, 3000, 3))
    policy = Seccomp(Action.KILL).allow("mmap", where=Arg(2, "in", values))
    for value in (*values[:5], *values[-5:], 1, 2, 2998, 3000):
        agree(policy, 9, [0, 0, value, 0, 0, 0], "x86_64", "x86_64")


def test_a_policy_that_is_too_long_for_the_kernel_is_refused() -> None:
    policy = Seccomp().allow("mmap", where=Arg(2, "in", range(5000)))
    with pytest.raises(InvalidValue, match="4096"):
        policy.program("x86_64")


def test_thousands_of_rules_on_one_call_are_no_deep_recursion() -> None:
    rules = tuple(Rule(Action.errno(1), ("mmap",), Arg(2, "==", value)) for value in range(1000))
    assert answer(Seccomp(Action.ALLOW, rules), "mmap", 0, 0, 999) == refused("EPERM")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_an_allowed_call_is_answered_in_few_steps(preset: str, machine: str) -> None:
    code = decoded(PRESETS[preset]().program(machine))
    runs = [bpf.run(code, number, architecture=machine) for number in syscalls.numbers(machine).values()]
    allowed = [run for run in runs if run.value == ALLOW and not run.looked_at_arguments]
    assert len(allowed) > 200
    assert max(run.steps for run in allowed) < 15


@pytest.mark.parametrize("preset", PRESETS)
def test_the_presets_are_short(preset: str) -> None:
    for machine in ("x86_64", "aarch64"):
        assert len(decoded(PRESETS[preset]().program(machine))) < 125  # each costs 0.2 us of every start


# ---- what the presets promise ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_what_the_helper_calls_between_the_filter_and_the_program_is_allowed(preset: str) -> None:
    for machine in ("x86_64", "aarch64"):
        for call in (
            "mmap",
            "rt_sigprocmask",
            "execve",
            "execveat",
            "openat",
            "read",
            "close",
            "sendmsg",
            "exit_group",
            "exit",
        ):
            assert answer(PRESETS[preset](), call, machine=machine) == ALLOW


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "call",
    ["mount", "umount2", "pivot_root", "fsopen", "fsconfig", "fsmount", "fspick", "open_tree", "open_tree_attr",
     "move_mount", "mount_setattr", "bpf", "perf_event_open", "add_key", "request_key", "keyctl", "kexec_load",
     "kexec_file_load", "init_module", "finit_module", "delete_module", "ptrace", "process_vm_readv",
     "process_vm_writev", "pidfd_getfd", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register",
     "open_by_handle_at", "setns", "swapon", "swapoff", "reboot", "settimeofday", "quotactl", "quotactl_fd", "acct",
     "syslog", "kcmp", "fanotify_init", "move_pages", "lookup_dcookie", "lsm_set_self_attr"],
)  # fmt: skip
def test_the_dangerous_is_refused_with_eperm(preset: str, call: str) -> None:
    for machine in ("x86_64", "aarch64"):
        assert answer(PRESETS[preset](), call, machine=machine) == refused("EPERM")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("call", ["clone3", "listns", "statmount", "listmount", 471, 600, 9999, 0x3FFFFFFF, 0xFFFFFFFF])
def test_the_unknown_does_not_exist(preset: str, call: str | int) -> None:
    assert answer(PRESETS[preset](), call) == refused("ENOSYS")


@pytest.mark.parametrize("preset", PRESETS)
def test_no_call_of_another_abi_exists_unless_asked(preset: str) -> None:
    policy = PRESETS[preset]()
    for number in range(600):
        assert answer(policy, number, architecture="i386") == refused("ENOSYS")
        assert answer(policy, number | bpf.X32) == refused("ENOSYS")
        assert answer(policy, number, machine="aarch64", architecture="i386") == refused("ENOSYS")
    assert answer(attrs.evolve(policy, multiarch=True), "getpid", architecture="i386") == ALLOW


def test_x32_is_refused_by_a_policy_that_allows_the_rest() -> None:
    assert answer(Seccomp(Action.ALLOW), 39) == ALLOW
    assert answer(Seccomp(Action.ALLOW), 39 | bpf.X32) == refused("ENOSYS")


@pytest.mark.parametrize(
    "flag", [0x80, 0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000]
)
def test_clone_makes_no_namespace(flag: int) -> None:
    for preset in (Seccomp.strict(), Seccomp.service()):
        assert answer(preset, "clone", 0x11) == ALLOW
        assert answer(preset, "clone", 0x3D0F00) == ALLOW  # a thread
        assert answer(preset, "clone", 0x11 | flag) == refused("EPERM")
        assert answer(preset, "clone", HIGH | 0x11 | flag) == refused("EPERM")


@pytest.mark.parametrize("high", [0, HIGH, 1 << 63])
@pytest.mark.parametrize("request_number", [0x5412, 0x541C, 0x5423])
def test_ioctl_is_compared_as_the_kernel_reads_it(request_number: int, high: int) -> None:
    """CVE-2019-10063: with anything in the upper half, the number passed a comparison of 64 bits."""
    assert answer(Seccomp.strict(), "ioctl", 0, high | request_number) == refused("EPERM")
    assert answer(Seccomp.strict(), "ioctl", 0, high | 0x5401) == ALLOW


def test_a_comparison_of_64_bits_would_let_that_ioctl_through() -> None:
    """The control: the same filter over an argument that the kernel reads whole goes by all 64 bits."""
    naive = Seccomp(Action.ALLOW).deny("mmap", where=Arg(1, "==", 0x5412))
    assert answer(naive, "mmap", 0, 0x5412) == refused("EPERM")
    assert answer(naive, "mmap", 0, HIGH | 0x5412) == ALLOW


def test_a_file_mode_is_compared_as_the_kernel_reads_it() -> None:
    policy = (
        Seccomp(Action.ALLOW).deny("chmod", where=Arg(1, "!=", 0, mask=0o6000)).deny("mkdir", where=Arg(1, "==", 0))
    )
    assert answer(policy, "chmod", 0, 0o4755) == refused("EPERM")
    assert answer(policy, "mkdir", 0, 0x10000) == refused("EPERM")


@pytest.mark.parametrize("high", [0, HIGH])
@pytest.mark.parametrize("domain", [*range(3, 10), *range(11, 16), *range(17, 46), 255])
def test_no_other_kind_of_socket_can_be_made(domain: int, high: int) -> None:
    for preset in (Seccomp.strict(), Seccomp.service()):
        for call in ("socket", "socketpair"):
            assert answer(preset, call, high | domain, 2, 0) == refused("EAFNOSUPPORT")


def test_ordinary_sockets_can_be_made() -> None:
    for domain, kind, protocol in [
        (1, 1, 0),
        (2, 1, 6),
        (2, 2, 17),
        (10, 1, 0),
        (10, 2, 58),
        (2, 2, 1),
        (2, 1, 262),
        (16, 3, 0),
    ]:
        for flags in (0, 0o4000, 0o2000000, 0o2004000):
            assert answer(Seccomp.strict(), "socket", domain, kind | flags, protocol) == ALLOW
            assert answer(Seccomp.strict(), "socket", HIGH | domain, HIGH | kind | flags, HIGH | protocol) == ALLOW


@pytest.mark.parametrize("protocol", [1, 2, 4, 6, 9, 12, 15, 16, 21])
def test_netlink_is_for_routes_only(protocol: int) -> None:
    assert answer(Seccomp.strict(), "socket", 16, 3, protocol) == refused("EPROTONOSUPPORT")
    assert answer(Seccomp.service(), "socket", 16, 3, protocol) == refused("EPROTONOSUPPORT")


@pytest.mark.parametrize(("kind", "protocol"), [(10, 0), (10, 768), (5, 132), (1, 132), (6, 33), (1, 256), (2, 115)])
def test_rare_protocols_over_ip_are_refused_by_strict(kind: int, protocol: int) -> None:
    assert answer(Seccomp.strict(), "socket", 2, kind, protocol) == refused("EPROTONOSUPPORT")
    assert answer(Seccomp.service(), "socket", 2, kind, protocol) == (
        refused("EPROTONOSUPPORT") if kind == 10 else ALLOW
    )


@pytest.mark.parametrize("persona", [0, 8, 0x20000, 0x20008, 0xFFFFFFFF, HIGH])
def test_harmless_personalities_are_allowed(persona: int) -> None:
    assert answer(Seccomp.strict(), "personality", persona) == ALLOW


@pytest.mark.parametrize("persona", [1, 0x0040000, 0x0100000, 0x0400000, 9, 0x20001])
def test_other_personalities_are_refused(persona: int) -> None:
    assert answer(Seccomp.strict(), "personality", persona) == refused("EPERM")


@pytest.mark.parametrize(("mode", "allowed"), [(0o10600, True), (0o100600, True), (0o140600, True), (0o600, True),
                                               (0o20600, False), (0o60600, False), (0o120777, False)])  # fmt: skip
def test_strict_makes_no_device_node(mode: int, allowed: bool) -> None:
    expected = ALLOW if allowed else refused("EPERM")
    assert answer(Seccomp.strict(), "mknod", 0, mode, 0) == expected
    assert answer(Seccomp.strict(), "mknodat", -100, 0, HIGH | mode, 0) == expected
    assert answer(Seccomp.service(), "mknodat", -100, 0, mode, 0) == ALLOW


def test_service_allows_all_that_strict_allows() -> None:
    for machine in ("x86_64", "aarch64"):
        for number in range(600):
            if answer(Seccomp.strict(), number, machine=machine) == ALLOW:
                assert answer(Seccomp.service(), number, machine=machine) == ALLOW


# ---- 32-bit x86 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("native", "variants"),
    [
        ("stat", ["stat64"]), ("chown", ["chown32"]), ("futex", ["futex_time64"]), ("lseek", ["_llseek"]),
        ("mmap", ["mmap2"]), ("clock_gettime", ["clock_gettime64"]), ("newfstatat", ["fstatat64"]),
        ("umount2", ["umount"]), ("clock_getres", ["clock_getres_time64"]), ("fadvise64", ["fadvise64_64"]),
        ("wait4", ["waitpid"]), ("rt_sigreturn", ["sigreturn"]), ("select", ["_newselect"]),
    ],
)  # fmt: skip
def test_a_rule_covers_the_variants_of_a_call_that_32_bit_x86_has(native: str, variants: list[str]) -> None:
    policy = Seccomp(multiarch=True).allow(native)
    for call in (native, *variants):
        if call in syscalls.numbers("i386"):
            assert answer(policy, call, architecture="i386") == ALLOW


def test_a_variant_with_a_name_of_its_own_here_is_another_call() -> None:
    policy = Seccomp(multiarch=True).allow("getdents")
    assert answer(policy, "getdents64", architecture="i386") == refused("ENOSYS")


def test_calls_that_hide_others_behind_a_pointer_do_not_exist_for_32_bit_programs() -> None:
    for preset in PRESETS.values():
        policy = attrs.evolve(preset(), multiarch=True)
        for call in ("socketcall", "ipc"):
            assert answer(policy, call, 1, architecture="i386") == refused("ENOSYS")
        assert answer(policy, "socket", 38, 5, 0, architecture="i386") == refused("EAFNOSUPPORT")
        assert answer(policy, "stime", 38, 5, 0, architecture="i386") == refused("EPERM")


def test_errno_numbers_are_this_kernels() -> None:
    assert Action.errno("EAFNOSUPPORT") == 0x50000 | errno.EAFNOSUPPORT
