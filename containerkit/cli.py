"""The ``containerkit`` command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from . import __version__

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (by default the program's own); returns its exit status."""
    parser = argparse.ArgumentParser("containerkit", description="Linux container primitives for Python.")
    parser.add_argument("--version", action="version", version=f"containerkit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    doctor = commands.add_parser(
        "doctor",
        help="what works on this machine for this user",
        description="Tell what works on this machine for this user, what is lost where something does not, "
        "and how to turn it on. Exit status 0 when all is there that the default sandbox needs, else 1.",
    )
    doctor.add_argument("--json", action="store_true", help="as JSON, for programs")
    arguments = parser.parse_args(argv)
    return _doctor(as_json=arguments.json)


def _doctor(*, as_json: bool) -> int:
    from .checkup import doctor

    report = doctor()
    if as_json:
        import json

        print(json.dumps(report.to_dict(), indent=2))
    else:
        print(report)
    return 0 if report.ok else 1
