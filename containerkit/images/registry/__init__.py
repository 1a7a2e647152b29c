"""Registries: their API as a client, which believes them nothing that it can verify."""

from .client import Registry
from .credentials import Credentials

__all__ = ["Credentials", "Registry"]
