"""Policies for programs that make sandboxes of their own: :meth:`Security.allow_user_namespaces`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .landlock import Landlock
    from .seccomp import Seccomp

__all__ = ["landlock_for_nesting", "seccomp_for_nesting"]

_CALLS = """
chroot clone clone3 fsconfig fsmount fsopen fspick mount mount_setattr move_mount open_tree pivot_root
process_vm_readv process_vm_writev ptrace setdomainname sethostname setns umount2 unshare
"""


def seccomp_for_nesting(policy: Seccomp) -> Seccomp:
    """The policy, and what making namespaces and mounts in them takes. Where it would kill, it does no more."""
    return policy.allow(*_CALLS.split())


def landlock_for_nesting(policy: Landlock) -> Landlock | None:
    """What is left without rules for files; None when that is nothing."""
    import attrs

    left = attrs.evolve(policy, paths=None, mounts=False)
    return left if left.scopes or left.bind_tcp is not None or left.connect_tcp is not None else None
