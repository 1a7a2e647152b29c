"""What docker and podman let a container call, as a policy of ours: :meth:`Seccomp.compat`.

It is `Seccomp.service` and what their default profiles allow beyond it. Where the two differ, the stricter one is
followed, but for what is said here; no byte of either profile is in it.

* A capability opens the calls that are there for it alone, as in the profiles. podman lets everybody call mount,
  unshare, setns, pivot_root and their like, docker only with CAP_SYS_ADMIN: here as docker.
* io_uring stays off, as in both today; AF_ALG and AF_VSOCK too, as in docker.
* clone3 exists only with CAP_SYS_ADMIN: a filter cannot see its flags.
* What is known and refused fails with EPERM, what is unknown with ENOSYS, as runc and podman have it.
* Terminals cannot be typed into (TIOCSTI, TIOCLINUX, TIOCSETD), and keys stay out of reach: they are no part of any
  namespace.
"""

from __future__ import annotations

from functools import cache

from .capabilities import Capabilities
from .seccomp import Arg, Seccomp

__all__ = ["compat"]

_ALLOWED = """
fanotify_mark memfd_secret modify_ldt process_mrelease process_vm_readv process_vm_writev ptrace
"""

_AF_ALG, _AF_VSOCK = 38, 40

_BY_CAPABILITY = {
    "BPF": "bpf",
    "DAC_READ_SEARCH": "open_by_handle_at",
    "PERFMON": "perf_event_open",
    "SYSLOG": "syslog",
    "SYS_ADMIN": """
        bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount
        open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount2 unshare
    """,
    "SYS_BOOT": "reboot",
    "SYS_MODULE": "delete_module finit_module init_module",
    "SYS_PACCT": "acct",
    "SYS_PTRACE": "kcmp pidfd_getfd process_madvise",
    "SYS_RAWIO": "ioperm iopl",
    "SYS_TIME": "clock_settime settimeofday",
    "SYS_TTY_CONFIG": "vhangup",
}


@cache
def compat(capabilities: Capabilities) -> Seccomp:
    """See :meth:`Seccomp.compat`."""
    policy = Seccomp.service()
    policy = Seccomp(policy.default, policy.rules, multiarch=True)
    policy = policy.allow("socketpair", *_ALLOWED.split())
    policy = policy.allow("socket", where=Arg(0, "not in", (_AF_ALG, _AF_VSOCK)))
    for capability, names in _BY_CAPABILITY.items():
        if capability in capabilities:
            policy = policy.allow(*names.split())
    return policy
