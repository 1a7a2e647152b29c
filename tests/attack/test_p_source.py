"""P: what the library never does in the host program, read from its own source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import containerkit

PACKAGE = Path(containerkit.__file__).parent

# Of the process as a whole, or of whatever lies at a name by then.
CALLS = {
    "P02": {"os.fork", "os.forkpty", "multiprocessing.Process"},
    "P15": {"os.setns", "os.unshare", "os.chroot", "os.chdir", "os.fchdir", "os.umask", "os.nice", "os.setpriority"}
    | {f"os.set{name}" for name in ("uid", "gid", "euid", "egid", "reuid", "regid", "resuid", "resgid", "groups")},
    "P16": {"pwd.getpwnam", "grp.getgrnam", "socket.getaddrinfo", "socket.gethostbyname"},
    "P19": {"pickle.loads", "pickle.load", "marshal.loads", "eval", "exec", "yaml.load", "os.system"},
    "P20": {f"shutil.{name}" for name in ("rmtree", "copytree", "chown", "unpack_archive", "move")}
    | {"os.removedirs", "tempfile.TemporaryDirectory"},
    "J07": {"os.chown", "os.lchown", "os.chmod", "os.lchmod"},
    "I07": {"os.kill", "os.killpg"},
    "I08": {"time.time", "datetime.now", "datetime.utcnow"},
}
# Dates for people to read, and the age of what other programs have left, which only the calendar's clock can tell.
DATED = {
    "containers/creating.py", "containers/stats.py", "containers/top.py", "images/config_changes.py",
    "images/images.py", "storage/blobs.py", "storage/layers.py", "storage/leases.py",
    "storage/sweep.py", "volumes/row.py",
}  # fmt: skip
IMPORTS = {"E02": {"tarfile", "zipfile"}, "P19": {"pickle", "marshal", "yaml"}}

# Not the host program: what runs in a process of its own, and becomes root of a container's user namespace there.
APART = {("layers/serve.py", "P15", call) for call in ("os.setgroups", "os.setresgid", "os.setresuid")}

SINNER = """
import os, shutil, time, tarfile, pickle
def start(root, name):
    assert name.startswith("/")
    try:
        pid = os.fork()
    except:
        pass
    os.chroot(root); os.kill(pid, 9); eval(name); shutil.rmtree(root); os.chown(root, 0, 0); pwd.getpwnam(name)
    print(time.time())
    subprocess.run(name, shell=True, preexec_fn=start)
"""


def name_of(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def sins(tree: ast.AST) -> Iterator[tuple[str, str, int]]:
    """(row, what, line) of everything that should not be there."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Call):
            called, keywords = name_of(node.func), {keyword.arg for keyword in node.keywords}
            if not ({"dir_fd", "follow_symlinks"} <= keywords or is_of_a_handle(node)):  # one name below a handle
                yield from ((row, called, line) for row, names in CALLS.items() if called in names)
            yield from (("P02", name, line) for name in keywords & {"preexec_fn"})
            shell = [keyword.value for keyword in node.keywords if keyword.arg == "shell"]
            yield from (("P02", "shell", line) for value in shell if isinstance(value, ast.Constant) and value.value)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [name.name for name in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from ((row, name, line) for row, names in IMPORTS.items() for name in modules if name in names)
        elif isinstance(node, ast.Assert) and not is_for_the_type_checker(node.test):
            yield "P21", "assert", line  # gone with python -O
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            yield "P21", "except:", line


def is_of_a_handle(call: ast.Call) -> bool:
    """``f"/proc/self/fd/{fd}"``"""
    first = call.args[0] if call.args else None
    return isinstance(first, ast.JoinedStr) and "/proc/self/fd/" in ast.unparse(first.values[0])


def is_for_the_type_checker(test: ast.expr) -> bool:
    """``x is not None``, or ``isinstance(...)``: what decides nothing."""
    return (isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.IsNot)) or (
        isinstance(test, ast.Call) and name_of(test.func) == "isinstance"
    )


@pytest.mark.attack(
    "E02", "I07", "I08", "J07", "P02", "P15", "P16", "P19", "P20", "P21", control="test_every_sin_would_be_found"
)
def test_the_host_program_is_never_forked_changed_or_trusted_to_a_name() -> None:
    found = [
        (str(path.relative_to(PACKAGE)), *sin)
        for path in sorted(PACKAGE.rglob("*.py"))
        for sin in sins(ast.parse(path.read_text()))
        if not (sin[0] == "I08" and str(path.relative_to(PACKAGE)) in DATED)
        and (str(path.relative_to(PACKAGE)), *sin[:2]) not in APART
    ]
    assert found == [], found


def test_every_sin_would_be_found() -> None:
    found = {row for row, _, _ in sins(ast.parse(SINNER))}
    assert found == {*CALLS, *IMPORTS, "P21"}
