"""What a fit leaves to know: typed, and a mapping for who reads it by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pluribus.modeling import FitRecord
from pluribus.modeling.artefact.committee import Committee

SAID = {"seed": 3, "seconds": 1.5, "curves": {"y": [0.5, None]}, "undertrained": [], "note": "kept", "metrics": None}


def test_it_is_the_mapping_that_it_was() -> None:
    """If this fails, code that reads `record["seconds"]`, and manifests, hold something else than before."""
    record = FitRecord.of(SAID)
    assert record == SAID
    assert json.loads(json.dumps(record.to_dict())) == SAID
    assert (record.seconds, record["seconds"], record.extra) == (1.5, 1.5, {"note": "kept", "metrics": None})
    assert {**record} == SAID
    record["seconds"] += 1
    record["more"] = [1]
    assert (record.seconds, record.extra["more"]) == (2.5, [1])
    del record["more"], record["seconds"]
    assert "more" not in record
    assert record.seconds is None


def test_what_was_not_said_is_not_there() -> None:
    """If this fails, a reader takes "no diagnostics" for diagnostics."""
    record = FitRecord(seed=1)
    assert dict(record) == {"seed": 1}
    assert "seconds" not in record
    assert record.get("seconds", 0.0) == 0.0
    for name in ("seconds", "anything"):
        with pytest.raises(KeyError):
            record[name]
        with pytest.raises(KeyError):
            del record[name]


def test_an_artefact_takes_a_plain_mapping(mixed: Any) -> None:
    """Candidates written for the first edition set a dict."""
    fitted = Committee(mixed.tasks, mixed.columns, {}, {})
    fitted.record = dict(SAID)
    assert isinstance(fitted.record, FitRecord)
    assert fitted.record == SAID
