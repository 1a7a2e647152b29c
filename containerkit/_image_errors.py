"""What can go wrong with images, layers, registries and the store; apart because a plain run needs none of it."""

from __future__ import annotations

from typing import Any

from .errors import ContainerkitError, InvalidValue


class InvalidLayer(InvalidValue):
    """A layer, or an archive, that no honest program writes, or that goes beyond a limit. Nothing of it is kept.

    ``entry`` is the name within the archive that it was about, or None.
    """

    entry: bytes | None

    def __init__(self, message: str, entry: bytes | None = None) -> None:
        super().__init__(message)
        self.entry = entry

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.entry)


class ContentMismatch(ContainerkitError):
    """Content is not what its descriptor says: another size or another digest. Nothing of it is kept."""


class TreeProcessLost(ContainerkitError):
    """The process that works on trees of strangers (``containerkit.tree_process``) ended, or was not to be believed.

    Memory and processor time are bounded there; an archive that needs more is refused like this.
    """


class ImageNotFound(ContainerkitError, LookupError):
    """The store, the archive or the registry has no image of this name."""


class InUse(ContainerkitError):
    """It cannot be removed because something still needs it; the message says what."""


class StoreError(ContainerkitError):
    """The store itself is damaged, of another version, or not a store. ``Store.fsck()`` says more."""


class RegistryError(ContainerkitError):
    """A registry refused, or could not be reached.

    Attributes:
        url: what was asked for, without its query.
        status: the HTTP status, or None when there was no answer.
        code: the registry's own word for it ("MANIFEST_UNKNOWN"), or None.
    """

    url: str
    status: int | None
    code: str | None

    def __init__(self, message: str, url: str = "", status: int | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.url, self.status, self.code = url, status, code

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.url, self.status, self.code)


class AuthenticationFailed(RegistryError):
    """The registry wants other credentials than it was given, or any; the message says where they were looked for."""
