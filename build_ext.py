"""Builds the native half of containerkit: the cffi extension ``_ck``, and the static ``ck-init`` and ``ck-monitor``.

The build backend runs it (``CustomBuildHook``), and so can you, with no more than a C compiler::

    python build_ext.py --inplace        # all, into the package: the C part of an editable install, rebuilt
    python build_ext.py --arch aarch64   # the helpers for another machine, by a cross compiler
    python build_ext.py --sanitize       # the helpers against libc, with ASan and UBSan: for tests and fuzzing

The compiler is called directly: distutils would add a second opinion about flags, and a dependency.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import struct
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
PACKAGE = "containerkit/_native"
NATIVE = ROOT / PACKAGE
HELPERS = {"ck-init": ("init/*.c",), "ck-monitor": ("monitor/*.c", "init/sys.c")}
EXTENSION = "_ck.abi3.so"
WHEEL_PYTHON = "cp311"
LIMITED_API = "0x030b0000"  # CPython 3.11, as in WHEEL_PYTHON

WARNINGS = ("-Wall", "-Wextra")
# The code casts between structures and bytes, as kernel interfaces demand, and counts on wrapping arithmetic.
SEMANTICS = ("-std=gnu17", "-fno-strict-aliasing", "-fwrapv")
HELPER_COMPILE = (
    "-Os",
    "-ffreestanding",
    "-fPIE",
    "-fno-stack-protector",  # no libc: nobody sets up the canary or provides __stack_chk_fail
    "-fno-asynchronous-unwind-tables",
    "-fvisibility=hidden",
    "-ffunction-sections",
    "-fdata-sections",
)
HELPER_LINK = (
    "-nostdlib",
    "-s",
    "-Wl,--gc-sections",
    "-Wl,-z,relro,-z,now,-z,noexecstack",
    "-Wl,--build-id=none",
)
# Used where the compiler knows them.
HELPER_OPTIONAL = (
    "-fcf-protection=none",  # x86-64: no shadow stack without a libc that asks for one
    "-ftrivial-auto-var-init=zero",
    "-fno-tree-loop-distribute-patterns",  # gcc: a loop in our memcpy stays a loop, not a call of memcpy
    "-mno-outline-atomics",  # aarch64 gcc: out-of-line atomics live in libgcc, and ask libc about the CPU
)
SANITIZE = (
    "-DCK_HOSTED",
    "-O1",
    "-g",
    "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
)

PACKAGES_NATIVE = "gcc libc6-dev linux-libc-dev"
PACKAGES_CROSS = {"aarch64": "gcc-aarch64-linux-gnu libc6-dev-arm64-cross linux-libc-dev-arm64-cross"}


class BuildError(Exception):
    """The build cannot go on; the message is written for the person at the terminal."""


# ---- the compiler ------------------------------------------------------------------------------------------


def find_compiler(arch: str | None = None, cc: str | None = None) -> list[str]:
    """The compiler's command: the one asked for, then ``$CC``, then the usual names."""
    if arch:
        names = [cc] if cc else [f"{arch}-linux-gnu-gcc"]
    else:
        wanted = cc or os.environ.get("CC")
        names = [wanted] if wanted else ["gcc", "cc", "clang"]
    for name in names:
        command = shlex.split(name)
        if command and shutil.which(command[0]):
            return command
    raise BuildError(
        f"no C compiler: looked for {', '.join(names)}.\nOn Debian and Ubuntu: apt-get install {packages(arch)}"
    )


def packages(arch: str | None) -> str:
    """What to install when compiling for ``arch`` (None: this machine) does not work."""
    return PACKAGES_CROSS.get(arch, f"a cross compiler for {arch}") if arch else PACKAGES_NATIVE


def compile_c(command: Sequence[str], arch: str | None = None) -> None:
    """Run the compiler in the root of the tree, so that paths in its messages and output are relative."""
    done = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.stdout:
        print(done.stdout, file=sys.stderr, end="")
    if done.returncode:
        raise BuildError(
            f"this command failed (exit status {done.returncode}):\n  {shlex.join(command)}\n{done.stdout}"
            "If a header, a library or the linker is missing: on Debian and Ubuntu, "
            f"apt-get install {packages(arch)}"
        )


def known_flags(cc: Sequence[str], flags: Sequence[str]) -> list[str]:
    """Those of the flags that this compiler takes without a warning."""

    def known(flag: str) -> bool:
        probe = [*cc, "-Werror", flag, "-S", "-x", "c", "-o", "-", os.devnull]
        return subprocess.run(probe, capture_output=True).returncode == 0

    return [flag for flag in flags if known(flag)]


# ---- the helpers -----------------------------------------------------------------------------------------------


