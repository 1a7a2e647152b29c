"""Landlock: which files, TCP ports, sockets and processes a program reaches, whatever it is allowed otherwise.

It is a wall of its own (landlock(7), Linux 5.13): the mounts decide what there is to see, and Landlock, which knows
nothing of them, decides once more at each open. Nobody needs privilege for it, so it is of use without any namespace::

    policy = Landlock({"/": "read execute", "/srv/out": "write"})
    Process(["convert", "in.png", "/srv/out/out.png"], security=Security(landlock=policy))

Rights are named as in landlock(7), without LANDLOCK_ACCESS_FS_, or by group: ``read`` (files and directories),
``write`` (write, truncate, make, remove, rename and link), ``execute``, ``devices`` (make device nodes, and ioctl on
them). What is not allowed by the rule of a directory on the way up is refused with EACCES.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING

from ..errors import InvalidValue, Unsupported
from ..kernel import calls
from ..plan import OPTIONAL, Code, Op, Stage
from ..value import Value, field, frozen

if TYPE_CHECKING:
    from typing import Any

__all__ = ["Landlock"]

RIGHTS = (
    "execute", "write_file", "read_file", "read_dir", "remove_dir", "remove_file", "make_char", "make_dir", "make_reg",
    "make_sock", "make_fifo", "make_block", "make_sym", "refer", "truncate", "ioctl_dev",
)  # fmt: skip
"""In the kernel's order: the index is the number of the bit (linux/landlock.h)."""

GROUPS = {
    "read": "read_file read_dir",
    "write": "write_file remove_dir remove_file make_dir make_reg make_sock make_fifo make_sym refer truncate",
    "devices": "make_char make_block ioctl_dev",
}
SCOPES = ("abstract_unix_socket", "signal")

# By the version of the interface that has it first.
_FS_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}
_NET_ABI, _SCOPE_ABI, _ALL_RIGHTS_ABI = 4, 6, 5
_BIND_TCP, _CONNECT_TCP = 1, 2
_STREAMS = 0xC006  # read, write, truncate, ioctl


@cache
def rights(names: str) -> int:
    """The mask for rights and groups of rights by name, apart by spaces or commas."""
    mask = 0
    for name in names.replace(",", " ").split():
        for right in GROUPS.get(name, name).split():
            if right not in RIGHTS:
                known = ", ".join((*GROUPS, *RIGHTS))
                raise InvalidValue(f"unknown Landlock right {name!r}; one of {known}")
            mask |= 1 << RIGHTS.index(right)
    return mask


def _shown(mask: int, known: int = (1 << len(RIGHTS)) - 1) -> str:
    """The shortest names of a mask, groups first; a group is whole if it is so among the known rights."""
    names = []
    for name in (*GROUPS, *RIGHTS):
        one = rights(name) & known
        if one and mask & one == one:
            names.append(name)
            mask &= ~one
    return " ".join(names) or "nothing"


def _paths(paths: Mapping[Any, str] | Iterable[tuple[bytes, int]] | None) -> tuple[tuple[bytes, int], ...] | None:
    if paths is None:
        return None
    if not isinstance(paths, Mapping):
        return tuple(paths)  # attrs.evolve gives back what was made below
    made = []
    for path, names in paths.items():
        raw = calls.encode(path)
        if not raw.startswith(b"/"):
            raise InvalidValue(f"Landlock path {path!r} must be absolute: it is looked up inside the root")
        made.append((raw, rights(names)))
    return tuple(made)


def _ports(ports: Iterable[int] | None) -> tuple[int, ...] | None:
    if ports is None:
        return None
    made = tuple(ports)
    for port in made:
        if not isinstance(port, int) or not 0 <= port <= 65535:
            raise InvalidValue(f"{port!r} is not a port from 0 to 65535")
    return made


def _scopes(scopes: Iterable[str]) -> tuple[str, ...]:
    made = (scopes,) if isinstance(scopes, str) else tuple(scopes)
    for scope in made:
        if scope not in SCOPES:
            raise InvalidValue(f"unknown Landlock scope {scope!r}; one of {', '.join(SCOPES)}")
    return made


def _paths_repr(paths: tuple[tuple[bytes, int], ...] | None) -> str:
    return repr(paths if paths is None else {os.fsdecode(path): _shown(mask) for path, mask in paths})


