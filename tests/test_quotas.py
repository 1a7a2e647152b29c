"""Quotas hold against real load, within what the measurements of `benchmarks/quotas.py` allow; without a limit, not."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from patience import PATIENCE

from containerkit import Unsupported

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(120)]


def load() -> ModuleType:
    path = Path(__file__).parent.parent / "benchmarks" / "quotas.py"
    spec = importlib.util.spec_from_file_location("quotas", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


quotas = load()


def measure(name: str, *, limited: bool) -> quotas.Measured:  # type: ignore[name-defined]
    if PATIENCE > 1 and name not in ("memory_max", "pids_max"):
        pytest.skip("a rate means nothing in an emulated machine: its clock goes on while its processors stand still")
    try:
        return quotas.MEASURES[name](3.0 if limited else 1.0, limited=limited)
    except (Unsupported, quotas.NoDevice) as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", quotas.MEASURES)
def test_the_quota_holds(name: str) -> None:
    found = measure(name, limited=True)
    assert found.holds, f"{found.off:+.1%} off: {found}"


@pytest.mark.parametrize("name", quotas.MEASURES)
def test_without_the_limit_the_same_load_misses_it(name: str) -> None:
    """The measure can see a quota that does not hold."""
    found = measure(name, limited=False)
    assert not found.holds, f"{found.off:+.1%} off: {found}"
