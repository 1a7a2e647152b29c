"""What gets imported, when: by the package, and by the first run. Each in an interpreter of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROBE = """
import sys
before = set(sys.modules)
{code}
new = sorted(set(sys.modules) - before)
import json
print(json.dumps(new))
"""

RUN = """
import containerkit
assert containerkit.run(["/bin/true"]).ok
"""

# Heavy ones: they cost more than what is left. cffi compiles declarations, which happened at build time.
HEAVY = (
    "asyncio", "cffi", "concurrent", "ctypes", "dataclasses", "email", "inspect", "json", "logging", "multiprocessing",
    "pathlib", "pycparser", "selectors", "shutil", "socket", "subprocess", "tempfile", "threading", "unittest",
    "urllib",
)  # fmt: skip


def imported_by(code: str) -> list[str]:
    """The modules that ``code`` adds to those of a bare interpreter."""
    command = [sys.executable, "-c", PROBE.format(code=code)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: list[str] = json.loads(output)
    return found


def test_the_package_alone_imports_next_to_nothing() -> None:
    found = imported_by("import containerkit")
    assert "containerkit" in found
    assert len(found) < 5, found
    assert [name for name in found if name.startswith("containerkit.")] == []


def test_the_first_use_of_a_name_loads_its_module_and_not_the_others() -> None:
    found = imported_by("import containerkit; containerkit.InvalidValue")
    assert "containerkit.errors" in found
    assert not {"containerkit.process", "containerkit.sandbox", "containerkit.aio"} & set(found)


@pytest.fixture(scope="module")
def first_run() -> list[str]:
    return imported_by(RUN)


@pytest.mark.parametrize("name", HEAVY)
def test_a_first_run_does_not_import_what_it_does_not_need(name: str, first_run: list[str]) -> None:
    # attrs 26 itself imports some of these; what the interpreter and attrs bring is not ours to answer for.
    theirs = imported_by("import attrs, typing_extensions, _cffi_backend")
    ours = [module for module in first_run if module.split(".")[0] == name and module not in theirs]
    assert ours == []


def test_a_first_run_loads_no_face_and_nothing_for_errors(first_run: list[str]) -> None:
    unused = {"aio", "cli", "doctor", "trial", "options", "svg", "enforced", "_outcome_errors"}
    assert {name for name in first_run if name.removeprefix("containerkit.") in unused} == set()


def test_a_first_run_imports_nothing_beyond_its_three_dependencies(first_run: list[str]) -> None:
    roots = {name.split(".")[0] for name in first_run} - set(sys.stdlib_module_names)
    assert roots <= {"containerkit", "attr", "attrs", "typing_extensions", "_cffi_backend"}


def test_the_probe_sees_a_heavy_import() -> None:
    """The positive control: the same check goes red on what is avoided."""
    assert {"subprocess", "selectors"} <= set(imported_by("import subprocess"))
