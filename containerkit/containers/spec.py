"""What a container is made of: one frozen value, decided when it is created and kept in the store."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ..errors import InvalidValue
from ..limits import Limits
from ..security import Security
from ..units import size
from ..value import Value, field, frozen

if TYPE_CHECKING:
    from attrs import Attribute

    from ..build import Mount
    from ..images.config import ImageConfig

    Policy = Literal["no", "on-failure", "always", "unless-stopped"]

__all__ = ["ContainerSpec", "Health", "Restart", "signal_name", "signal_number"]

_POLICIES = ("no", "on-failure", "always", "unless-stopped")
_NANOSECOND = 1e-9


def signal_number(name: int | str) -> int:
    """From ``15``, ``"15"``, ``"TERM"``, ``"SIGTERM"``, ``"SIGRTMIN+3"``. Raises InvalidValue for no signal."""
    text = str(name).upper().removeprefix("SIG")
    base, plus, offset = text.partition("+")
    try:
        number = int(text) if text.isdecimal() else int(signal.Signals[f"SIG{base}"])
        number += int(offset) if plus and base == "RTMIN" else 0
    except (KeyError, ValueError):
        number = 0
    if not 0 < number <= signal.SIGRTMAX or isinstance(name, bool) or (plus and base != "RTMIN"):
        raise InvalidValue(f"{name!r} is not a signal: a number from 1 to 64, or a name as in signal(7), like 'TERM'")
    return number


def signal_name(number: int) -> str:
    """``"SIGTERM"``; what has no name of its own counts from SIGRTMIN."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"


@frozen()
class Restart(Value):
    """What happens when the program ends by itself.

    ``policy`` "no"; "on-failure": it starts again when its exit code is not 0, at most ``retries`` times (0: always);
    "always"; "unless-stopped". Nothing starts again what :meth:`Container.stop` has ended, until it is started.
    """

    policy: Policy = "no"
    retries: int = 0

    def __attrs_post_init__(self) -> None:
        if self.policy not in _POLICIES:
            raise InvalidValue(f"restart policy {self.policy!r} must be one of {', '.join(_POLICIES)}")
        if not isinstance(self.retries, int) or not 0 <= self.retries < 1 << 31:
            raise InvalidValue(f"retries={self.retries!r} must be a number from 0")
        if self.retries and self.policy != "on-failure":
            raise InvalidValue(f"retries={self.retries} are for the policy 'on-failure', not for {self.policy!r}")

    @classmethod
    def parse(cls, given: str | Restart) -> Restart:
        """From docker's words: ``"always"``, ``"on-failure:5"``."""
        if isinstance(given, Restart):
            return given
        policy, colon, retries = str(given).partition(":")
        if colon and not retries.isdecimal():
            raise InvalidValue(f"restart={given!r}: write the number of retries as in 'on-failure:5'")
        return cls(policy, int(retries or 0))  # type: ignore[arg-type]  # it is checked there

    def __str__(self) -> str:
        return f"{self.policy}:{self.retries}" if self.retries else self.policy


