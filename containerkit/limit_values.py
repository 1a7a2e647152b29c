"""What people write for limits, checked and in the one form that a value keeps: tuples, numbers, the kernel's lists."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypedDict

from .errors import InvalidValue
from .units import size

__all__ = ["IoMax", "IoRates", "cpu_list", "cpus_of", "io_latency", "io_max", "memory", "objects", "raw", "sizes"]

_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]+)?)[ ]*%", re.ASCII)
_RATE = re.compile(r"(.*?)[ ]*(?:/s|ps)?", re.ASCII | re.IGNORECASE)
_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", re.ASCII)
_DEVICE = re.compile(r"[0-9]{1,4}:[0-9]{1,7}", re.ASCII)
_HUGEPAGE = re.compile(r"[0-9]+(?:KB|MB|GB)", re.ASCII)
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:\-]*", re.ASCII)
_FILE = re.compile(r"[a-z][a-z0-9_]*(?:\.[A-Za-z0-9_]+)+", re.ASCII)


class IoRates(TypedDict, total=False):
    """Bytes and operations each second; strings with a unit may end in "/s"."""

    rbps: int | str | None
    wbps: int | str | None
    riops: int | None
    wiops: int | None


class IoMax(NamedTuple):
    """The bounds of one device: a number "8:0", its node, or any file or directory that lies on it."""

    device: str
    rbps: int | None = None
    wbps: int | None = None
    riops: int | None = None
    wiops: int | None = None


def memory(value: int | str) -> int:
    """Bytes: a number, 0 too; a string with a unit; or "50%" of this machine's memory."""
    found = _PERCENT.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is not None:
        part = float(found[1]) / 100
        if not 0 < part <= 1:
            raise InvalidValue(f"{value!r} of the memory must be more than 0% and at most 100%")
        return int(os.sysconf("SC_PHYS_PAGES") * part) * os.sysconf("SC_PAGE_SIZE")
    if value in (0, "0") and not isinstance(value, bool):
        return 0
    return size(value)


def rate(value: int | str) -> int:
    """Bytes each second from a number or ``"10M/s"``."""
    if not isinstance(value, str):
        return size(value)
    found = _RATE.fullmatch(value.strip())
    return size(found[1] if found else value)


def cpu_list(value: str | Iterable[int]) -> str:
    """Processors or memory nodes as the kernel writes them: "0-3,8"."""
    numbers = sorted(cpus_of(value) if isinstance(value, str) else _numbers(value))
    if not numbers:
        raise InvalidValue(f"{value!r} names no processor or memory node")
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def cpus_of(text: str) -> set[int]:
    """The numbers of a list in the kernel's form."""
    numbers: set[int] = set()
    for part in text.replace(" ", "").split(","):
        found = _RANGE.fullmatch(part)
        if found is None or int(found[2] or found[1]) < int(found[1]):
            raise InvalidValue(f"{text!r} is not a list of numbers: write '0-3,8' or [0, 1, 2, 3, 8]")
        numbers.update(range(int(found[1]), int(found[2] or found[1]) + 1))
    return numbers


def _numbers(value: Iterable[int]) -> set[int]:
    numbers = set(value)
    if not all(isinstance(number, int) and not isinstance(number, bool) and 0 <= number <= 99999 for number in numbers):
        raise InvalidValue(f"{value!r} must hold numbers from 0")
    return numbers


def io_max(value: Mapping[str, IoRates] | Iterable[IoMax]) -> tuple[IoMax, ...]:
    """``{"/dev/sda": {"rbps": "10M/s", "wiops": 500}}``, sorted by device."""
    given = [(one.device, one._asdict()) for one in value] if not isinstance(value, Mapping) else list(value.items())
    made = []
    for device, rates in given:
        unknown = set(rates) - {*IoMax._fields}
        if unknown:
            raise InvalidValue(f"io_max of {device!r}: {min(unknown)!r} is none of rbps, wbps, riops, wiops")
        numbers = {
            name: _per_second(name, amount)
            for name in IoMax._fields[1:]
            if (amount := rates.get(name)) not in (None, "max")
        }
        made.append(IoMax(_device(device), **numbers))
    return tuple(sorted(made))


