"""The report's panel on experts: every figure is the record's, the sick are pointed out, and nothing is invented."""

from __future__ import annotations

import math
from typing import Any

from pluribus.study.report.experts import experts


def summary(**health: Any) -> dict[str, Any]:
    run = {
        "zero_share": {"experts": 0.4},
        "dead_units": {"experts": 0.02},
        "scale_spread": {"experts": 1.7},
        "gate_entropy": {"click": 0.62, "buy": 0.41},
        "occupancy": [0.55, 0.61],
        **health,
    }
    return {"candidates": {"mmoe": {"label": "MMoE", "settings": {}}}, "expert_health": {"mmoe": [run, run]}}


def test_healthy_experts() -> None:
    found = experts(summary())
    assert "Nothing stands out." in found
    for figure in ("MMoE", "0.62", "0.41", "1.7", "0.61", ">2<", ">40<"):
        assert figure in found, figure


def test_the_sick_are_pointed_out() -> None:
    found = experts(
        summary(
            dead_units={"experts": 0.5},
            scale_spread={"experts": None},
            gate_entropy={"<click>": 1.0, "buy": math.nan},
            occupancy=[0.97, None],
        )
    )
    assert "50 % of the units of experts give the same value on every row" in found
    assert "an expert of experts gives one value only" in found
    assert "the gates of 1 task mix all experts alike (&lt;click&gt;)" in found
    assert "belongs to one task for 97 %" in found
    assert "Nothing stands out" not in found
    assert "9 times as loud" in experts(summary(scale_spread={"experts": 9.0}))


def test_without_experts() -> None:
    for empty in ({}, {"expert_health": {}}, {"expert_health": {"stem": [None]}}):
        assert experts({"candidates": {}, **empty}) == ""
