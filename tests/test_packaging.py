"""What users get: the sdist, the wheel built from it, and its installation on every Python found here."""

from __future__ import annotations

import email
import functools
import glob
import importlib.util
import os
import platform
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
NATIVE = "containerkit/_native"
ET_DYN = 3  # a position-independent program: its addresses are random

# A compiler or pip runs in most of these.
pytestmark = pytest.mark.timeout(300)


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def build_ext() -> ModuleType:
    specification = importlib.util.spec_from_file_location("build_ext", ROOT / "build_ext.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", directory, cwd=ROOT)
    return next(directory.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist alone, so that the sdist has all it needs."""
    directory = tmp_path_factory.mktemp("wheel")
    run("tar", "--extract", "--file", sdist, "--directory", directory)
    tree = next(directory.iterdir())
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", directory, cwd=tree)
    return next(directory.glob("*.whl"))


def test_sdist_has_sources_and_nothing_built(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / NATIVE).rglob("*.[ch]")}
    expected = sources | {"pyproject.toml", "build_ext.py", "LICENSE", "README.md", "containerkit/py.typed"}
    assert expected <= names
    assert not [name for name in names if name.endswith((".so", ".pyc", "/ck-init"))]


def test_wheel_is_for_the_stable_abi(wheel: Path) -> None:
    version, tag = wheel.stem.split("-", 2)[1:]
    assert version == "0.1.0"
    assert tag == f"cp311-abi3-linux_{platform.machine()}"


def test_wheel_has_the_native_files_and_no_sources(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        modes = {info.filename: info.external_attr >> 16 for info in archive.infolist()}
    assert stat.S_IMODE(modes[f"{NATIVE}/ck-init"]) == 0o755
    assert {f"{NATIVE}/_ck.abi3.so", f"{NATIVE}/_ck.pyi", "containerkit/py.typed"} <= set(modes)
    outside = [name for name in modes if not name.startswith(("containerkit/", "containerkit-"))]
    sources = [name for name in modes if name.endswith((".c", ".h"))]
    assert not outside + sources


def test_wheel_needs_three_packages_and_no_more(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    required = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    names = {line.partition(">")[0] for line in required}
    assert names == {"attrs", "cffi", "typing-extensions"}
    assert metadata["Requires-Python"] == ">=3.11"


# ---- on every Python --------------------------------------------------------------------------------------


@functools.cache
def interpreters() -> dict[str, str]:
    """One CPython of each version from 3.11 on: the one that runs, those in PATH, those that pyenv keeps."""
    pyenv = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    names = [f"python3.{minor}" for minor in range(11, 20)]
    in_path = [path for path in map(shutil.which, names) if path and "shims" not in Path(path).parts]
    kept = sorted(glob.glob(f"{glob.escape(pyenv)}/versions/3.1[1-9]*/bin/python3"))
    found: dict[str, str] = {}
    for executable in [sys.executable, *in_path, *kept]:
        code = "import sys; print('%d.%d' % sys.version_info[:2], sys.version_info >= (3, 11))"
        version, recent = run(executable, "-c", code).split()
        if recent == "True":
            found.setdefault(version, executable)
    return found


IMPORT = """
import sys
import containerkit
assert "cffi" not in sys.modules, "the extension must not need cffi's own modules at run time"
assert not containerkit.__file__.startswith({root!r}), containerkit.__file__
from containerkit._native import _ck
assert _ck.lib.ck_spawn
assert "cffi" not in sys.modules
"""


@pytest.mark.parametrize("version", sorted(interpreters()))
def test_wheel_installs_and_imports(version: str, wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    run(interpreters()[version], "-m", "venv", "--without-pip", environment)
    python = environment / "bin/python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", wheel)
    run(python, "-I", "-c", IMPORT.format(root=str(ROOT)), cwd=tmp_path)
    (helper,) = environment.glob(f"lib/python*/site-packages/{NATIVE}/ck-init")
    assert os.access(helper, os.X_OK)


# ---- the helper -------------------------------------------------------------------------------------------


def starts_without_a_plan(*command: str | Path) -> bool:
    """Whether the helper, given no plan, refuses in silence."""
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL)
    return (done.returncode, done.stdout, done.stderr) == (64, b"", b"")


def test_helper_in_the_wheel_is_static_and_starts(wheel: Path, build_ext: ModuleType, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        helper = Path(archive.extract(f"{NATIVE}/ck-init", tmp_path))
    helper.chmod(0o755)
    image = helper.read_bytes()
    assert build_ext.helper_problems(image, platform.machine()) == []
    assert struct.unpack_from("<H", image, 16) == (ET_DYN,)
    assert starts_without_a_plan(helper)


def test_helper_for_aarch64_is_static_and_starts(build_ext: ModuleType, tmp_path: Path) -> None:
    emulator = shutil.which("qemu-aarch64-static")
    if not emulator or not shutil.which("aarch64-linux-gnu-gcc"):
        pytest.skip("needs qemu-user-static and gcc-aarch64-linux-gnu")
    run(sys.executable, ROOT / "build_ext.py", "--arch", "aarch64", "--out", tmp_path, "--werror")
    helper = tmp_path / "ck-init"
    assert build_ext.helper_problems(helper.read_bytes(), "aarch64") == []
    assert starts_without_a_plan(emulator, helper)


PROBLEMS = {
    "asks for a dynamic loader": ("int main(void) { return 0; }", []),
    "bytes of relocations": (
        "int x; int *const p[] = {&x}; void _start(void) {}",
        ["-nostdlib", "-static-pie"],
    ),
    "stack is executable": ("void _start(void) {}", ["-nostdlib", "-static", "-Wl,-z,execstack"]),
    "code that is writable": ("void _start(void) {}", ["-nostdlib", "-static", "-Wl,--omagic"]),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_helper_that_would_not_run_is_refused(problem: str, build_ext: ModuleType, tmp_path: Path) -> None:
    source, flags = PROBLEMS[problem]
    program = tmp_path / "program"
    (tmp_path / "source.c").write_text(source)
    run(*build_ext.find_compiler(), "-fPIE", tmp_path / "source.c", *flags, "-o", program)
    assert problem in "; ".join(build_ext.helper_problems(program.read_bytes(), platform.machine()))


def test_a_program_for_another_machine_is_refused(build_ext: ModuleType) -> None:
    image = Path(sys.executable).read_bytes()
    other = "aarch64" if platform.machine() == "x86_64" else "x86_64"
    assert build_ext.helper_problems(image, other) != []
    assert build_ext.helper_problems(b"#!/bin/sh", other) == ["it is not a 64-bit little-endian ELF file"]


# ---- the build's messages ---------------------------------------------------------------------------------


@pytest.fixture
def broken_tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / NATIVE / "init").mkdir(parents=True)
    shutil.copy(ROOT / "build_ext.py", tree)
    (tree / NATIVE / "init/main.c").write_text("#include <no/such/header.h>\n")
    return tree


def test_failed_compilation_names_the_command_and_the_packages(broken_tree: Path) -> None:
    command = [sys.executable, "build_ext.py"]
    done = subprocess.run(command, cwd=broken_tree, capture_output=True, text=True)
    assert done.returncode == 1
    assert "no/such/header.h: No such file" in done.stderr
    assert "-ffreestanding" in done.stderr
    assert "apt-get install gcc libc6-dev linux-libc-dev" in done.stderr


def test_missing_compiler_names_the_packages(broken_tree: Path) -> None:
    command = [sys.executable, "build_ext.py", "--cc", "no-such-cc"]
    done = subprocess.run(command, cwd=broken_tree, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("build_ext.py: no C compiler: looked for no-such-cc.\n")
    assert "Traceback" not in done.stderr
