"""A container as ``docker container inspect`` says it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .container import Container

__all__ = ["inspect"]


def inspect(container: Container) -> dict[str, Any]:
    """See Container.inspect()."""
    raise NotImplementedError
