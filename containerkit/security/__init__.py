"""What a program may still do once it runs: one value, :class:`Security`, of capabilities and system calls."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from ..errors import InvalidValue
from ..value import Value, frozen
from .capabilities import Capabilities

if TYPE_CHECKING:
    from .seccomp import Seccomp

__all__ = ["Capabilities", "Security"]


@frozen(kw_only=True)
class Security(Value):
    """The privileges of a program.

    * ``capabilities``: all that it keeps, in its permitted, effective and bounding sets (capabilities(7)); ``None``
      leaves the caller's as they are. In a new user namespace they count only there.
    * ``ambient``: whether a program that is not root inside keeps them across exec.
    * ``no_new_privs``: nothing that it executes gains privilege, setuid files included (prctl(2), PR_SET_NO_NEW_PRIVS).
    * ``seccomp``: the system calls that it may make, a :class:`Seccomp` policy; ``None`` lets it make all of them.
    """

    capabilities: Capabilities | None = None
    ambient: bool = False
    no_new_privs: bool = True
    seccomp: Seccomp | None = None

    def __attrs_post_init__(self) -> None:
        if self.seccomp is not None and not self.no_new_privs:
            raise InvalidValue(
                "seccomp= needs no_new_privs=True: else a setuid program could be misled by it (seccomp(2))"
            )

    @classmethod
    def strict(cls) -> Security:
        """No capabilities and no way to get any, and the system calls of ordinary programs (:meth:`Seccomp.strict`).

        The default of ``run()`` and ``Sandbox``.
        """
        return _strict()

    @classmethod
    def unconfined_as_the_caller(cls) -> Security:
        """The caller's own privileges, unchanged. The default of the bare :class:`Process`, as subprocess has it."""
        return cls(capabilities=None, no_new_privs=False)


@cache
def _strict() -> Security:
    from .seccomp import Seccomp

    return Security(capabilities=Capabilities(), seccomp=Seccomp.strict())
