"""A start that fails: which type, what it says, that it pickles, and (by the leak oracle) that nothing is left."""

from __future__ import annotations

import errno
import os
import pickle
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from starts import STARTS, host_said, in_root, isolated, said

from containerkit import PIPE, Bind, Process, Sandbox, Tmpfs, run
from containerkit.errors import (
    ContainerkitError,
    InvalidValue,
    NotFound,
    ProgramNotExecutable,
    ProgramNotFound,
    SpawnError,
)

pytestmark = pytest.mark.both


@pytest.fixture(params=STARTS)
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    return STARTS[request.param]


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder that root inside a sandbox, and an ordinary user, can look into."""
    tmp_path.chmod(0o755)
    return tmp_path


def failure(args: Sequence[Any], **options: Any) -> SpawnError:
    """The error of a start that fails, after it went through pickle."""
    with pytest.raises(SpawnError) as caught:
        Process(args, stdin=PIPE, stdout=PIPE, **options)
    error = caught.value
    copied = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(copied) is type(error)
    assert str(copied) == str(error)
    assert vars(copied) == vars(error)
    assert (copied.errno, copied.strerror, copied.filename) == (error.errno, error.strerror, error.filename)
    return error


def program(path: Path, content: bytes | str, mode: int = 0o755) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(mode)
    return path


# ---- not found ---------------------------------------------------------------------------------------------


def test_a_name_that_is_nowhere_in_the_path(options: dict[str, Any]) -> None:
    error = failure(["no-such-program", "x"], env={"PATH": "/usr/bin:/opt/none"}, **options)
    assert type(error) is ProgramNotFound
    assert isinstance(error, FileNotFoundError)
    assert error.errno == errno.ENOENT
    assert error.filename == error.path == "no-such-program"
    assert str(error) == (
        "could not execute 'no-such-program': execve: No such file or directory (ENOENT)\n"
        "  no such program in the PATH of its environment, inside its root: /usr/bin, /opt/none"
    )


def test_a_path_that_does_not_exist(options: dict[str, Any]) -> None:
    error = failure(["/no/such/program"], **options)
    assert type(error) is ProgramNotFound
    assert error.filename == "/no/such/program"
    assert "no such program inside its root" in str(error)


def test_a_path_through_a_file(options: dict[str, Any]) -> None:
    error = failure(["/bin/sh/program"], **options)
    assert type(error) is ProgramNotFound
    assert error.errno in (errno.ENOTDIR, errno.ENOENT)


def test_a_dangling_link(options: dict[str, Any], shared: Path) -> None:
    (shared / "link").symlink_to("/no/such/program")
    assert type(failure([shared / "link"])) is ProgramNotFound


def test_the_elf_interpreter_is_missing(shared: Path) -> None:
    for name in ("proc", "dev"):
        (shared / name).mkdir()
    dynamic = shutil.copy(shutil.which("env") or "/usr/bin/env", shared / "program")
    os.chmod(dynamic, 0o755)
    error = failure(["/program"], **in_root(shared))
    assert type(error) is ProgramNotFound
    assert error.filename == "/program"
    assert re.search(r"'/program' exists, but its ELF interpreter '/lib\S*/ld-linux\S*' does not exist", str(error))
    assert "link it statically" in str(error)


@pytest.mark.parametrize("line", ["#!/no/interpreter", "#! /no/interpreter -x\n", "#!/no/interpreter\r\n"], ids=repr)
def test_the_interpreter_of_a_script_is_missing(options: dict[str, Any], shared: Path, line: str) -> None:
    script = program(shared / "script", line)
    error = failure(["/s/script"], **isolated(Bind(shared, "/s"))) if options else failure([script])
    assert type(error) is ProgramNotFound
    words = r"/script' exists, but its interpreter '/no/interpreter(\\r)?' \(first line\) does not exist inside"
    assert re.search(words, str(error))


def test_what_a_terminal_would_obey_is_escaped_in_the_message(shared: Path) -> None:
    """The first line of a file in a root is content, and nobody's word (security.md, D10)."""
    error = failure([program(shared / "script", "#!/no/\x1b]0;title\x07/interpreter\n")])
    assert "\x1b" not in str(error)
    assert "\x1b" not in str(failure(["/no/\x1b[31mprogram"]))


