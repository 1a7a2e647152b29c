"""Device nodes that a program may use, as values: the allow-list of a device cgroup."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

from .errors import InvalidValue, syscall_error
from .value import Value, field, frozen

if TYPE_CHECKING:
    from attrs import Attribute

    Kind = Literal["b", "c"]
    Node = tuple[Kind, int | None, int | None]

__all__ = ["STANDARD", "Device", "allow_list"]

_RULE = re.compile(r"([abc])\s+([0-9]+|\*):([0-9]+|\*)(?:\s+([rwm]+))?", re.ASCII)
_NODE = re.compile(r"(/[^\0]*?)(?:[ ]+([rwm]+))?", re.DOTALL)
_MAJOR_BITS, _MINOR_BITS = 12, 20  # the kernel's dev_t (linux/kdev_t.h)


def _number(value: int | None, what: str, bits: int) -> None:
    known = isinstance(value, int) and not isinstance(value, bool)
    if value is not None and not (known and 0 <= value < 1 << bits):
        raise InvalidValue(f"{what}={value!r} must be a number from 0 to {(1 << bits) - 1}, or None for all")


def _access(value: str) -> str:
    """In the order in which the kernel writes it."""
    return "".join(letter for letter in "rwm" if letter in value) if _is_access(value) else value


def _is_access(value: object) -> bool:
    return isinstance(value, str) and value != "" and set(value) <= set("rwm")


@frozen()
class Device(Value):
    """One device node, or all of a kind, and what may be done with it.

    >>> str(Device("c", 1, 3))
    'c 1:3 rwm'

    Attributes:
        kind: "c" for character devices, "b" for block devices.
        major: the driver's number; None for all.
        minor: the device's number with its driver; None for all.
        access: letters of "rwm": open for reading, for writing, and make a node (mknod(2)).
    """

    kind: Kind = field()
    major: int | None = field(default=None)
    minor: int | None = field(default=None)
    access: str = field(default="rwm", converter=_access)

    @kind.validator
    def _check_kind(self, attribute: Attribute[Any], value: object) -> None:
        if value not in ("b", "c"):
            raise InvalidValue(f"kind={value!r} must be 'b' (block) or 'c' (character)")

    @major.validator
    def _check_major(self, attribute: Attribute[Any], value: int | None) -> None:
        _number(value, "major", _MAJOR_BITS)

    @minor.validator
    def _check_minor(self, attribute: Attribute[Any], value: int | None) -> None:
        _number(value, "minor", _MINOR_BITS)

    @access.validator
    def _check_access(self, attribute: Attribute[Any], value: str) -> None:
        if not _is_access(value):
            raise InvalidValue(f"access={value!r} must be letters of 'rwm' (read, write, mknod), at least one")

    def __str__(self) -> str:
        """As the kernel's own files have it (Documentation/admin-guide/cgroup-v1/devices.rst)."""
        return f"{self.kind} {_shown(self.major)}:{_shown(self.minor)} {self.access}"

    @property
    def node(self) -> Node:
        """Which nodes it is about, without what may be done with them."""
        return self.kind, self.major, self.minor

    def covers(self, node: Node) -> bool:
        """Whether these are all, or some, of the nodes that it is about."""
        return all(mine is None or mine == its for mine, its in zip(self.node, node, strict=True))


def _shown(number: int | None) -> str:
    return "*" if number is None else str(number)


def parse(rule: str | Device) -> tuple[Device, ...]:
    """``"c 1:3 rw"``, ``"c 136:*"``, ``"a *:*"`` (both kinds), or a node: ``"/dev/null"``, ``"/dev/null r"``.

    A node is looked up now. Raises InvalidValue for what is no rule and no node, NotFound for a node that is not there.
    """
    if isinstance(rule, Device):
        return (rule,)
    text = rule.strip() if isinstance(rule, str) else ""
    found = _RULE.fullmatch(text)
    if found:
        # "a" is never handed to the kernel, to which it means "everything, whatever the numbers say".
        kinds: tuple[Kind, ...] = ("b", "c") if found[1] == "a" else ("b",) if found[1] == "b" else ("c",)
        major, minor = (None if number == "*" else int(number) for number in found.group(2, 3))
        return tuple(Device(kind, major, minor, found[4] or "rwm") for kind in kinds)
    node = _NODE.fullmatch(text)
    if node is None:
        raise InvalidValue(
            f"{rule!r} is not a device: write the path of a node ('/dev/fuse', '/dev/null r') or numbers "
            "('c 10:229 rwm', 'b 8:* r')"
        )
    return (_of_node(node[1], node[2] or "rwm"),)


def _of_node(path: str, access: str) -> Device:
    try:
        found = os.stat(path)
    except OSError as error:
        raise syscall_error(error.errno or 0, "stat", path, "devices= looks nodes up when it is made") from None
    if not (stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)):
        raise InvalidValue(f"{path!r} is not a device node")
    kind: Kind = "c" if stat.S_ISCHR(found.st_mode) else "b"
    return Device(kind, os.major(found.st_rdev), os.minor(found.st_rdev), access)


def allow_list(rules: Iterable[str | Device]) -> tuple[Device, ...]:
    """What is allowed by several rules together, with each node's whole access in one rule, sorted.

    The kernel wants one rule to allow all that an open asks for: "read all" and "write this one" would not let it be
    opened for both. So rules that overlap are written out: what any of them allows, is allowed.
    """
    if isinstance(rules, str):
        raise InvalidValue(f"devices={rules!r} must be a list of devices: [{rules!r}]")
    given = [device for rule in rules for device in parse(rule)]
    nodes = {both for one, other in product(given, given) if (both := _overlap(one, other)) is not None}
    whole = [Device(*node, "".join(device.access for device in given if device.covers(node))) for node in nodes]
    needed = [
        device
        for device in whole
        if not any(
            other is not device and other.covers(device.node) and set(other.access) >= set(device.access)
            for other in whole
        )
    ]
    return tuple(sorted(needed, key=str))


def _overlap(one: Device, other: Device) -> Node | None:
    """The nodes that both are about."""
    numbers = []
    for mine, its in ((one.major, other.major), (one.minor, other.minor)):
        if None not in (mine, its) and mine != its:
            return None
        numbers.append(its if mine is None else mine)
    return (one.kind, numbers[0], numbers[1]) if one.kind == other.kind else None


STANDARD = tuple(
    Device("c", major, minor) for major, minor in ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, None))
)
"""null, zero, full, random, urandom, tty, ptmx and the terminals: what every container has (OCI runtime
specification, "Default Devices")."""
