"""What a volume may be called: docker's rule, and short enough for the name of a directory."""

from __future__ import annotations

import os
import re

from ..errors import InvalidValue

__all__ = ["anonymous_name", "check_name"]

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{1,254}", re.ASCII)


def check_name(name: str) -> str:
    """The name itself. Raises InvalidValue for what docker would refuse, or a file system."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidValue(
            f"volume name {name!r} must be 2 to 255 of the characters a-z, A-Z, 0-9, '_', '.' and '-', and begin with "
            "a letter or digit; a directory of the host is named by its absolute path"
        )
    return name


def anonymous_name() -> str:
    """For a volume that nobody has named."""
    return os.urandom(32).hex()
