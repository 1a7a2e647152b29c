"""A :class:`Security` in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import Security

__all__ = ["explain"]


def explain(policy: Security) -> str:
    return "\n".join(_lines(policy))


def _lines(policy: Security) -> Iterator[str]:
    if policy.capabilities is None:
        yield "capabilities: those of the caller; in a new user namespace, all of them there"
    elif not policy.capabilities:
        yield "capabilities: none, and none to be had"
    else:
        kept = " ".join(policy.capabilities)
        yield f"capabilities: {kept}{'; ambient too' if policy.ambient else ''}; the others never again"
    yield f"setuid programs: {'gain nothing (no_new_privs)' if policy.no_new_privs else 'gain what their owner has'}"
    yield str(policy.seccomp) if policy.seccomp is not None else "seccomp: every system call"
    if policy.landlock is None:
        yield "Landlock: none"
    else:
        missing = ", ".join(policy.landlock.missing())
        yield f"{policy.landlock}{f' (this kernel cannot enforce {missing})' if missing else ''}"
    yield f"user namespaces: {'may be made, if the calls are allowed' if policy.user_namespaces else 'none inside'}"
    if policy.mdwe:
        yield "memory: what was writable is never executed (MDWE)"
    for name, value in policy.sysctls:
        yield f"sysctl: {name} = {value}"
    if policy.low_ports:
        yield "ports: everybody may bind those below 1024, in a network namespace of its own"
    if policy.session_keyring:
        yield "keyring: a new session keyring"
    if policy.core_scheduling:
        yield "processor: shares no core with programs outside (core scheduling)"
    for module, label in (("AppArmor", policy.apparmor), ("SELinux", policy.selinux)):
        if label is not None:
            yield f"{module}: {label}"
    if policy.attest:
        yield "attested: the process is compared with all this before the program starts"
