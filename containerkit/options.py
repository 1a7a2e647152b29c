"""The keyword arguments that several calls share, for type checkers. Nothing imports this at run time.

A test holds these against the signatures that they stand for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypedDict

from .build import Mount
from .idmap import IdMap, IdRange
from .kernel.calls import StrPath
from .launch import HasFileno
from .limits import Limits
from .namespace import Namespace
from .namespaces import Namespaces
from .process import Stream
from .security import Security
from .security.supervisor import Supervisor

if TYPE_CHECKING:
    from .rootfs import Root

__all__ = ["ConverseOptions", "JoinOptions", "JoinRunOptions", "LaunchOptions", "RunOptions", "SandboxOptions"]


class SandboxOptions(TypedDict, total=False):
    """What a sandbox is: of ``run``, ``Sandbox`` and ``explain``."""

    rootfs: Root | None
    mounts: Iterable[Mount]
    env: Mapping[str, str | None] | None
    cwd: StrPath | None
    user: int | str | None
    hostname: str | None
    network: Literal["none", "host"] | Namespace
    limits: Limits
    security: Security
    supervisor: Supervisor | None
    idmap: IdMap | IdRange | None


class JoinOptions(TypedDict, total=False):
    """What each program in a sandbox may have otherwise than the sandbox."""

    env: Mapping[str, str | None] | None
    cwd: StrPath | None
    user: int | str | None
    limits: Limits | None


class ConverseOptions(TypedDict, total=False):
    """How ``run`` talks with the program; ``text``, which the type of the result hangs on, stands apart."""

    timeout: float | None
    grace: float
    input: str | bytes | None
    stdin: Stream
    capture_output: bool
    check: bool
    start_timeout: float


class RunOptions(SandboxOptions, ConverseOptions, total=False):
    """All of ``run`` but ``text``."""


class JoinRunOptions(JoinOptions, ConverseOptions, total=False):
    """All of ``Sandbox.run`` but ``text``."""


class LaunchOptions(TypedDict, total=False):
    """All of ``Process`` but its standard streams."""

    root: Root | None
    namespaces: Namespaces | None
    idmap: IdMap | IdRange | None
    cgroup: HasFileno | Sequence[HasFileno] | None
    mounts: Iterable[Mount]
    security: Security | None
    supervisor: Supervisor | None
    env: Mapping[str, str | None] | None
    cwd: StrPath | None
    user: int | str | None
    groups: Sequence[int]
    tty: bool | tuple[int, int]
    pass_fds: Iterable[int] | Mapping[int, int]
    rlimits: Mapping[str, int | tuple[int, int]] | None
    umask: int
    hostname: str | None
    domainname: str | None
    session: bool
    nice: int | None
    affinity: Iterable[int] | None
    oom_score_adj: int | None
    init: bool | None
    cpu_seconds: float | None
