"""Which namespaces a process gets: for each of the eight kinds the caller's, a new one, or one that exists."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from .errors import InvalidValue
from .kernel.calls import CLONE_FLAGS
from .plan import SLOT_NET, Code, Op, Plan, Stage
from .value import Value, frozen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .namespace import Namespace

__all__ = ["Namespaces"]

_NEW_IN_CLONE = ("user", "mnt", "pid", "net", "ipc", "uts")


@frozen(kw_only=True)
class Namespaces(Value):
    """The namespaces of a process, by the kernel's names for their kinds (namespaces(7)).

    Each is ``"host"`` (the caller's own), ``"new"``, or a :class:`Namespace` to join. ``clock_offsets`` sets a new time
    namespace's monotonic and boot-time clocks, in seconds after the caller's (time_namespaces(7), Linux 5.6).

    ``Namespaces()`` is no isolation at all; :meth:`all` is what ``run()`` uses.
    """

    user: Literal["host", "new"] | Namespace = "host"
    mnt: Literal["host", "new"] | Namespace = "host"
    pid: Literal["host", "new"] | Namespace = "host"
    net: Literal["host", "new"] | Namespace = "host"
    ipc: Literal["host", "new"] | Namespace = "host"
    uts: Literal["host", "new"] | Namespace = "host"
    cgroup: Literal["host", "new"] | Namespace = "host"
    time: Literal["host", "new"] | Namespace = "host"
    clock_offsets: tuple[float, float] | None = None

    def __attrs_post_init__(self) -> None:
        # Not a validator on each field: eight of them would double what the class costs at import.
        for kind, value in self.items():
            if value not in ("host", "new") and not hasattr(value, "fileno"):
                raise InvalidValue(
                    f"namespace {kind}={value!r} must be 'host' (the caller's), 'new', or a Namespace to join"
                )
        if self.clock_offsets is not None:
            self._check_offsets(self.clock_offsets)

    def _check_offsets(self, value: object) -> None:
        pair = isinstance(value, tuple) and len(value) == 2
        if not pair or not all(isinstance(n, (int, float)) and abs(n) < 1e12 for n in value):  # type: ignore[attr-defined]
            raise InvalidValue(f"clock_offsets={value!r} must be two numbers of seconds: (monotonic, boottime)")
        if self.time != "new":
            raise InvalidValue("clock_offsets= needs time='new': a time namespace that exists has its clocks already")

    @classmethod
    def all(cls, *, net: Literal["host", "new"] | Namespace = "new") -> Namespaces:
        """A new one of every kind; ``net`` may be another."""
        return cls(user="new", mnt="new", pid="new", net=net, ipc="new", uts="new", cgroup="new", time="new")

    def items(self) -> Iterator[tuple[str, Literal["host", "new"] | Namespace]]:
        """(kind, which) for each of the eight kinds, in the order in which they can be entered."""
        for kind in CLONE_FLAGS:
            yield kind, getattr(self, kind)

    def new(self, kind: str) -> bool:
        """Whether a new one of this kind is made."""
        return bool(getattr(self, kind) == "new")

    def clone_flags(self) -> int:
        """What clone3 makes at once; cgroup and time namespaces are made by the first process itself."""
        return sum(CLONE_FLAGS[kind] for kind in _NEW_IN_CLONE if self.new(kind))

    def compile(self, plan: Plan, *, root_caller: bool, beside: bool = False) -> None:
        """Add the operations that join, unshare and bring up the loopback interface.

        ``beside`` lets the helper make a network namespace while the first process works; the plan's writer then adds
        ENTER_NETWORK where the first process needs it.
        """
        joined = [(kind, ns) for kind, ns in self.items() if not isinstance(ns, str)]
        # Entering needs rights over the target's owner: root has them now and would lose those of the host by entering
        # a user namespace; anyone else gets them only by entering it (setns(2)).
        joined.sort(key=lambda item: (item[0] == "user") == root_caller)
        for kind, ns in joined:
            plan.add(
                Op(Code.JOIN, Stage.JOIN, f"join {kind} namespace {ns!r}", fd=plan.fd(ns.fileno()), a=CLONE_FLAGS[kind])
            )
        late = [kind for kind in ("cgroup", "time") if self.new(kind)]
        if late:
            plan.add(self._unshare(late))
        if self.new("net"):
            if beside:
                plan.clone_flags &= ~CLONE_FLAGS["net"]
                plan.add(*_NETWORK)
                plan.beside = True
            else:
                plan.add(_LOOPBACK)

    def _unshare(self, late: list[str]) -> Op:
        flags = sum(CLONE_FLAGS[kind] for kind in late)
        if self.clock_offsets is None or "time" not in late:
            return _unshare_op(flags, " and ".join(late))
        lines = []
        for clock, seconds in zip(("monotonic", "boottime"), self.clock_offsets, strict=True):
            whole, nanos = divmod(round(seconds * 1_000_000_000), 1_000_000_000)
            lines.append(f"{clock} {whole} {nanos}\n")
        return Op(
            Code.UNSHARE,
            Stage.EARLY,
            f"make new {' and '.join(late)} namespaces, clocks offset by {self.clock_offsets} s",
            "".join(lines).encode(),
            a=flags,
        )


_NETWORK = (
    Op(Code.NETWORK, Stage.BESIDE, "make a new network namespace", slot=SLOT_NET),
    Op(Code.LOOPBACK, Stage.BESIDE, "bring the loopback interface up"),
)
ENTER_NETWORK = Op(Code.ENTER, Stage.INSIDE, "enter the network namespace", slot=SLOT_NET, a=CLONE_FLAGS["net"])
_LOOPBACK = Op(Code.LOOPBACK, Stage.EARLY, "bring the loopback interface up")
_UNSHARE_OPS: dict[int, Op] = {}


def _unshare_op(flags: int, kinds: str) -> Op:
    if flags not in _UNSHARE_OPS:
        _UNSHARE_OPS[flags] = Op(Code.UNSHARE, Stage.EARLY, f"make new {kinds} namespaces", a=flags)
    return _UNSHARE_OPS[flags]
