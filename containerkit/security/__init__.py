"""What a program may still do once it runs: one value, :class:`Security`, of walls that stand by themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING

from ..errors import InvalidValue
from ..value import Value, field, frozen
from .capabilities import Capabilities

if TYPE_CHECKING:
    from .landlock import Landlock
    from .seccomp import Seccomp

__all__ = ["Capabilities", "Security"]

_SYSCTL_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


def _sysctls(given: Mapping[str, str | int] | Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    pairs = given.items() if isinstance(given, Mapping) else given
    made: dict[str, str] = {}
    for name, value in pairs:
        parts = name.split(".")
        if not (all(parts) and _SYSCTL_CHARACTERS.issuperset("".join(parts))):
            raise InvalidValue(f"sysctl {name!r} must be a name with dots, as in sysctl(8): net.ipv4.ip_forward")
        text = " ".join(str(value).split())
        if not text or not text.isascii() or not text.isprintable():
            raise InvalidValue(f"sysctl {name}: {value!r} must be a number or a short text")
        made[name] = text
    return tuple(sorted(made.items()))


def _label(name: str | None) -> str | None:
    if name is not None and (not name.isprintable() or not name.isascii() or " " in name or not name):
        raise InvalidValue(f"{name!r} is not the name of a label: printable ASCII without spaces")
    return name


@frozen(kw_only=True)
class Security(Value):
    """The privileges of a program. Presets, from the strictest: :meth:`strict`, :meth:`service`, :meth:`compat`.

    What a program may do:

    * ``capabilities``: all that it keeps, in its permitted, effective and bounding sets (capabilities(7)); ``None``
      leaves the caller's as they are. In a new user namespace they count only there.
    * ``ambient``: whether a program that is not root inside keeps them across exec.
    * ``no_new_privs``: nothing that it executes gains privilege, setuid files included (prctl(2), PR_SET_NO_NEW_PRIVS).
    * ``seccomp``: the system calls that it may make, a :class:`Seccomp` policy; ``None`` lets it make all of them.
    * ``landlock``: the files, ports and processes that it reaches, a :class:`Landlock` policy.
    * ``user_namespaces``: whether it may make user namespaces, where it would have every capability. ``False`` allows
      none below a new user namespace of the start, whatever the other walls say (``user.max_user_namespaces=0``).
    * ``mdwe``: memory that was writable can never be executed (prctl(2), PR_SET_MDWE, Linux 6.3). Programs that compile
      while they run (node, Java, PyPy) do not work then.

    What it is given:

    * ``sysctls``: ``{"net.ipv4.ip_forward": 1}``: settings of the start's own new namespaces: ``net.*``,
      ``kernel.shm*``, ``kernel.msg*``, ``kernel.sem``, ``fs.mqueue.*``, ``user.max_*``. They are read back.
    * ``low_ports``: in a new network namespace, everybody may bind ports below 1024.
    * ``session_keyring``: a new session keyring instead of the caller's, which may hold keys to file systems
      (session-keyring(7)). An ordinary user has 200 keys (``kernel.keys.maxkeys``): at most so many at the same time.
    * ``core_scheduling``: never on a processor core together with a program that is not under this start (prctl(2),
      PR_SCHED_CORE, Linux 5.14), against what leaks between hyperthreads.
    * ``apparmor``, ``selinux``: the label that it runs under; the kernel must have that security module.

    ``attest``: before the program starts, the caller looks at its process from outside, and compares ids, groups,
    capabilities, no_new_privs, seccomp and every mount with what was asked for; a difference is a SpawnError.
    """

    capabilities: Capabilities | None = None
    ambient: bool = False
    no_new_privs: bool = True
    seccomp: Seccomp | None = None
    landlock: Landlock | None = None
    user_namespaces: bool = True
    mdwe: bool = False
    sysctls: tuple[tuple[str, str], ...] = field(default=(), converter=_sysctls)
    low_ports: bool = False
    session_keyring: bool = False
    core_scheduling: bool = False
    apparmor: str | None = field(default=None, converter=_label)
    selinux: str | None = field(default=None, converter=_label)
    attest: bool = False

    def __attrs_post_init__(self) -> None:
        for name in ("seccomp", "landlock"):
            if getattr(self, name) is not None and not self.no_new_privs:
                raise InvalidValue(
                    f"{name}= needs no_new_privs=True: else a setuid program could be misled by it ({name}(2))"
                )

    def explain(self) -> str:
        """The wall in words, a line for each part of it: what stands, and what does not."""
        from .explain import explain

        return explain(self)

    def allow_user_namespaces(self) -> Security:
        """This policy for programs that make sandboxes of their own: bubblewrap, browsers, containerkit.

        In a user namespace of its own a program has every capability there, and so reaches a lot more of the kernel:
        namespaces and mounts are what most of its privilege escalations came through. Landlock's rules for files are
        given up, because they forbid mounting, and CAP_SETFCAP is kept, without which root can map no root.
        """
        import attrs

        from .nested import landlock_for_nesting, seccomp_for_nesting

        kept = self.capabilities
        return attrs.evolve(
            self,
            capabilities=None if kept is None else Capabilities(*kept, "SETFCAP"),
            user_namespaces=True,
            seccomp=None if self.seccomp is None else seccomp_for_nesting(self.seccomp),
            landlock=None if self.landlock is None else landlock_for_nesting(self.landlock),
        )

    # ---- presets

    @classmethod
    def strict(cls) -> Security:
        """For untrusted programs, and the default of ``run()`` and ``Sandbox``.

        No capabilities and no way to get any, the system calls of ordinary programs (:meth:`Seccomp.strict`), Landlock
        around the mounts, no user namespaces.
        """
        return _strict()

    @classmethod
    def service(cls) -> Security:
        """For daemons and package managers: a root that can change owners and users, and nothing else.

        CAP_CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETFCAP, SETGID, SETUID, which count only in the sandbox's own
        user namespace; the calls of :meth:`Seccomp.service`; Landlock around the mounts; low ports for everybody; no
        user namespaces. With no_new_privs, as everywhere here: sudo and su give nothing.
        """
        return _service()

    @classmethod
    def compat(cls) -> Security:
        """For images that were made for docker or podman: the capabilities that podman gives, and what both let call.

        CAP_CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, NET_BIND_SERVICE, SETFCAP, SETGID, SETPCAP, SETUID, SYS_CHROOT;
        :meth:`Seccomp.compat`; low ports for everybody. Unlike theirs, setuid programs gain nothing (no_new_privs), and
        user namespaces cannot be made.
        """
        return _compat()

    @classmethod
    def unconfined_as_the_caller(cls) -> Security:
        """The caller's own privileges, unchanged. The default of the bare :class:`Process`, as subprocess has it.

        In a sandbox: every capability in its user namespace, every system call, no Landlock.
        """
        return cls(capabilities=None, no_new_privs=False)


@cache
def _strict() -> Security:
    from .landlock import Landlock
    from .seccomp import Seccomp

    return Security(
        capabilities=Capabilities(),
        seccomp=Seccomp.strict(),
        landlock=Landlock.around_mounts(),
        user_namespaces=False,
    )


@cache
def _service() -> Security:
    from .landlock import Landlock
    from .seccomp import Seccomp

    return Security(
        capabilities=Capabilities("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETFCAP", "SETGID", "SETUID"),
        seccomp=Seccomp.service(),
        landlock=Landlock.around_mounts(),
        user_namespaces=False,
        low_ports=True,
    )


@cache
def _compat() -> Security:
    from .seccomp import Seccomp

    capabilities = Capabilities(
        "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETFCAP", "SETGID", "SETPCAP",
        "SETUID", "SYS_CHROOT",
    )  # fmt: skip
    return Security(
        capabilities=capabilities,
        seccomp=Seccomp.compat(capabilities),
        user_namespaces=False,
        low_ports=True,
    )