def test_a_name_is_looked_up_inside_the_root_and_not_outside(busybox_root: Path) -> None:
    assert shutil.which("env")
    assert type(failure(["/usr/bin/env"], **in_root(busybox_root))) is ProgramNotFound
    assert said(["echo", "inside"], **in_root(busybox_root)) == "inside\n"


def test_a_name_is_looked_up_in_the_programs_own_path(shared: Path) -> None:
    program(shared / "mine", "#!/bin/sh\necho mine\n")
    assert said(["mine"], env={"PATH": f"/no:{shared}:/bin"}) == "mine\n"
    assert type(failure(["mine"])) is ProgramNotFound


def test_without_a_path_the_default_one_serves() -> None:
    assert said(["echo", "found"], env={"PATH": None}) == "found\n"


def test_a_file_that_may_not_be_executed_does_not_hide_one_that_may(shared: Path) -> None:
    for name, mode in (("first", 0o644), ("second", 0o755)):
        (shared / name).mkdir(mode=0o755)
        program(shared / name / "mine", f"#!/bin/sh\necho {name}\n", mode)
    assert said(["mine"], env={"PATH": f"{shared}/first:{shared}/second:/bin"}) == "second\n"
    error = failure(["mine"], env={"PATH": f"{shared}/first:/bin"})
    assert type(error) is ProgramNotExecutable
    assert error.filename == f"{shared}/first/mine"


# ---- not executable ----------------------------------------------------------------------------------------


def refused(error: SpawnError, number: int, path: str) -> None:
    assert type(error) is ProgramNotExecutable
    assert isinstance(error, PermissionError)
    assert (error.errno, error.filename) == (number, path)


def test_a_directory(options: dict[str, Any]) -> None:
    error = failure(["/usr"], **options)
    refused(error, errno.EACCES, "/usr")
    assert "a directory" in str(error)


def test_no_execute_permission(shared: Path) -> None:
    error = failure([program(shared / "plain", "#!/bin/sh\n", 0o644)])
    refused(error, errno.EACCES, str(shared / "plain"))
    assert "no execute permission" in str(error)


def test_a_mount_without_execution(shared: Path) -> None:
    program(shared / "mine", "#!/bin/sh\n")
    assert said(["/m/mine"], **isolated(Bind(shared, "/m"))) == ""
    error = failure(["/m/mine"], **isolated(Bind(shared, "/m", noexec=True)))
    refused(error, errno.EACCES, "/m/mine")
    assert "noexec" in str(error)


@pytest.mark.parametrize("content", [b"", b"echo no first line\n", b"\x7fELF\x02\x01 broken", b"\0" * 100], ids=repr)
def test_neither_a_program_nor_a_script(shared: Path, content: bytes) -> None:
    error = failure([program(shared / "file", content)])
    refused(error, errno.ENOEXEC, str(shared / "file"))
    assert 'a first line like "#!/bin/sh"' in str(error)


def test_a_fifo_or_a_socket_is_refused_and_not_waited_for(shared: Path) -> None:
    os.mkfifo(shared / "fifo", 0o777)
    refused(failure([shared / "fifo"]), errno.EACCES, str(shared / "fifo"))


# ---- other ends of execve ----------------------------------------------------------------------------------


def test_one_argument_of_more_than_128_kib(options: dict[str, Any]) -> None:
    error = failure(["echo", "x" * (1 << 17)], **options)
    assert type(error) is SpawnError
    assert error.errno == errno.E2BIG
    assert "arguments and the environment together" in str(error)


def test_arguments_that_are_too_many_for_the_kernel() -> None:
    assert failure(["echo", *["x" * 1000] * 7000]).errno == errno.E2BIG


def test_arguments_that_are_too_many_for_a_plan() -> None:
    with pytest.raises(InvalidValue, match="a plan holds 16777216"):
        Process(["echo", *["x" * 100_000] * 170])


def test_links_in_a_circle(shared: Path) -> None:
    (shared / "link").symlink_to("link")
    error = failure([shared / "link"])
    assert error.errno == errno.ELOOP
    assert "symbolic links" in str(error)