def helper_sources(name: str) -> list[str]:
    sources = sorted(str(path.relative_to(ROOT)) for pattern in HELPERS[name] for path in NATIVE.glob(pattern))
    if not sources:
        raise BuildError(f"no sources of {name} in {PACKAGE}: the source tree is incomplete")
    return sources


def build_helper(target: Path, cc: Sequence[str], *, arch: str | None = None, werror: bool = False) -> None:
    """Compile the static, freestanding helper and refuse a result that could not start without a loader.

    Position-independent, so that its addresses are random, where the compiler makes a program that needs no
    relocation: nobody is there to apply one. Clang's initialisers of local arrays of pointers need some.
    """
    if links_static_pie(cc):
        link_helper(target, cc, "-static-pie", arch=arch, werror=werror)
        problems = helper_problems(target.read_bytes(), arch or platform.machine())
        if not problems:
            return
        note = "; ".join(problems)
    else:
        note = "the compiler does not link static position-independent programs"
    print(f"note: {target.name} gets fixed addresses: {note}", file=sys.stderr)
    link_helper(target, cc, "-static", arch=arch, werror=werror)
    problems = helper_problems(target.read_bytes(), arch or platform.machine())
    if problems:
        raise BuildError(f"{target.name} would not run as it must: {'; '.join(problems)}")


def link_helper(target: Path, cc: Sequence[str], static: str, *, arch: str | None, werror: bool) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        # -fvisibility is about definitions only. What is declared `extern` must be hidden too, or it is
        # reached through a table of addresses, which needs relocation.
        hidden = Path(scratch, "hidden.h")
        hidden.write_text("#pragma GCC visibility push(hidden)\n")
        command = [
            *cc,
            *SEMANTICS,
            *WARNINGS,
            *(["-Werror"] if werror else []),
            *HELPER_COMPILE,
            *known_flags(cc, HELPER_OPTIONAL),
            f"-I{PACKAGE}",
            "-include",
            str(hidden),
            *helper_sources(target.name),
            *HELPER_LINK,
            static,
        ]
        compile_c([*command, "-o", str(target)], arch)
    target.chmod(0o755)


def links_static_pie(cc: Sequence[str]) -> bool:
    """Whether the toolchain makes static position-independent programs."""
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch, "empty.c"), Path(scratch, "empty")
        source.write_text("void _start(void) {}\n")
        flags = ["-Werror", "-fPIE", "-nostdlib", "-static-pie"]
        probe = [*cc, *flags, str(source), "-o", str(target)]
        return subprocess.run(probe, capture_output=True).returncode == 0


def build_sanitized_helper(target: Path, cc: Sequence[str], *, werror: bool = False) -> None:
    """The same sources as an ordinary program under AddressSanitizer and UndefinedBehaviorSanitizer."""
    flags = [*SEMANTICS, *WARNINGS, *(["-Werror"] if werror else []), *SANITIZE]
    compile_c([*cc, *flags, f"-I{PACKAGE}", *helper_sources(target.name), "-o", str(target)])
    target.chmod(0o755)


# ---- what a helper must be: a little of the ELF format (elf(5)) --------------------------------------------

ELF_MACHINES = {"x86_64": 62, "aarch64": 183}
PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_GNU_STACK = 1, 2, 3, 0x6474E551
PF_X, PF_W = 1, 2
DT_NEEDED = 1
DT_RELOCATION_SIZES = {2: "PLTRELSZ", 8: "RELASZ", 18: "RELSZ", 35: "RELRSZ"}


def helper_problems(image: bytes, arch: str) -> list[str]:
    """Why this program could not run without loader and relocation, or has writable code; empty if it can."""
    if image[:6] != b"\x7fELF\x02\x01":
        return ["it is not a 64-bit little-endian ELF file"]
    machine = struct.unpack_from("<H", image, 18)[0]
    if machine != ELF_MACHINES.get(arch):
        return [f"it was compiled for ELF machine {machine}, not for {arch}"]
    return list(_segment_problems(image))


def _segment_problems(image: bytes) -> Iterator[str]:
    offset = struct.unpack_from("<Q", image, 32)[0]
    size, count = struct.unpack_from("<HH", image, 54)
    for i in range(count):
        kind, flags, start, _, _, length = struct.unpack_from("<IIQQQQ", image, offset + i * size)
        if kind == PT_INTERP:
            yield "it asks for a dynamic loader"
        elif kind == PT_GNU_STACK and flags & PF_X:
            yield "its stack is executable"
        elif kind == PT_LOAD and flags & PF_X and flags & PF_W:
            yield "it has code that is writable"
        elif kind == PT_DYNAMIC:
            yield from _dynamic_problems(image[start : start + length])


def _dynamic_problems(section: bytes) -> Iterator[str]:
    for tag, value in struct.iter_unpack("<QQ", section):
        if tag == DT_NEEDED:
            yield "it needs a shared library"
        elif tag in DT_RELOCATION_SIZES and value:
            yield f"{value} bytes of relocations ({DT_RELOCATION_SIZES[tag]}): a static table of pointers?"


