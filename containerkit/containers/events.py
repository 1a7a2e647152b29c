"""What is done to containers, told to whoever follows the events of the store (:mod:`containerkit.storage.events`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._container_errors import ContainerNotFound
from .._image_errors import StoreError
from ..storage.events import record

if TYPE_CHECKING:
    from ..store import Store
    from .container import Container

__all__ = ["attributes_of", "emit"]


def emit(container: Container, action: str, /, **attributes: object) -> None:
    """Tell what was done to one. Does not raise: it has been done."""
    known = {"name": container.known_name, "image": container.image_id}
    record(container.home, "container", action, container.id, {**attributes, **known})


def attributes_of(store: Store, id: str) -> dict[str, str]:
    """What all events of a container say of it; nothing when it is not there any more."""
    try:
        container = store.containers.get(id)
        return {**container.spec.labels, "name": container.known_name, "image": container.image_id}
    except (ContainerNotFound, StoreError):
        return {}
