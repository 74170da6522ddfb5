"""Every encoder of the catalog keeps the protocol: inputs → Features [B, width], row by row, whatever is missing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.conformance.entries import entries_for

from pluribus.data.prepared import Prepared
from pluribus.modeling import Encoder

TABULAR = entries_for(__name__, "encoder", "table")


@pytest.fixture(params=TABULAR, ids=lambda entry: entry.name)
def encoder(request: pytest.FixtureRequest, mixed: Prepared) -> Encoder:
    torch.manual_seed(0)
    made: Encoder = request.param.resolve().of(mixed.columns)
    return made.eval()


def _inputs(data: Prepared, rows: Any) -> Any:
    return data.batch(torch.as_tensor(rows), tasks=()).inputs


def test_shape_and_missing_values(encoder: Encoder, mixed: Prepared) -> None:
    """Rows with missing cells, and cells nobody has seen, give finite features of the declared width."""
    inputs = _inputs(mixed, range(64))
    assert inputs["numeric"].isnan().any()
    inputs["numeric"][0], inputs["categorical"][0], inputs["categorical"][1] = torch.nan, 0, 1
    inputs["numeric"][1] = 1e9
    main = encoder(inputs, {}).main
    assert main.shape[0] == 64
    assert main.shape[-1] == encoder.width
    assert main.isfinite().all()


def test_gradients_are_finite_and_reach_every_parameter(encoder: Encoder, mixed: Prepared) -> None:
    main = encoder(_inputs(mixed, range(256)), {}).main
    (main * torch.randn_like(main)).sum().backward()
    for name, p in encoder.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name


def test_rows_are_apart(encoder: Encoder, mixed: Prepared) -> None:
    """Serving: a row's features do not depend on the batch it comes in."""
    together = encoder(_inputs(mixed, range(16)), {}).main
    backwards = encoder(_inputs(mixed, range(15, -1, -1)), {}).main.flip(0)
    alone = encoder(_inputs(mixed, [3]), {}).main
    torch.testing.assert_close(backwards, together)
    torch.testing.assert_close(alone[0], together[3])


def test_rebuilt_from_state(encoder: Encoder, mixed: Prepared) -> None:
    again = type(encoder).of(mixed.columns).eval()  # type: ignore[attr-defined]
    again.load_state_dict(encoder.state_dict())
    inputs = _inputs(mixed, range(32))
    assert torch.equal(again(inputs, {}).main, encoder(inputs, {}).main)
