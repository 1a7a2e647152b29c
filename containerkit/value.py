"""Frozen configuration values, for which a first run need not import attrs.

A value is written as an attrs class, and type checkers see one: ``frozen`` and ``field`` are attrs's own to them. At
run time they are the small subset below, because importing attrs takes 35 to 40 ms, more than everything else that a
first ``run()`` imports and ten times as long as the run. To attrs the values are its own classes: ``attrs.evolve``,
``attrs.asdict`` and ``attrs.fields`` work, and importing attrs is then paid by who calls them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from inspect import Signature

    from attrs import field, frozen

__all__ = ["Value", "field", "frozen"]

_REQUIRED = object()


class _Field:
    """One field: what attrs.field() takes, as far as values use it."""

    __slots__ = ("check", "converter", "default", "kw_only", "name", "repr")

    name: str

    def __init__(
        self,
        *,
        default: object = _REQUIRED,
        converter: Callable[[Any], object] | None = None,
        validator: Callable[[Any, Any, Any], object] | None = None,
        repr: bool | Callable[[Any], str] = True,
        kw_only: bool = False,
    ) -> None:
        self.default, self.converter, self.check = default, converter, validator
        self.repr, self.kw_only = repr, kw_only

    def validator(self, check: Callable[[Any, Any, Any], object]) -> Callable[[Any, Any, Any], object]:
        """``@name.validator``, in the body of the class."""
        self.check = check
        return check


if not TYPE_CHECKING:
    field = _Field

    def frozen(*, kw_only: bool = False) -> Callable[[type], type]:
        """Make the annotated names of a class its fields, set once by ``__init__``."""

        def decorate(kind: type) -> type:
            fields = []
            for name, annotation in kind.__annotations__.items():
                if annotation.startswith("ClassVar"):
                    continue
                given = kind.__dict__.get(name, _REQUIRED)
                made = given if isinstance(given, _Field) else _Field(default=given)
                made.name = name
                made.kw_only |= kw_only
                fields.append(made)
                if given is not _REQUIRED:
                    delattr(kind, name)
            kind._fields = tuple(fields)
            return kind

        return decorate


class _ForAttrs:
    """``__attrs_attrs__``: what attrs asks of a class of its own."""

    def __get__(self, value: object, kind: Any) -> Any:
        import attrs

        made = {
            f.name: attrs.field(kw_only=f.kw_only)
            if f.default is _REQUIRED
            else attrs.field(default=f.default, kw_only=f.kw_only)
            for f in kind._fields
        }
        kind.__attrs_attrs__ = attrs.fields(attrs.make_class(kind.__name__, made))
        return kind.__attrs_attrs__


class _ForInspect:
    """``__signature__``: the arguments by name, for help() and the documentation."""

    def __get__(self, value: object, kind: Any) -> Signature:
        from inspect import Parameter, Signature

        return Signature(
            [
                Parameter(
                    f.name,
                    Parameter.KEYWORD_ONLY if f.kw_only else Parameter.POSITIONAL_OR_KEYWORD,
                    default=Parameter.empty if f.default is _REQUIRED else f.default,
                    annotation=kind.__annotations__[f.name],
                )
                for f in sorted(kind._fields, key=lambda f: f.kw_only)
            ]
        )


class Value:
    """The base of values: made from fields, printed and compared by them, never changed."""

    _fields: tuple[_Field, ...]

    if not TYPE_CHECKING:
        __attrs_attrs__ = _ForAttrs()
        __signature__ = _ForInspect()

        def __init__(self, *args: object, **given: object) -> None:
            kind = type(self).__name__
            places = [f.name for f in self._fields if not f.kw_only]
            if len(args) > len(places):
                raise TypeError(f"{kind}() takes {len(places)} positional arguments but {len(args)} were given")
            for name, value in zip(places, args, strict=False):
                if name in given:
                    raise TypeError(f"{kind}() got multiple values for argument {name!r}")
                given[name] = value
            for f in self._fields:
                value = given.pop(f.name, f.default)
                if value is _REQUIRED:
                    raise TypeError(f"{kind}() missing required argument: {f.name!r}")
                self.__dict__[f.name] = value if f.converter is None else f.converter(value)
            if given:
                raise TypeError(f"{kind}() got an unexpected keyword argument {min(given)!r}")
            for f in self._fields:
                if f.check is not None:
                    f.check(self, f, self.__dict__[f.name])
            self.__attrs_post_init__()

    def __attrs_post_init__(self) -> None:
        """What must be checked of several fields together."""

    def __setattr__(self, name: str, value: object) -> None:
        from attrs.exceptions import FrozenInstanceError

        raise FrozenInstanceError

    def __delattr__(self, name: str) -> None:
        from attrs.exceptions import FrozenInstanceError

        raise FrozenInstanceError

    def __repr__(self) -> str:
        shown = []
        for f in self._fields:
            value = getattr(self, f.name)
            if f.repr and value != f.default:
                shown.append(f"{f.name}={f.repr(value) if callable(f.repr) else repr(value)}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Value) or type(other) is not type(self):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        """Counted once: values are the keys of the caches that make a start quick."""
        known: int | None = self.__dict__.get("_hash")
        if known is None:
            known = self.__dict__["_hash"] = hash((type(self), self._values()))
        return known

    def __getstate__(self) -> dict[str, object]:
        """Without the hash: that of a string is another one in each process."""
        return {f.name: self.__dict__[f.name] for f in self._fields}

    def _values(self) -> tuple[object, ...]:
        return tuple([self.__dict__[f.name] for f in self._fields])
