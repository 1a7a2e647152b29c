"""What can go wrong with containers and volumes; apart because a plain run needs none of it."""

from __future__ import annotations

from .errors import ContainerkitError


class ContainerNotFound(ContainerkitError, LookupError):
    """The store has no container of this name or id, or it was removed meanwhile."""


class VolumeNotFound(ContainerkitError, LookupError):
    """The store has no volume of this name, or it was removed meanwhile."""


class NameTaken(ContainerkitError):
    """Another container, or volume, of the store has this name."""


class WrongState(ContainerkitError):
    """The container is in a state in which that cannot be done: it runs, or does not; the message says which."""


class MonitorLost(ContainerkitError):
    """The monitor of a container ended, or does not answer; the message says what is known of the container."""
