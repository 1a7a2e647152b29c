"""Writes containerkit/security/syscalls.py from the kernel's headers: ``python tests/tools/generate_syscalls.py``.

The numbers come from the headers that are installed (Debian: linux-libc-dev), through the C preprocessor, and from
:data:`LATER` for what those are too old to know. An interface number never changes, so a newer header only adds to it.

Which arguments are ints comes from the tracepoints of the running kernel, which needs root and CONFIG_FTRACE_SYSCALLS::

    unshare --mount sh -c 'mount -t tracefs none /mnt && python tests/tools/generate_syscalls.py /mnt'
"""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

TARGET = Path(__file__).resolve().parents[2] / "containerkit/security/syscalls.py"

COMMON_FIRST = 424
"""From here on every architecture has the same numbers (Linux 5.1)."""

LATER = {
    "cachestat": 451, "fchmodat2": 452, "map_shadow_stack": 453, "futex_wake": 454, "futex_wait": 455,
    "futex_requeue": 456, "statmount": 457, "listmount": 458, "lsm_get_self_attr": 459, "lsm_set_self_attr": 460,
    "lsm_list_modules": 461, "mseal": 462, "setxattrat": 463, "getxattrat": 464, "listxattrat": 465,
    "removexattrat": 466, "open_tree_attr": 467, "file_getattr": 468, "file_setattr": 469, "listns": 470,
}  # fmt: skip
"""Linux 6.2 to 6.19: scripts/syscall.tbl in the kernel's source."""

LATER_X86_64 = {"uretprobe": 335, "uprobe": 336}
"""Linux 6.11 and 6.18: arch/x86/entry/syscalls/syscall_64.tbl."""

ELSEWHERE = (
    "arm_fadvise64_64", "arm_sync_file_range", "atomic_barrier", "atomic_cmpxchg_32", "breakpoint", "cacheflush",
    "cachectl", "get_tls", "multiplexer", "pciconfig_iobase", "pciconfig_read", "pciconfig_write", "recv",
    "riscv_flush_icache", "riscv_hwprobe", "rtas", "s390_guarded_storage", "s390_pci_mmio_read", "s390_pci_mmio_write",
    "s390_runtime_instr", "s390_sthyi", "send", "set_tls", "spu_create", "spu_run", "subpage_prot", "swapcontext",
    "switch_endian", "sync_file_range2", "sys_debug_setcontext", "syscall", "sysmips", "timerfd", "usr26", "usr32",
)  # fmt: skip
"""Names of other machines that profiles for all of them mention."""

# What arch/arm64/include/uapi/asm/unistd.h chooses of the list that newer architectures share.
ARM64_CHOICES = ("NEW_STAT", "RENAMEAT", "SET_GET_RLIMIT", "TIME32_SYSCALLS", "SYS_CLONE3", "MEMFD_SECRET")

INTS = (
    "int", "unsigned", "unsigned int", "u32", "__u32", "__s32", "umode_t", "pid_t", "uid_t", "gid_t", "qid_t", "key_t",
    "key_serial_t", "clockid_t", "timer_t", "mqd_t", "rwf_t", "enum landlock_rule_type",
)  # fmt: skip
"""The kernel's types of at most 32 bits."""

TRACED_AS = {
    "fstat": "newfstat", "lstat": "newlstat", "sendfile": "sendfile64", "stat": "newstat", "umount2": "umount",
    "uname": "newuname",
}  # fmt: skip

HEAD = '''"""The system calls: their numbers, by architecture. Written by tests/tools/generate_syscalls.py: do not edit.

Up to Linux 6.19. A name is the kernel's own; a number in a list is that of the name after it, the others count on.
"""

from __future__ import annotations

__all__ = ["ELSEWHERE", "INTS", "numbers"]
'''

