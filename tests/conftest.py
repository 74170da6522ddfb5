"""Shared by all tests: where the real data sets are, one thread for torch, and hypothesis without deadlines."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("pluribus", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pluribus")

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("PLURIBUS_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Path of a real data file below $PLURIBUS_DATA; skips where it is missing."""

    def find(name: str) -> Path:
        path = DATA / name
        if not path.exists():
            pytest.skip(f"real data file {name} is not below PLURIBUS_DATA={DATA}")
        return path

    return find
