"""The errors that only a supervisor of system calls meets; apart so that nobody else pays for them."""

from __future__ import annotations

from .errors import ContainerkitError


class CallGone(ContainerkitError):
    """A system call that a Supervisor was asked about no longer waits: a signal ended it, or its process is gone.

    A handler lets it pass: there is nobody left to answer.
    """


class BadAddress(ContainerkitError):
    """A supervised program passed a pointer to memory that it does not have, or text without an end.

    A handler lets it pass: the call then fails with EFAULT.
    """
