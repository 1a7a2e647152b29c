"""What is done to containers, told to whoever follows the events of the store (:mod:`containerkit.storage.events`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..storage.events import record

if TYPE_CHECKING:
    from .container import Container

__all__ = ["emit"]


def emit(container: Container, action: str, /, **attributes: object) -> None:
    """Tell what was done to one. Does not raise: it has been done."""
    known = {"name": container.known_name, "image": container.image_id}
    record(container.home, "container", action, container.id, {**attributes, **known})