def _words(value: Sequence[str] | str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", value) if isinstance(value, str) else tuple(value)


def _seconds(instance: object, attribute: Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.001 <= value < 1e9:
        raise InvalidValue(f"{attribute.name}={value!r} must be seconds, at least a thousandth")


@frozen()
class Health(Value):
    """A program that is run in the container now and then: status 0 says that it is healthy.

    Attributes:
        test: the program and its arguments; a string is for /bin/sh.
        interval: seconds between the end of one and the start of the next.
        timeout: seconds that one may take; it is killed then, and has failed.
        retries: how many must fail in a row for "unhealthy".
        start_period: seconds after the start in which a failure does not count.
    """

    test: tuple[str, ...] = field(converter=_words)
    interval: float = field(default=30.0, validator=_seconds, kw_only=True)
    timeout: float = field(default=30.0, validator=_seconds, kw_only=True)
    retries: int = field(default=3, kw_only=True)
    start_period: float = field(default=0.0, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if not self.test or not all(isinstance(word, str) for word in self.test):
            raise InvalidValue(f"test={self.test!r} must be a program and its arguments")
        if not isinstance(self.retries, int) or not 1 <= self.retries < 1 << 31:
            raise InvalidValue(f"retries={self.retries!r} must be at least 1")
        if not 0 <= self.start_period < 1e9:
            raise InvalidValue(f"start_period={self.start_period!r} must be seconds, or 0 for none")

    @classmethod
    def of_image(cls, config: ImageConfig) -> Health | None:
        """The image's HEALTHCHECK; None when it has none, or says NONE, or says what nobody can run."""
        found = config.healthcheck or {}
        test = found.get("Test")
        if not isinstance(test, list) or not all(isinstance(word, str) for word in test) or len(test) < 2:
            return None
        if test[0] == "CMD":
            words = tuple(test[1:])
        elif test[0] == "CMD-SHELL" and len(test) == 2:
            words = (*(config.shell or ("/bin/sh", "-c")), test[1])
        else:
            return None
        times = {
            name: _duration(found.get(key), default)
            for name, key, default in (
                ("interval", "Interval", 30.0), ("timeout", "Timeout", 30.0), ("start_period", "StartPeriod", 0.0)
            )
        }  # fmt: skip
        retries = found.get("Retries")
        return cls(words, retries=retries if isinstance(retries, int) and 0 < retries < 1 << 31 else 3, **times)


def _duration(value: object, default: float) -> float:
    """Seconds from an image's nanoseconds; 0 and what is no number are docker's default."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 10**18:
        return default
    return max(value * _NANOSECOND, 0.001)


def _texts(value: Mapping[str, str] | None) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(x, str) for pair in value.items() for x in pair):
        raise InvalidValue(f"{value!r} must be a mapping of strings to strings")
    return dict(value)


def _environment(value: Mapping[str, str | None] | None) -> dict[str, str | None]:
    if value is None:
        return {}
    for name, text in value.items():
        if not isinstance(name, str) or not name or "=" in name or "\0" in name:
            raise InvalidValue(f"env has {name!r}: a name is a text without '='")
        if text is not None and (not isinstance(text, str) or "\0" in text):
            raise InvalidValue(f"env {name}={text!r} must be a text, or None to take it away")
    return dict(value)


def _restart(value: str | Restart) -> Restart:
    return Restart.parse(value)


def _tuple(value: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(value)


def _optional_tuple(value: Sequence[str] | str | None) -> tuple[str, ...] | None:
    return None if value is None else (value,) if isinstance(value, str) else tuple(value)


@frozen(kw_only=True)
class ContainerSpec(Value):
    """What a container is made of; all that a start needs beside the image's files and the host itself.

    Attributes:
        args: the program and its arguments, after Entrypoint and Cmd were combined.
        entrypoint: how many of them are the entrypoint's, by value; () when there is none.
        env: over PATH, HOME (by the user's account), LANG and HOSTNAME: the image's, the caller's; None takes one away.
        user: "user", "uid", "user:group" in the container; None is its root.
        cwd: where the program starts; made when it is missing, as docker does.
        network: "none" (loopback only) or "host".
        stop_signal: what :meth:`Container.stop` sends first.
        stop_timeout: seconds until it sends SIGKILL.
        init: PID 1 is ours, reaps and passes signals on; False: the program is PID 1, with all that this means.
        read_only: the container's own files cannot be changed; mounts can.
        extra_hosts: name to address, for /etc/hosts.
        dns: addresses of name servers for /etc/resolv.conf; None: the host's with network="host", else none.
        mounts: Bind, Tmpfs, File and VolumeMount values.
        log_max_size: bytes of one log file.
        log_files: how many of them are kept.
        auto_remove: who waits for its end removes it, or the next program that uses the store.
    """

    args: tuple[str, ...] = field(converter=_tuple)
    entrypoint: tuple[str, ...] = field(default=(), converter=_tuple)
    env: Mapping[str, str | None] = field(default=None, converter=_environment)
    user: str | None = None
    cwd: str = "/"
    hostname: str | None = None
    domainname: str | None = None
    limits: Limits = Limits()
    security: Security = Security.service()
    network: Literal["none", "host"] = "none"
    restart: Restart = field(default=Restart(), converter=_restart)
    stop_signal: int = field(default=signal.SIGTERM.value, converter=signal_number)
    stop_timeout: float = 10.0
    health: Health | None = None
    labels: Mapping[str, str] = field(default=None, converter=_texts)
    tty: bool = False
    stdin_open: bool = False
    init: bool = True
    read_only: bool = False
    extra_hosts: Mapping[str, str] = field(default=None, converter=_texts)
    dns: tuple[str, ...] | None = field(default=None, converter=_optional_tuple)
    mounts: tuple[Mount, ...] = field(default=(), converter=_tuple)
    log_max_size: int = field(default=10 << 20, converter=size)
    log_files: int = 3
    auto_remove: bool = False

    def __attrs_post_init__(self) -> None:
        _check_program(self)
        _check_names(self)
        _check_walls(self)
        _check_life(self)

    def __hash__(self) -> int:
        return hash((self.args, self.hostname, self.cwd, self.user))

    @property
    def cmd(self) -> tuple[str, ...]:
        """The part of ``args`` that is not the entrypoint's."""
        return self.args[len(self.entrypoint) :]


def _check_program(spec: ContainerSpec) -> None:
    if not spec.args or not spec.args[0]:
        raise InvalidValue("no program: the image has neither Entrypoint nor Cmd, and no args were given")
    for word in spec.args:
        if not isinstance(word, str) or "\0" in word:
            raise InvalidValue(f"args has {word!r}: each must be a text without NUL")
    if not spec.cwd.startswith("/") or "\0" in spec.cwd:
        raise InvalidValue(f"workdir={spec.cwd!r} must be an absolute path in the container")


def _check_names(spec: ContainerSpec) -> None:
    for field_name, name in (("hostname", spec.hostname), ("domainname", spec.domainname)):
        if name is not None and not (0 < len(name.encode()) <= 64 and name.isprintable() and " " not in name):
            raise InvalidValue(f"{field_name}={name!r} must be a name of at most 64 bytes")
    _check_hosts(spec.extra_hosts)
    _check_addresses("dns", spec.dns or ())


def _check_hosts(hosts: Mapping[str, str]) -> None:
    for name in hosts:
        if not name or any(c.isspace() or not c.isprintable() or c == "#" for c in name):
            raise InvalidValue(f"extra_hosts has the name {name!r}, which /etc/hosts cannot hold")
    _check_addresses("extra_hosts", hosts.values())


def _check_addresses(what: str, addresses: Any) -> None:
    if not addresses:
        return
    from ipaddress import ip_address

    for address in addresses:
        try:
            ip_address(address)
        except ValueError:
            raise InvalidValue(f"{what} has {address!r}, which is not an IP address") from None


def _check_walls(spec: ContainerSpec) -> None:
    if spec.network not in ("none", "host"):
        raise InvalidValue(f"network={spec.network!r} must be 'none' or 'host'")
    if spec.security.attest:
        raise InvalidValue("security.attest looks at each start from the caller, who is gone when a container restarts")
    if spec.security.seccomp is not None and spec.security.seccomp.notifies:
        raise InvalidValue("a supervisor decides about calls of this policy, and would end with the caller: use a rule")


def _check_life(spec: ContainerSpec) -> None:
    if not isinstance(spec.stop_timeout, (int, float)) or not 0 <= spec.stop_timeout < 1e6:
        raise InvalidValue(f"stop_timeout={spec.stop_timeout!r} must be seconds from 0")
    if not isinstance(spec.log_files, int) or not 1 <= spec.log_files <= 1000:
        raise InvalidValue(f"log_files={spec.log_files!r} must be a number from 1 to 1000")
    if spec.log_max_size < 4096:
        raise InvalidValue(f"log_max_size={spec.log_max_size} must be at least 4096 bytes")
    if spec.auto_remove and spec.restart.policy != "no":
        raise InvalidValue(f"auto_remove=True and restart={str(spec.restart)!r} exclude each other")