# ---- the extension -----------------------------------------------------------------------------------------


def build_extension(target: Path, cc: Sequence[str], *, werror: bool = False) -> None:
    """Generate the cffi module for the stable ABI and link it with native.c."""
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.is_file():
        raise BuildError(
            f"the headers of Python {platform.python_version()} are missing.\n"
            "On Debian and Ubuntu, for the system's Python: apt-get install python3-dev"
        )
    common = [*cc, *SEMANTICS, "-O2", "-fPIC", "-fvisibility=hidden"]
    with tempfile.TemporaryDirectory() as scratch:
        generated, native = Path(scratch, "_ck.c"), Path(scratch, "native.o")
        generate_binding(generated)
        # Warnings are for our code: what cffi generates does not promise to be free of them.
        strict = [*WARNINGS, *(["-Werror"] if werror else [])]
        compile_c([*common, *strict, "-c", f"{PACKAGE}/native.c", "-o", str(native)])
        include = [f"-I{PACKAGE}", f"-I{header.parent}", f"-DPy_LIMITED_API={LIMITED_API}"]
        link = ["-shared", "-Wl,-z,relro,-z,now,-z,noexecstack", "-Wl,--build-id=none", "-s"]
        compile_c([*common, *include, str(generated), str(native), *link, "-o", str(target)])


def generate_binding(source: Path) -> None:
    try:
        import cffi
    except ModuleNotFoundError:
        raise BuildError("the extension needs cffi: pip install cffi") from None
    ffi = cffi.FFI()
    ffi.cdef((NATIVE / "cdef.h").read_text())
    ffi.set_source("containerkit._native._ck", '#include "native.h"')
    ffi.emit_c_code(str(source))


def build_all(directory: Path, cc: Sequence[str], *, werror: bool = False) -> None:
    for name in HELPERS:
        build_helper(directory / name, cc, werror=werror)
    build_extension(directory / EXTENSION, cc, werror=werror)


# ---- the build backend's hook ------------------------------------------------------------------------------

if __name__ != "__main__":  # as a script, this file needs a compiler and not a build backend
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface

    class CustomBuildHook(BuildHookInterface[Any]):
        """Gives a wheel its native files, and an editable install the same files in the tree."""

        _scratch: tempfile.TemporaryDirectory[str] | None = None

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            build_data["pure_python"] = False
            platform_tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"{WHEEL_PYTHON}-abi3-{platform_tag}"
            try:
                if version == "editable":
                    build_all(NATIVE, find_compiler())
                else:
                    build_data["force_include"].update(self._build_aside())
            except BuildError as error:
                self.app.abort(f"containerkit: {error}")

        def _build_aside(self) -> dict[str, str]:
            """Build outside the tree, which may be read-only; what to include under which name."""
            self._scratch = tempfile.TemporaryDirectory()
            directory = Path(self._scratch.name)
            build_all(directory, find_compiler())
            return {str(directory / name): f"{PACKAGE}/{name}" for name in (*HELPERS, EXTENSION)}

        def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
            if self._scratch:
                self._scratch.cleanup()


# ---- the script --------------------------------------------------------------------------------------------


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Build the native half of containerkit.")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--inplace", action="store_true", help="put the results into the package tree")
    place.add_argument("--out", type=Path, metavar="DIR", help="put them there (default: below build/)")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--arch", choices=sorted(PACKAGES_CROSS), help="only the helpers, for that machine")
    kind.add_argument("--sanitize", action="store_true", help="only the helpers, with ASan and UBSan")
    parser.add_argument("--cc", help="the compiler's command (default: $CC, gcc, cc or clang)")
    parser.add_argument("--werror", action="store_true", help="a warning fails the build")
    arguments = parser.parse_args(argv)
    if arguments.inplace and arguments.arch:
        parser.error("--inplace is for this machine's own helpers: it does not go with --arch")
    return arguments


def main() -> int:
    arguments = parse_arguments()
    kind = f"{arguments.arch or platform.machine()}{'-sanitize' if arguments.sanitize else ''}"
    directory = NATIVE if arguments.inplace else (arguments.out or ROOT / "build" / kind).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        cc = find_compiler(arguments.arch, arguments.cc)
        if arguments.sanitize:
            for name in HELPERS:
                build_sanitized_helper(directory / name, cc, werror=arguments.werror)
        elif arguments.arch:
            for name in HELPERS:
                build_helper(directory / name, cc, arch=arguments.arch, werror=arguments.werror)
        else:
            build_all(directory, cc, werror=arguments.werror)
    except BuildError as error:
        print(f"build_ext.py: {error}", file=sys.stderr)
        return 1
    print(f"built in {directory}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
