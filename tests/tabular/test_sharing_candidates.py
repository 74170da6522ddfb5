"""Sharing architectures as candidates: what is kept is what was trained, and settings reach the architecture."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch

from pluribus import catalog
from pluribus.data.prepared import Prepared
from pluribus.errors import BadInput
from pluribus.modeling import Budget
from pluribus.modeling.experts import StackedNorm
from pluribus.tabular.sharing_candidates import HoMENetwork, MMoENetwork, _Shared

CANDIDATES = [e for e in catalog.entries(family="candidate") if e.target.startswith("pluribus.tabular.sharing_candidates")]


def test_norms_are_folded_into_what_is_kept(mixed: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """HoME is saved without batch norms and answers what it answered with them."""
    from pluribus.sharing import HoME

    unfolded: list[HoME] = []
    fold = HoME.fold

    def watched(self: HoME) -> None:
        unfolded.append(copy.deepcopy(self))
        fold(self)

    monkeypatch.setattr(HoME, "fold", watched)
    fitted = HoMENetwork(width=16, epochs=2).fit(mixed, Budget(60.0), 0)
    assert not [part for part in fitted.model.modules() if isinstance(part, StackedNorm)]
    inputs = mixed.batch(torch.arange(40), tasks=()).inputs
    after = fitted.model.predict(inputs)
    fitted.model.sharing = unfolded[0]
    for name, value in fitted.model.predict(inputs).items():
        torch.testing.assert_close(after[name], value, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("entry", CANDIDATES, ids=lambda entry: entry.name)
def test_settings_are_those_of_the_architecture(entry: catalog.Entry, mixed: Prepared) -> None:
    """Every setting that a candidate hands on is one its architecture takes, with the same default, and none is default-on."""
    kind: type[_Shared] = entry.resolve()
    assert not entry.default
    known = inspect.signature(catalog.get("sharing", kind.sharing).resolve().__init__).parameters
    for name in kind.sharing_settings:
        assert known[name].default == kind.defaults[name], name
    assert kind().estimate(mixed) > 0.5


def test_bad_settings_are_named(mixed: Prepared) -> None:
    with pytest.raises(BadInput, match="experts must be a whole number of at least 1, not 0"):
        MMoENetwork(experts=0, width=16).fit(mixed, Budget(60.0), 0)
    with pytest.raises(BadInput, match="unknown task 'lost'; did you mean 'loss'"):
        HoMENetwork(categories={"x": ["lost"]}, width=16).fit(mixed, Budget(60.0), 0)
