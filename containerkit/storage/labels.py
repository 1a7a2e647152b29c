"""Labels as filters ask for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["has_labels"]


def has_labels(labels: Mapping[str, str], wanted: Sequence[str]) -> bool:
    """Whether all of ``"key"`` and ``"key=value"`` are there."""
    for text in wanted:
        key, equals, value = text.partition("=")
        if key not in labels or (equals and labels[key] != value):
            return False
    return True