TAIL = '''
_LISTS = {"x86_64": _X86_64, "aarch64": _AARCH64, "i386": _I386}
_numbers: dict[str, dict[str, int]] = {}


def numbers(architecture: str) -> dict[str, int]:
    """The numbers by name for ``x86_64``, ``aarch64`` or ``i386``; not to be changed. KeyError for others."""
    known = _numbers.get(architecture)
    if known is None:
        known, number = {}, 0
        for word in (_LISTS[architecture] + _COMMON).split():
            if word.isdigit():
                number = int(word)
            else:
                known[word] = number
                number += 1
        _numbers[architecture] = known
    return known
'''


def definitions(header: str, *options: str) -> dict[str, int]:
    """The ``__NR_`` macros that ``header`` defines, as the preprocessor sees them."""
    command = ["cc", "-E", "-dM", "-x", "c", "-include", header, *options, "/dev/null"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    values = dict(re.findall(r"^#define (__NR\w+) (\w+)$", text, re.MULTILINE))
    found = {}
    for name, value in values.items():
        if not name.startswith("__NR_") or name in ("__NR_syscalls", "__NR_arch_specific_syscall"):
            continue
        while not value.isdigit():
            value = values[value]
        found[name.removeprefix("__NR_")] = int(value)
    return found


def from_headers() -> dict[str, dict[str, int]]:
    """What the installed headers know. The i386 and x86-64 numbers need an x86 machine's."""
    choices = [f"-D__ARCH_WANT_{choice}" for choice in ARM64_CHOICES]
    return {
        "x86_64": definitions("asm/unistd_64.h"),
        "aarch64": definitions("asm-generic/unistd.h", "-D__BITS_PER_LONG=64", *choices),
        "i386": definitions("asm/unistd_32.h"),
    }


def ints(tracefs: Path) -> dict[str, int]:
    """Which arguments of each x86-64 call the kernel takes as 32 bits or less: a bit for each."""
    found = {}
    for name in from_headers()["x86_64"] | LATER:
        format_file = tracefs / f"events/syscalls/sys_enter_{TRACED_AS.get(name, name)}/format"
        if format_file.exists():
            text = format_file.read_text().partition("__syscall_nr")[2]
            types = [re.sub(r"\bconst ", "", kind).strip() for kind in re.findall(r"field:(.*?)\w+;", text)]
            bits = sum(1 << index for index, kind in enumerate(types) if kind in INTS)
            # It says unsigned long, and the kernel drops the upper half (lower_32_bits in kernel/fork.c).
            bits |= name == "clone"
            if bits:
                found[name] = bits
    return found


def listing(numbers: dict[str, int]) -> str:
    words, following = [], -1
    for name, number in sorted(numbers.items(), key=lambda item: item[1]):
        if number != following:
            words.append(str(number))
        words.append(name)
        following = number + 1
    return textwrap.fill(" ".join(words), 118, break_long_words=False, break_on_hyphens=False)


def module(tables: dict[str, dict[str, int]], ints: dict[str, int]) -> str:
    common = {name: number for name, number in tables["aarch64"].items() if number >= COMMON_FIRST} | LATER
    parts = [HEAD]
    for architecture, numbers in tables.items():
        own = {name: number for name, number in numbers.items() if number < COMMON_FIRST}
        if architecture == "x86_64":
            own |= LATER_X86_64
        parts.append(f'_{architecture.upper()} = """\n{listing(own)}\n"""\n')
    parts.append(f'_COMMON = """\n{listing(common)}\n"""\n')
    parts.append(
        'ELSEWHERE = """\n'
        + textwrap.fill(" ".join(sorted(ELSEWHERE)), 118)
        + '\n"""\n"""Names that only other architectures have: no rule about them can have an effect here."""\n'
    )
    entries = ", ".join(f'"{name}": {bits:#b}' for name, bits in sorted(ints.items()))
    wrapped = textwrap.fill(entries.replace(": ", ":"), 108).replace(":", ": ").replace("\n", "\n    ")
    parts.append(
        f"INTS = {{\n    {wrapped},\n}}  # fmt: skip\n"
        '"""Which arguments the kernel takes as 32 bits or less, one bit each. It throws the upper half away."""\n'
    )
    return "\n".join(parts) + TAIL


if __name__ == "__main__":
    TARGET.write_text(module(from_headers(), ints(Path(sys.argv[1]))))
