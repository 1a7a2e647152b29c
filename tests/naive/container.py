"""The naive twin: a container as a first book on the subject teaches it, in Python.

It does what containerkit does, by the names of files: makes directories and devices in the root, mounts on paths,
writes files into it, reads its /etc/passwd, changes its root, and starts the program. Nothing here is careless on
purpose. An attack test is run against it, too, and has to succeed: otherwise the test proves nothing.

As a program of its own: ``python container.py SPECIFICATION`` where the specification is JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWUTS = 0x00020000, 0x10000000, 0x20000000, 0x04000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> None:
    if getattr(libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def mount(source: str, target: str, fstype: str, flags: int = 0) -> None:
    call("mount", os.fsencode(source), os.fsencode(target), fstype.encode(), ctypes.c_ulong(flags), None)


def enter_namespaces() -> None:
    uid, gid = os.geteuid(), os.getegid()
    if uid:
        call("unshare", CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS)
        with open("/proc/self/setgroups", "w") as file:
            file.write("deny")
        for name, number in (("uid_map", uid), ("gid_map", gid)):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(f"0 {number} 1")
    else:
        call("unshare", CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS)
    call("mount", None, b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None)
    child = os.fork()  # the first process of the new pid namespace
    if child:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)


def make_devices(root: str) -> None:
    os.makedirs(f"{root}/dev/pts", exist_ok=True)
    for name in ("null", "zero", "random"):
        path = f"{root}/dev/{name}"
        if not os.path.exists(path):
            open(path, "w").close()
            mount(f"/dev/{name}", path, "", MS_BIND)
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0")):
        if not os.path.lexists(f"{root}/dev/{name}"):
            os.symlink(target, f"{root}/dev/{name}")


def mount_in(root: str, source: str, target: str, read_only: bool) -> None:
    path = root + target
    if os.path.isdir(source):
        os.makedirs(path, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        open(path, "a").close()
    mount(source, path, "", MS_BIND | MS_REC)
    if read_only:
        mount("", path, "", MS_REMOUNT | MS_BIND | MS_RDONLY)


def write_file(root: str, target: str, content: str) -> None:
    path = root + target
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(content)


def user_id(root: str, user: str) -> int:
    """The id of a name in the root's own table; ids are numbers."""
    with open(f"{root}/etc/passwd") as file:
        for line in file.read().splitlines():
            name, _, uid, *_ = line.split(":")
            if name == user:
                return int(uid)
    return int(user)


def bind_console(root: str) -> None:
    open(f"{root}/dev/console", "a").close()
    mount(f"{root}/dev/pts/0", f"{root}/dev/console", "", MS_BIND)


def become_null(root: str) -> None:
    """Standard input from the container's own null device, for the container's user."""
    null = os.open(f"{root}/dev/null", os.O_RDWR)
    os.fchmod(null, 0o666)
    os.dup2(null, 0)


def stay_as_init() -> None:
    """PID 1 stays, and waits for the program."""
    program = os.fork()
    if program:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(program, 0)[1]) & 0xFF)


def run(spec: dict) -> None:
    root = spec["root"]
    enter_namespaces()
    os.makedirs(f"{root}/proc", exist_ok=True)
    mount("proc", f"{root}/proc", "proc")
    make_devices(root)
    for source, target, read_only in spec.get("binds", ()):
        mount_in(root, source, target, read_only)
    for target in spec.get("tmpfs", ()):
        os.makedirs(root + target, exist_ok=True)
        mount("tmpfs", root + target, "tmpfs")
    for target, content in spec.get("files", {}).items():
        write_file(root, target, content)
    for name, value in spec.get("sysctls", {}).items():
        with open(f"{root}/proc/sys/{name}", "w") as file:
            file.write(value)
    for path in spec.get("masked", ()):
        if os.path.exists(f"{root}/proc/{path}"):
            mount(f"{root}/dev/null", f"{root}/proc/{path}", "", MS_BIND)
    if spec.get("console"):
        bind_console(root)
    if spec.get("null_input"):
        become_null(root)
    cwd = spec.get("cwd", "/")
    os.makedirs(root + cwd, exist_ok=True)
    uid = user_id(root, spec["user"]) if "user" in spec else 0
    os.chroot(root)
    os.chdir(cwd)
    if spec.get("init"):
        stay_as_init()
    if uid:
        os.setuid(uid)
    os.execvp(spec["args"][0], spec["args"])  # noqa: S606  as everybody does


if __name__ == "__main__":
    run(json.loads(sys.argv[1]))
