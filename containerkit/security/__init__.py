"""What a program may still do once it runs: one value, :class:`Security`, and the capabilities by name."""

from __future__ import annotations

from ..value import Value, frozen
from .capabilities import Capabilities

__all__ = ["Capabilities", "Security"]


@frozen(kw_only=True)
class Security(Value):
    """The privileges of a program.

    * ``capabilities``: all that it keeps, in its permitted, effective and bounding sets (capabilities(7)); ``None``
      leaves the caller's as they are. In a new user namespace they count only there.
    * ``ambient``: whether a program that is not root inside keeps them across exec.
    * ``no_new_privs``: nothing that it executes gains privilege, setuid files included (prctl(2), PR_SET_NO_NEW_PRIVS).
    """

    capabilities: Capabilities | None = None
    ambient: bool = False
    no_new_privs: bool = True

    @classmethod
    def strict(cls) -> Security:
        """No capabilities, and no way to get any. The default of ``run()`` and ``Sandbox``."""
        return _STRICT

    @classmethod
    def unconfined_as_the_caller(cls) -> Security:
        """The caller's own privileges, unchanged. The default of the bare :class:`Process`, as subprocess has it."""
        return cls(capabilities=None, no_new_privs=False)


_STRICT = Security(capabilities=Capabilities())
