"""The long table that several tests of the boosters learn from."""

from __future__ import annotations

import pytest
from tests.boosting.tables import Long, make_long


@pytest.fixture
def long() -> Long:
    return make_long()
