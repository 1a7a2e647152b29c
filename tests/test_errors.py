"""The exceptions as values: their types, their fields, their text, and pickling."""

from __future__ import annotations

import builtins
import errno
import os
import pickle
import subprocess

import pytest

import containerkit as ck
from containerkit import errors
from containerkit.errors import syscall_error

CLASSES = [getattr(errors, name) for name in errors.__all__]
KERNEL = [kind for kind in CLASSES if issubclass(kind, (errors.SyscallError, errors.SpawnError))]


def example(kind: type[ck.ContainerkitError]) -> ck.ContainerkitError:
    """One of each, with every field set."""
    if issubclass(kind, (errors.SyscallError, errors.SpawnError)):
        number = {"NotFound": errno.ENOENT, "Exists": errno.EEXIST, "Busy": errno.EBUSY}.get(kind.__name__, errno.EPERM)
        return kind({"errno": number, "syscall": "mount", "step": "mount it", "path": "/some/path", "hint": "do this"})
    if kind is ck.TimeoutExpired:
        return ck.TimeoutExpired(["sleep", "9"], 1.5, "out", "err")
    if kind is ck.ProcessFailed:
        return ck.ProcessFailed(failed())
    if kind is ck.CgroupUnavailable:
        return ck.CgroupUnavailable("the message", "busy")
    return kind("the message")


def failed() -> ck.Completed[str]:
    usage = ck.Usage(0.0, 0.0, 0.0, 0.0, 0, 0, 0, 0, 0, 0, 0)
    record = ([], b"", 0, [("called", 0), ("started", 5)])
    return ck.Completed(["prog", "x"], 3, "said", "complained", ck.Outcome.EXITED, usage, record, (0, 7))


@pytest.mark.parametrize("kind", CLASSES)
def test_everything_is_a_containerkit_error(kind: type[ck.ContainerkitError]) -> None:
    assert issubclass(kind, ck.ContainerkitError)
    assert getattr(ck, kind.__name__) is kind


@pytest.mark.parametrize("kind", CLASSES)
def test_pickling_keeps_type_fields_and_text(kind: type[ck.ContainerkitError]) -> None:
    error = example(kind)
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(again) is kind
    assert str(again) == str(error)
    fields = [name for name in vars(error) if name != "completed"]
    assert {name: getattr(again, name) for name in fields} == {name: getattr(error, name) for name in fields}
    assert repr(again.args) == repr(error.args)


@pytest.mark.parametrize("kind", KERNEL)
def test_a_refusal_of_the_kernel_keeps_the_contract_of_oserror(kind: type[OSError]) -> None:
    error = example(kind)  # type: ignore[arg-type]
    assert isinstance(error, OSError)
    assert error.errno
    assert error.strerror == os.strerror(error.errno)
    assert error.filename == "/some/path"
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (again.errno, again.strerror, again.filename) == (error.errno, error.strerror, error.filename)


@pytest.mark.parametrize("kind", KERNEL)
def test_the_text_names_the_object_the_answer_and_what_to_do(kind: type[OSError]) -> None:
    error = example(kind)  # type: ignore[arg-type]
    assert isinstance(error, OSError)
    text = str(error)
    assert errno.errorcode[error.errno or 0] in text
    assert error.strerror in text
    assert text.endswith("\n  do this")
    assert "mount" in text


@pytest.mark.parametrize("kind", KERNEL)
def test_without_a_hint_the_text_is_one_line(kind: type[errors.SyscallError]) -> None:
    error = kind({"errno": errno.EPERM, "syscall": "mount", "step": "mount it", "path": None, "hint": None})
    assert "\n" not in str(error)
    assert error.filename is None


def test_an_errno_that_has_no_name_is_shown_as_its_number() -> None:
    assert "(512)" in str(syscall_error(512, "mount"))


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        ("InvalidValue", ValueError),
        ("ClosedHandle", ValueError),
        ("StatusLost", ChildProcessError),
        ("NotPermitted", PermissionError),
        ("NotFound", FileNotFoundError),
        ("Exists", FileExistsError),
        ("Busy", OSError),
        ("SpawnError", OSError),
        ("ProgramNotFound", FileNotFoundError),
        ("ProgramNotExecutable", PermissionError),
        ("TimeoutExpired", TimeoutError),
        ("ProcessFailed", subprocess.CalledProcessError),
    ],
)
def test_who_catches_the_builtin_catches_ours(kind: str, builtin: type[Exception]) -> None:
    with pytest.raises(builtin):
        raise example(getattr(ck, kind))


def test_a_timeout_is_caught_by_who_catches_that_of_subprocess() -> None:
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        raise example(ck.TimeoutExpired)
    assert (caught.value.cmd, caught.value.timeout) == (["sleep", "9"], 1.5)
    assert (caught.value.stdout, caught.value.stderr) == ("out", "err")


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EPERM, "NotPermitted"),
        (errno.EACCES, "NotPermitted"),
        (errno.ENOENT, "NotFound"),
        (errno.EEXIST, "Exists"),
        (errno.EBUSY, "Busy"),
        (errno.EINVAL, "SyscallError"),
    ],
)
def test_the_subclass_follows_the_errno_as_oserror_does_itself(number: int, kind: str) -> None:
    error = syscall_error(number, "open", "/p")
    assert type(error).__name__ == kind
    assert isinstance(error, type(OSError(number, "")))


def test_a_failed_run_shows_the_end_of_its_complaint() -> None:
    error = ck.ProcessFailed(failed())
    assert "'prog' failed: exited, return code 3" in str(error)
    assert str(error).endswith("complained")
    assert (error.returncode, error.cmd, error.stdout, error.stderr) == (3, ["prog", "x"], "said", "complained")
    assert error.completed.stderr_cut == 7


def test_names_of_errors_do_not_shadow_builtins() -> None:
    assert not {kind.__name__ for kind in CLASSES} & set(dir(builtins))


def test_an_unknown_name_in_the_module_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Nonsense"):
        errors.Nonsense  # noqa: B018