def _per_second(name: str, amount: object) -> int:
    if name.endswith("bps") and isinstance(amount, (int, str)):
        return rate(amount)
    if isinstance(amount, int) and not isinstance(amount, bool) and 0 < amount < 1 << 32:
        return amount
    raise InvalidValue(f"{name}={amount!r} must be a number of {'bytes' if name.endswith('bps') else 'operations'}")


def _device(name: str | os.PathLike[str]) -> str:
    text = os.fspath(name)
    if _DEVICE.fullmatch(text) or (text.startswith("/") and "\0" not in text):
        return text
    raise InvalidValue(f"{name!r} is no device: write its numbers, '8:0', or an absolute path: of its node or on it")


def io_latency(value: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    """``{"/dev/sda": 0.010}``: seconds."""
    for device, seconds in value.items():
        if not (isinstance(seconds, (int, float)) and 1e-6 <= seconds < 1e4):
            raise InvalidValue(f"io_latency of {device!r}: {seconds!r} must be seconds, at least a millionth")
    return tuple(sorted((_device(device), float(seconds)) for device, seconds in value.items()))


def sizes(value: Mapping[str, int | str]) -> tuple[tuple[str, int], ...]:
    """``{"2MB": "64M"}``: bytes for each size of a huge page, spelled as in the kernel's file names."""
    for page in value:
        if not _HUGEPAGE.fullmatch(page):
            raise InvalidValue(f"hugetlb_max: {page!r} is not a size of huge pages like '2MB' or '1GB'")
    return tuple(sorted((page, memory(amount)) for page, amount in value.items()))


def objects(value: Mapping[str, int | Mapping[str, int]]) -> tuple[tuple[str, str], ...]:
    """``{"mlx4_0": {"hca_handle": 2}}`` for rdma.max, ``{"sev": 3}`` for misc.max: (name, what is written after it)."""
    made = []
    for name, amount in value.items():
        counts = amount if isinstance(amount, Mapping) else {"": amount}
        for key, count in counts.items():
            if not _KEY.fullmatch(name) or (key and not _KEY.fullmatch(key)):
                raise InvalidValue(f"{name!r}: {key!r} is not a name of a resource")
            if not (isinstance(count, int) and not isinstance(count, bool) and 0 <= count < 1 << 31):
                raise InvalidValue(f"{name!r}: {count!r} must be a number from 0")
        text = " ".join(f"{key}={count}" if key else str(count) for key, count in sorted(counts.items()))
        made.append((name, text))
    return tuple(sorted(made))


def priorities(value: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """``{"eth0": 5}``: a priority for what leaves by each interface."""
    for name, number in value.items():
        if not (0 < len(name) < 16 and "/" not in name and not any(c.isspace() for c in name)):
            raise InvalidValue(f"net_prio: {name!r} is not a name of a network interface")
        if not (isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 1 << 32):
            raise InvalidValue(f"net_prio of {name!r}: {number!r} must be a number from 0")
    return tuple(sorted(value.items()))


def raw(value: Mapping[str, str | int]) -> tuple[tuple[str, str], ...]:
    """``{"memory.swap.high": "1G"}``: written as they are, in this order, after everything else."""
    for file, text in value.items():
        if not _FILE.fullmatch(file):
            raise InvalidValue(f"raw: {file!r} is not the name of a cgroup file like 'memory.swap.high'")
        if not isinstance(text, (str, int)) or "\0" in str(text):
            raise InvalidValue(f"raw: the value of {file!r}, {text!r}, must be a string or a number")
    return tuple((file, str(text)) for file, text in value.items())
