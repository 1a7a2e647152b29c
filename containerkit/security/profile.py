"""Seccomp profiles as docker and podman write them (``seccomp.json``), and as an OCI config.json holds them.

What is read: ``defaultAction``, ``defaultErrnoRet``, ``defaultErrno``; ``archMap`` or ``architectures``; ``flags``; and
of each of ``syscalls`` ``names`` or ``name``, ``action``, ``errnoRet``, ``errno``, ``args``, ``includes`` and
``excludes`` with ``caps``, ``arches`` and ``minKernel``. Other keys are comments.

Where we differ from runc and crun, which give the rules to libseccomp:

* If several rules match a call, the strictest decides, in the kernel's order: kill, trap, errno, notify, log, allow.
  For libseccomp a rule without conditions beats one with, so "allow clone" undoes "refuse clone with these flags".
  Of several rules without conditions the first decides, as there: podman's own profile lists setns twice.
* A condition twice on the same argument of a rule is refused. runc makes two rules of it, crun fails.
* An argument that the kernel takes as 32 bits is compared as 32 bits (CVE-2019-10063).
* A rule with the same action as the default is kept. runc drops it, and then an exception from it stands alone.
* KILL and KILL_THREAD end the process: of a program that lost a thread nobody knows what it does.
* A name that we do not know is skipped only if the call then meets something at least as strict.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from typing import Any

from ..errors import InvalidValue
from . import syscalls
from .capabilities import Capabilities
from .seccomp import ARCHITECTURES, Action, Arg, Rule, Seccomp

__all__ = ["from_profile"]

_ACTIONS = {
    "SCMP_ACT_KILL": Action.KILL,
    "SCMP_ACT_KILL_PROCESS": Action.KILL,
    "SCMP_ACT_KILL_THREAD": Action.KILL,
    "SCMP_ACT_TRAP": Action.TRAP,
    "SCMP_ACT_NOTIFY": Action.NOTIFY,
    "SCMP_ACT_LOG": Action.LOG,
    "SCMP_ACT_ALLOW": Action.ALLOW,
}
_OPS = {
    "SCMP_CMP_NE": "!=",
    "SCMP_CMP_LT": "<",
    "SCMP_CMP_LE": "<=",
    "SCMP_CMP_EQ": "==",
    "SCMP_CMP_GE": ">=",
    "SCMP_CMP_GT": ">",
    "SCMP_CMP_MASKED_EQ": "==",
}
_LOG = "SECCOMP_FILTER_FLAG_LOG"
# The others are about threads, of which there is one when we load a filter, or about its speed.
_FLAGS = (_LOG, *("SECCOMP_FILTER_FLAG_" + name for name in ("SPEC_ALLOW", "TSYNC", "WAIT_KILLABLE_RECV")))
_GO_NAMES = {"x86_64": "amd64", "aarch64": "arm64"}


def from_profile(
    profile: str | bytes | Mapping[str, Any],
    *,
    capabilities: Capabilities | None,
    architecture: str,
    kernel: tuple[int, int] | None,
) -> Seccomp:
    """See :meth:`Seccomp.from_json`."""
    if not isinstance(profile, Mapping):
        try:
            profile = json.loads(profile)
        except ValueError as error:
            raise InvalidValue(f"the seccomp profile is not JSON: {error}") from None
        if not isinstance(profile, Mapping):
            raise InvalidValue("the seccomp profile is not a JSON object")
    default = _action(profile, "defaultAction", "defaultErrno", "defaultErrnoRet")
    here = _Here(capabilities or Capabilities(), architecture, kernel or _running_kernel())
    rules, settled = [], set[str]()
    for entry in _list(profile, "syscalls", Mapping):
        if here.applies(entry):
            action = _action(entry, "action", "errno", "errnoRet")
            names, args = _names(entry, action, default), _args(entry)
            if not args:
                names = [name for name in names if name not in settled]
                settled.update(names)
            rules.append(Rule(action, names, args))
    flags = _list(profile, "flags", str)
    if not set(flags) <= set(_FLAGS):
        raise InvalidValue(f"flags {flags} in the seccomp profile must be among {', '.join(_FLAGS)}")
    return Seccomp(
        default,
        sorted(rules, key=lambda rule: -_strictness(rule.action)),
        multiarch=architecture == "x86_64" and _lets_i386_run(profile),
        log=_LOG in flags,
    )


class _Here:
    """What a profile's conditions ask about."""

    def __init__(self, capabilities: Capabilities, architecture: str, kernel: tuple[int, int]) -> None:
        if architecture not in ARCHITECTURES:
            raise InvalidValue(f"architecture {architecture!r} must be one of {', '.join(ARCHITECTURES)}")
        self.capabilities = set(capabilities)
        self.architecture = _GO_NAMES[architecture]
        self.kernel = kernel

    def applies(self, entry: Mapping[str, Any]) -> bool:
        includes, excludes = _object(entry, "includes"), _object(entry, "excludes")
        arches = _list(includes, "arches", str)
        return (
            (not arches or self.architecture in arches)
            and self.capabilities.issuperset(_capabilities(includes))
            and self.kernel >= _version(includes, (0, 0))
            and self.architecture not in _list(excludes, "arches", str)
            and self.capabilities.isdisjoint(_capabilities(excludes))
            and self.kernel < _version(excludes, (1 << 30, 0))
        )


