"""Removing containers: never one that runs unless it is killed first, and nothing of it stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .container import Container

__all__ = ["remove"]


def remove(container: Container, *, force: bool = False, volumes: bool = False) -> None:
    """See Container.remove()."""
    raise NotImplementedError
