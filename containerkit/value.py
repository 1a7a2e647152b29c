"""What all configuration values share: printed by their fields, compared by their fields."""

from __future__ import annotations

from typing import Any

import attrs

__all__ = ["Value"]


class Value:
    """The base of frozen attrs classes that are written ``@attrs.frozen(eq=False, repr=False)``.

    attrs would generate and compile ``__repr__``, ``__eq__`` and ``__hash__`` for each class at import: half of the
    0.6 ms that a class costs, before the first program has run. Here they are written once, over the fields.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        shown = []
        for field in _attributes(type(self)):
            value = getattr(self, field.name)
            if field.repr and value != field.default:
                text = field.repr(value) if callable(field.repr) else repr(value)
                shown.append(f"{field.name}={text}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def _fields(self) -> tuple[object, ...]:
        return tuple(getattr(self, field.name) for field in _attributes(type(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Value) or type(other) is not type(self):
            return NotImplemented
        return self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash((type(self), self._fields()))


def _attributes(kind: Any) -> tuple[attrs.Attribute[Any], ...]:
    fields: tuple[attrs.Attribute[Any], ...] = attrs.fields(kind)
    return fields