def _object(entry: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = entry.get(key) or {}
    if not isinstance(value, Mapping):
        raise InvalidValue(f"{key!r} in the seccomp profile must be an object, not {value!r:.200}")
    return value


def _list(entry: Mapping[str, Any], key: str, kind: type) -> list[Any]:
    value = entry.get(key) or []
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        items = "objects" if kind is Mapping else "strings"
        raise InvalidValue(f"{key!r} in the seccomp profile must be a list of {items}, not {value!r:.200}")
    return value


def _capabilities(condition: Mapping[str, Any]) -> set[str]:
    return set(Capabilities(*_list(condition, "caps", str)))


def _version(condition: Mapping[str, Any], otherwise: tuple[int, int]) -> tuple[int, int]:
    text = condition.get("minKernel")
    if not text:
        return otherwise
    try:
        major, minor = str(text).split(".")[:2]
        return int(major), int(minor)
    except ValueError:
        raise InvalidValue(f"minKernel {text!r} in the seccomp profile must be like 4.8") from None


def _running_kernel() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(digit for digit in minor if digit.isdigit()))


def _action(entry: Mapping[str, Any], key: str, name: str, number: str) -> Action:
    text = entry.get(key)
    if isinstance(text, str) and text in _ACTIONS:
        return _ACTIONS[text]
    if text != "SCMP_ACT_ERRNO":
        raise InvalidValue(f"{key} {text!r} in the seccomp profile must be SCMP_ACT_ERRNO, {', '.join(_ACTIONS)}")
    error = entry.get(name) or entry.get(number)
    return Action.errno(errno.EPERM if error is None else error)


def _strictness(action: Action) -> int:
    """The kernel's order: as a signed number, the smaller one wins (seccomp_run_filters)."""
    kind = action & 0xFFFF0000
    return -1 if kind == Action.KILL else kind


def _names(entry: Mapping[str, Any], action: Action, default: Action) -> list[str]:
    known = []
    elsewhere = syscalls.ELSEWHERE.split()
    for name in _list(entry, "names", str) or [entry.get("name")]:
        if any(name in syscalls.numbers(architecture) for architecture in (*ARCHITECTURES, "i386")):
            known.append(name)
        elif name not in elsewhere and _strictness(action) < _strictness(default):
            raise InvalidValue(
                f"unknown system call {name!r} in the seccomp profile: it would meet {default} and not {action}"
            )
    return known


def _args(entry: Mapping[str, Any]) -> list[Arg]:
    args = []
    for item in _list(entry, "args", Mapping):
        op, value = item.get("op"), _number(item, "value")
        if op not in _OPS:
            raise InvalidValue(f"op {op!r} in the seccomp profile must be one of {', '.join(_OPS)}")
        if op == "SCMP_CMP_MASKED_EQ":
            # Both sides are masked, as libseccomp does it.
            args.append(Arg(item.get("index"), "==", _number(item, "valueTwo") & value, mask=value))
        else:
            args.append(Arg(item.get("index"), _OPS[op], value))
    if len({arg.index for arg in args}) < len(args):
        raise InvalidValue(
            f"two conditions on one argument of {entry.get('names')} in the seccomp profile: runtimes do not agree on "
            "whether both must hold; write two rules, or one masked comparison"
        )
    return args


def _number(item: Mapping[str, Any], key: str) -> int:
    value = item.get(key, 0)
    if not isinstance(value, int):
        raise InvalidValue(f"{key} {value!r} in the seccomp profile must be a number")
    return value


def _lets_i386_run(profile: Mapping[str, Any]) -> bool:
    if "SCMP_ARCH_X86" in _list(profile, "architectures", str):
        return True
    return any(
        entry.get("architecture") == "SCMP_ARCH_X86_64" and "SCMP_ARCH_X86" in _list(entry, "subArchitectures", str)
        for entry in _list(profile, "archMap", Mapping)
    )
