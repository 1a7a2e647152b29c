"""The policy of docker's and podman's defaults, against podman's own profile and on its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from security import bpf

from containerkit import Capabilities
from containerkit.security import syscalls
from containerkit.security.seccomp import Action, Seccomp

ALLOW = int(Action.ALLOW)
EPERM = int(Action.errno("EPERM"))
ENOSYS = int(Action.errno("ENOSYS"))
PODMAN = Path("/usr/share/containers/seccomp.json")


def answer(policy: Seccomp, call: str, *args: int, architecture: str = "x86_64") -> int:
    code = bpf.decode(policy.program("x86_64"))
    return bpf.run(code, syscalls.numbers(architecture)[call], args, architecture=architecture).value


def allowed(policy: Seccomp, architecture: str) -> set[str]:
    """With all arguments 0."""
    code = bpf.decode(policy.program("x86_64"))
    numbers = syscalls.numbers(architecture)
    return {name for name, at in numbers.items() if bpf.run(code, at, architecture=architecture).value == ALLOW}


ADMINISTRATION = {
    "clone3", "fsconfig", "fsmount", "fsopen", "fspick", "mount", "mount_setattr", "move_mount", "open_tree", "setns",
    "syslog", "umount", "umount2",
}  # fmt: skip
NEVER = {"epoll_ctl_old", "epoll_wait_old", "keyctl", "pivot_root", "query_module", "readdir", "reboot"}
BEHIND_A_POINTER = {"ipc", "socketcall"}


@pytest.mark.parametrize("architecture", ["x86_64", "i386"])
@pytest.mark.parametrize(
    ("caps", "stricter"),
    [
        ((), ADMINISTRATION | NEVER | {"pidfd_getfd"}),
        (("SYS_ADMIN",), NEVER | {"pidfd_getfd"}),
        (("SYS_PTRACE", "SYS_BOOT", "SYS_TIME"), (ADMINISTRATION | NEVER) - {"reboot"}),
        (("SYS_MODULE", "SYS_RAWIO", "SYS_PACCT", "SYS_TTY_CONFIG", "DAC_READ_SEARCH"),
         ADMINISTRATION | NEVER | {"pidfd_getfd"}),
    ],
)  # fmt: skip
def test_what_podman_allows_is_allowed_but_for_what_docker_refuses(
    caps: tuple[str, ...], stricter: set[str], architecture: str
) -> None:
    if not PODMAN.exists():
        pytest.skip("podman's profile is not installed (golang-github-containers-common)")
    capabilities = Capabilities(*caps)
    theirs = Seccomp.from_json(PODMAN.read_text(), capabilities=capabilities, architecture="x86_64")
    missing = allowed(theirs, architecture) - allowed(Seccomp.compat(capabilities), architecture)
    assert missing <= stricter | BEHIND_A_POINTER
    assert missing >= {"keyctl", "pivot_root"}


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_it_allows_all_that_service_allows(architecture: str) -> None:
    ours, theirs = (bpf.decode(policy.program(architecture)) for policy in (Seccomp.compat(), Seccomp.service()))
    for number in range(600):
        if bpf.run(theirs, number, architecture=architecture).value == ALLOW:
            assert bpf.run(ours, number, architecture=architecture).value == ALLOW, number


@pytest.mark.parametrize(
    ("capability", "call"),
    [("SYS_ADMIN", "mount"), ("SYS_ADMIN", "unshare"), ("SYS_ADMIN", "bpf"), ("BPF", "bpf"), ("SYS_PTRACE", "kcmp"),
     ("PERFMON", "perf_event_open"), ("SYSLOG", "syslog"), ("SYS_TIME", "clock_settime"), ("SYS_BOOT", "reboot"),
     ("DAC_READ_SEARCH", "open_by_handle_at"), ("SYS_MODULE", "finit_module"), ("SYS_RAWIO", "iopl"),
     ("SYS_PACCT", "acct"), ("SYS_TTY_CONFIG", "vhangup")],
)  # fmt: skip
def test_a_capability_opens_the_calls_that_are_for_it_alone(capability: str, call: str) -> None:
    namespaces = 0x7E020000
    assert answer(Seccomp.compat(), call, namespaces) == EPERM
    assert answer(Seccomp.compat(Capabilities(capability)), call, namespaces) == ALLOW


def test_clone3_exists_only_for_who_may_make_namespaces_anyway() -> None:
    assert answer(Seccomp.compat(), "clone3") == ENOSYS
    assert answer(Seccomp.compat(), "clone", 0x10000011) == EPERM
    assert answer(Seccomp.compat(Capabilities("SYS_ADMIN")), "clone3") == ALLOW


@pytest.mark.parametrize("high", [0, 0xDEADBEEF << 32])
def test_any_socket_can_be_made_but_for_kernel_crypto_and_virtual_machines(high: int) -> None:
    refused = {domain for domain in range(50) if answer(Seccomp.compat(), "socket", high | domain, 1) != ALLOW}
    assert refused == {38, 40}
    both = {
        domain for domain in range(50) if answer(Seccomp.compat(), "socket", domain, 1, architecture="i386") != ALLOW
    }
    assert both == refused


@pytest.mark.parametrize(
    "call", ["io_uring_setup", "keyctl", "add_key", "kexec_load", "userfaultfd", "swapon", "move_pages", "vmsplice"]
)
def test_what_neither_allows_is_refused_whatever_the_capabilities(call: str) -> None:
    assert answer(Seccomp.compat(Capabilities("SYS_ADMIN", "SYS_PTRACE", "SYS_NICE")), call) == EPERM


def test_a_terminal_cannot_be_typed_into() -> None:
    assert answer(Seccomp.compat(), "ioctl", 0, 0x5412) == EPERM
    assert answer(Seccomp.compat(), "ioctl", 0, 0x5412, architecture="i386") == EPERM


def test_calls_of_x32_do_not_exist() -> None:
    code = bpf.decode(Seccomp.compat().program("x86_64"))
    assert {bpf.run(code, bpf.X32 | number).value for number in range(600)} == {ENOSYS}
