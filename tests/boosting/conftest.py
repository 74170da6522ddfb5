"""The boosters' kernels need the extra `boost`; LightGBM's baselines do not."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from tests.boosting.tables import Long, make_long

if find_spec("numba") is None:
    collect_ignore_glob = ["test_[!b]*.py"]


@pytest.fixture
def long() -> Long:
    return make_long()
