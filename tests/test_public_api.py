"""The names at the top of the package, and what they promise to people and to type checkers."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_overloads

import pytest

import containerkit as ck
from containerkit import aio, options
from containerkit.launch import Launch

NAMES = [name for name in ck.__all__ if name != "__version__"]


def test_every_public_name_exists_once() -> None:
    assert len(set(ck.__all__)) == len(ck.__all__)
    assert [name for name in ck.__all__ if not hasattr(ck, name)] == []


def test_dir_shows_the_names_that_are_not_loaded_yet() -> None:
    code = "import containerkit; print(*dir(containerkit))"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert set(ck.__all__) <= set(shown)


def test_a_star_import_gives_every_public_name() -> None:
    scope: dict[str, Any] = {}
    exec("from containerkit import *", scope)  # noqa: S102
    assert set(ck.__all__) <= scope.keys()


def test_a_name_that_does_not_exist_is_an_attribute_error_and_an_import_error() -> None:
    with pytest.raises(AttributeError, match="'nonsense'"):
        ck.nonsense  # noqa: B018
    with pytest.raises(ImportError, match="nonsense"):
        exec("from containerkit import nonsense")  # noqa: S102


def test_type_checkers_see_the_same_names_as_programs() -> None:
    """The block for them is written by hand."""
    source = Path(ck.__file__).read_text()
    seen = {line.split(" as ")[1] for line in source.splitlines() if line.startswith("    from .") and " as " in line}
    assert seen | {"aio", "__version__"} == set(ck.__all__)


def public_objects() -> Iterator[tuple[str, Any]]:
    for name in NAMES:
        value = getattr(ck, name)
        if inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value):
            yield name, value
        if inspect.isclass(value):
            for attribute, member in vars(value).items():
                public = not attribute.startswith("_")
                if public and (isinstance(member, (property, classmethod, staticmethod)) or inspect.isfunction(member)):
                    yield f"{name}.{attribute}", getattr(member, "__func__", member)
    for name in aio.__all__:
        yield f"aio.{name}", getattr(aio, name)


@pytest.mark.parametrize(("name", "value"), [pytest.param(n, v, id=n) for n, v in public_objects()])
def test_every_public_object_tells_what_it_is(name: str, value: Any) -> None:
    if isinstance(value, int):
        return
    text = inspect.getdoc(value) or ""
    assert len(text) > 5, f"{name} has no docstring"
    assert not text.startswith("Alias for field number"), f"{name} has the docstring of a named tuple's field"


def modules() -> Iterator[str]:
    for module in pkgutil.walk_packages(ck.__path__, "containerkit."):
        if not module.name.endswith(("._ck", "__main__")):
            yield module.name


@pytest.mark.parametrize("name", sorted(modules()))
def test_every_module_imports_alone_and_begins_with_its_purpose(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    exported = getattr(module, "__all__", ())
    assert [each for each in exported if not hasattr(module, each)] == []


# ---- the typed keyword arguments stand for real ones -------------------------------------------------------


def keywords(function: Callable[..., Any], *without: str) -> set[str]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - set(without)


def keys(typed: type) -> set[str]:
    """A TypedDict's own keys and those that it inherits."""
    named: dict[str, object] = getattr(typed, "__annotations__", {})
    return set(named)


@pytest.mark.parametrize(
    ("typed", "real"),
    [
        (options.RunOptions, keywords(ck.run, "text")),
        (options.SandboxOptions, keywords(ck.Sandbox.__init__, "start_timeout")),
        (options.JoinRunOptions, keywords(ck.Sandbox.run, "text")),
        (options.JoinOptions, keywords(ck.Sandbox._join, "tty")),
        (
            options.LaunchOptions,
            keywords(
                Launch.__init__,
                "account",
                "bounds",
                "hold",
                "host_root",
                "join",
                "offer",
                "over",
                "over_root",
                "witness",
            ),
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_typed_options_are_those_of_the_signature(typed: type, real: set[str]) -> None:
    assert keys(typed) == real


@pytest.mark.parametrize(
    "function",
    [ck.run, ck.Sandbox.run, aio.run, aio.Sandbox.run],
    ids=["run", "Sandbox.run", "aio.run", "aio.Sandbox.run"],
)
def test_the_result_is_typed_by_text(function: Callable[..., Any]) -> None:
    returned = [inspect.signature(overload).return_annotation for overload in get_overloads(function)]
    assert returned == ["Completed[str]", "Completed[bytes]", "Completed[Any]"]


@pytest.mark.parametrize(
    "call",
    [
        lambda: ck.run(["true"], timeot=1),  # type: ignore[call-overload]
        lambda: ck.explain(["true"], timeot=1),  # type: ignore[call-arg]
        lambda: ck.Sandbox(timeout=1),  # type: ignore[call-arg]
        lambda: ck.Process(["true"], rootfs="/"),  # type: ignore[call-arg]
        lambda: ck.Process.explain(["true"], stdinn=1),  # type: ignore[call-arg]
    ],
    ids=["run", "explain", "Sandbox", "Process", "Process.explain"],
)
def test_an_unknown_argument_is_a_type_error(call: Callable[[], object]) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        call()


@pytest.mark.parametrize(
    "call",
    [ck.run, ck.explain, ck.Process, ck.Process.explain],
    ids=["run", "explain", "Process", "Process.explain"],
)
@pytest.mark.parametrize("args", ["echo hello", b"echo hello"], ids=["str", "bytes"])
def test_one_string_is_not_taken_apart_into_letters(call: Callable[..., Any], args: Any) -> None:
    with pytest.raises(TypeError, match="sequence of strings, not one string"):
        call(args)
