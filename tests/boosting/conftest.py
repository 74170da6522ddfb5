"""The boosters' kernels need the extra `boost`."""

from __future__ import annotations

import pytest
from tests.boosting.tables import Long, make_long

pytest.importorskip("numba")


@pytest.fixture
def long() -> Long:
    return make_long()