@frozen()
class Landlock(Value):
    """What a program reaches (landlock(7)), and everything that it starts. It cannot be undone.

    * ``paths``: ``{path: rights}``, for a file, or a directory and all below it. They are looked up inside the new
      root, when everything else is set up; one that is not there is an error, and with ``mounts`` is left out. ``None``
      leaves files alone, ``{}`` allows none.
    * ``mounts``: rules for the root and each mount of the start are added: to be read and executed, and written where
      it is mounted writable. A rule cannot take away what the rule of a directory above gives: below a writable root,
      read-only mounts are left to the mounts themselves.
    * ``bind_tcp``, ``connect_tcp``: the TCP ports that may be bound or connected to; ``None`` leaves them alone (ABI 4,
      Linux 6.7). UDP and other protocols are not covered: a network namespace or a seccomp policy is.
    * ``scopes``: "abstract_unix_socket" and "signal" (ABI 6, Linux 6.12): abstract sockets of programs that are not
      under this same start cannot be connected to, and their processes not signalled. With ``mounts`` the programs of
      one Sandbox, which each have a domain of their own, keep the abstract sockets of a network of theirs.
    * ``strict``: raise Unsupported on a kernel that cannot enforce all of it. By default what the kernel does not know
      is left out, and files are left alone before ABI 2 (Linux 5.19), where no file could be moved between directories.

    With rules for files, mounting and unmounting is refused as well. The standard streams can always be opened again
    (``/dev/stdout``).
    """

    paths: tuple[tuple[bytes, int], ...] | None = field(default=None, converter=_paths, repr=_paths_repr)
    mounts: bool = field(default=False, kw_only=True)
    bind_tcp: tuple[int, ...] | None = field(default=None, converter=_ports, kw_only=True)
    connect_tcp: tuple[int, ...] | None = field(default=None, converter=_ports, kw_only=True)
    scopes: tuple[str, ...] = field(default=(), converter=_scopes, kw_only=True)
    strict: bool = field(default=False, kw_only=True)

    @classmethod
    def around_mounts(cls) -> Landlock:
        """The second wall around a sandbox: no more than its mounts show, whatever else comes into reach.

        A directory of the host that was opened before, or mounted where it should not be, is not readable, what is
        mounted read-only not writable, and sockets and processes outside are not reached.
        """
        return cls(mounts=True, scopes=SCOPES)

    @property
    def files(self) -> bool:
        """Whether it is about files at all."""
        return self.paths is not None or self.mounts

    def missing(self, abi: int | None = None) -> list[str]:
        """What of it a kernel with this version of Landlock's interface cannot enforce; by default, this kernel."""
        abi = calls.landlock_abi() if abi is None else abi
        wanted = (
            (self.files, "files", _ALL_RIGHTS_ABI if abi >= 2 else 2),
            (self.bind_tcp is not None or self.connect_tcp is not None, "TCP ports", _NET_ABI),
            (bool(self.scopes), "scopes", _SCOPE_ABI),
        )
        return [f"{what} (ABI {least})" for asked, what, least in wanted if asked and abi < least]

    def operation(self, mounted: tuple[tuple[bytes, str], ...] = (), *, shared: tuple[str, ...] = ()) -> Op | None:
        """The step of a plan that enforces it; None when there is nothing that this kernel can enforce.

        ``mounted`` are (path, rights) of the start's own mounts; ``shared`` scopes are left to the namespaces that the
        program joins, or it would be apart from the programs that it is to work with. Raises Unsupported if it is
        strict and something is missing.
        """
        return _operation(self, mounted, shared, calls.landlock_abi())

    def __str__(self) -> str:
        parts = ["the root and its mounts as they are mounted"] if self.mounts else []
        parts += [f"{os.fsdecode(path)} {_shown(mask)}" for path, mask in self.paths or ()]
        if self.files and not parts:
            parts.append("no file")
        for name, ports in (("bind", self.bind_tcp), ("connect", self.connect_tcp)):
            if ports is not None:
                parts.append(f"{name} TCP {', '.join(map(str, ports)) or 'nothing'}")
        parts += [f"{scope.replace('_', ' ')}s of its own" for scope in self.scopes]
        return "Landlock: " + "; ".join(parts or ["nothing"])


@cache
def _operation(
    policy: Landlock, mounted: tuple[tuple[bytes, str], ...], shared: tuple[str, ...], abi: int
) -> Op | None:
    missing = policy.missing(abi)
    if missing and policy.strict:
        has = f"has ABI {abi}" if abi else "has no Landlock (is it in the list of lsm= on its command line?)"
        raise Unsupported(f"Landlock(strict=True): this kernel {has} and cannot enforce {', '.join(missing)}")
    known = _known_rights(abi) if policy.files else 0
    rules = {path: rights(f"read execute {names}") for path, names in mounted} if policy.mounts else {}
    for path, mask in policy.paths or ():
        rules[path] = rules.get(path, 0) | mask
    kept = [(mask & known).to_bytes(8, "little") + path for path, mask in rules.items() if mask & known]
    ports, net = _port_rules(policy) if abi >= _NET_ABI else ([], 0)
    scopes = [scope for scope in policy.scopes if not (policy.mounts and scope in shared)]
    scoped = sum(1 << SCOPES.index(scope) for scope in scopes) if abi >= _SCOPE_ABI else 0
    if not (known or net or scoped):
        return None
    attribute = b"".join(number.to_bytes(8, "little") for number in (known, net, scoped))
    words = _words(kept, known, net, scoped, abi)
    flags = OPTIONAL if policy.mounts else 0  # a program of the sandbox may have moved a directory with a mount in it
    return Op(
        Code.LANDLOCK, Stage.PROGRAM, words, attribute, *kept, *ports, flags=flags, a=len(kept), b=_STREAMS & known
    )


def _known_rights(abi: int) -> int:
    """Without REFER, which came with ABI 2, a move to another directory fails: too much for a second wall."""
    if abi < 2:
        return 0
    return (1 << max(count for version, count in _FS_RIGHTS.items() if version <= abi)) - 1


def _port_rules(policy: Landlock) -> tuple[list[bytes], int]:
    rules, handled = [], 0
    for right, ports in ((_BIND_TCP, policy.bind_tcp), (_CONNECT_TCP, policy.connect_tcp)):
        if ports is not None:
            handled |= right
            rules += [right.to_bytes(8, "little") + port.to_bytes(8, "little") for port in ports]
    return rules, handled


def _words(kept: list[bytes], known: int, net: int, scoped: int, abi: int) -> str:
    parts = [f"{os.fsdecode(rule[8:])} {_shown(int.from_bytes(rule[:8], 'little'), known)}" for rule in kept]
    parts += ["TCP ports"] * bool(net) + [scope for n, scope in enumerate(SCOPES) if scoped >> n & 1]
    return f"confine it with Landlock (ABI {abi}): {', '.join(parts) or 'no file'}"