def test_a_program_that_is_open_for_writing(shared: Path) -> None:
    path = shutil.copy(shutil.which("env") or "/usr/bin/env", shared / "program")
    os.chmod(path, 0o755)
    with open(path, "r+b"):
        error = failure([path])
    assert error.errno == errno.ETXTBSY
    assert "open for writing" in str(error)


# ---- before exec -------------------------------------------------------------------------------------------


def test_a_root_that_does_not_exist(shared: Path) -> None:
    with pytest.raises(NotFound) as caught:
        Process(["true"], **in_root(shared / "none"))
    assert caught.value.filename == str(shared / "none")
    assert pickle.loads(pickle.dumps(caught.value)).filename == caught.value.filename  # noqa: S301


def test_a_root_that_is_a_file(shared: Path) -> None:
    (shared / "file").touch()
    with pytest.raises(InvalidValue, match="file is not a directory"):
        Process(["true"], **in_root(shared / "file"))


def test_the_source_of_a_bind_does_not_exist() -> None:
    with pytest.raises(NotFound, match="/no/such/source"):
        Process(["true"], **isolated(Bind("/no/such/source", "/x")))


def test_a_mount_on_something_of_another_kind(busybox_root: Path, shared: Path) -> None:
    error = failure(["true"], **in_root(busybox_root, Bind(shared, "/bin/busybox")))
    assert "a directory can be mounted only on a directory" in str(error)
    assert "/bin/busybox" in str(error)


def test_a_mount_point_that_cannot_be_made() -> None:
    """The root is the host's /usr, where nothing is created."""
    error = failure(["true"], **isolated(Tmpfs("/usr/no/such/place")))
    assert error.errno == errno.EROFS
    assert "the root is read-only" in str(error)


def test_a_hard_limit_that_only_root_may_raise() -> None:
    lines = host_said("""
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        try:
            Process(["true"], rlimits={"nofile": 65}, **ISOLATED)
        except ck.SpawnError as error:
            print(errno.errorcode[error.errno], "CAP_SYS_RESOURCE" in str(error), "nofile" in error.step)
    """)
    assert lines == ["EPERM True True"]


def test_a_user_namespace_where_none_may_be_made() -> None:
    """The limit of a namespace is its own root's to set; ours stays."""
    script = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    prefix = ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh"]
    lines = host_said(
        """
        try:
            Process(["true"], **ISOLATED)
        except ck.SpawnError as error:
            print(errno.errorcode[error.errno], "sysctl user.max_user_namespaces" in str(error))
    """,
        prefix=prefix,
    )
    assert lines == ["ENOSPC True"]


# ---- what it leaves ----------------------------------------------------------------------------------------


def test_a_failed_start_leaves_the_streams_to_their_owner(shared: Path) -> None:
    with open(shared / "out", "w") as out:
        with pytest.raises(SpawnError):
            Process(["/no/such"], stdout=out, stderr=out)
        out.write("still ours")
    assert (shared / "out").read_text() == "still ours"


def test_a_thousand_failures_cost_no_descriptor() -> None:
    count = len(os.listdir("/proc/self/fd"))
    for _ in range(30):
        for options in STARTS.values():
            with pytest.raises(ProgramNotFound):
                Process(["/no/such"], stdin=PIPE, stdout=PIPE, stderr=PIPE, **options)
    assert len(os.listdir("/proc/self/fd")) <= count + 2  # the helper and the owner, once


def test_run_and_a_sandbox_raise_the_same_and_the_sandbox_lives_on() -> None:
    with pytest.raises(ProgramNotFound):
        run(["/no/such"])
    with Sandbox() as box:
        with pytest.raises(ProgramNotFound):
            box.run(["/no/such"])
        assert box.run(["echo", "alive"]).stdout == "alive\n"


def test_every_error_is_one_of_ours() -> None:
    for error in (SpawnError, ProgramNotFound, ProgramNotExecutable, InvalidValue):
        assert issubclass(error, ContainerkitError)


@pytest.fixture(autouse=True)
def no_warning(recwarn: pytest.WarningsRecorder) -> Iterator[None]:
    """A start that fails has no object that anybody could close, so nothing may warn about it."""
    yield
    assert [str(one.message) for one in recwarn] == []
