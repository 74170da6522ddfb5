"""Funnels: if these fail, the entire space is not entire, a corrected risk is biased, or the numbers break near 0 and 1."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.conformance.entries import entries_for
from torch import Tensor

from pluribus.data import Batch, Labels
from pluribus.errors import BadInput
from pluribus.modeling import Encoder, Features, MultiTaskModel, Supervised
from pluribus.modeling.funnels import ESCM2, ESMM, Calibrated, chains, dr, entire_space, ips, log1mexp
from pluribus.sharing import AITM, Imputed, SharedBottom
from pluribus.tasks import Task


def step(name: str, after: str | None = None) -> Task:
    return Task(name, "binary", classes=("0", "1"), after=(after,) if after else ())


FUNNEL = [step("click"), step("cart", "click"), step("buy", "cart"), Task("dwell")]


class Plain(Encoder):
    width = 3

    def forward(self, inputs: Any, context: Any) -> Features:
        return Features(inputs["x"])


def model(sharing: Any = None) -> MultiTaskModel:
    torch.manual_seed(0)
    return MultiTaskModel(FUNNEL, Plain(), sharing or SharedBottom(FUNNEL, 3, tower=4))


def batch(n: int = 40, seed: int = 0) -> Batch:
    """Children have cells only where their parent is 1; a fifth of `buy` is missing there; `click` misses row 0."""
    rng = np.random.default_rng(seed)
    click = rng.random(n) < 0.6
    cart, buy = click & (rng.random(n) < 0.5), rng.random(n) < 0.5
    known = rng.random(n) < 0.8

    def cells(values: Any, where: Any) -> Labels:
        rows = torch.from_numpy(np.flatnonzero(where))
        return Labels(torch.from_numpy(np.asarray(values, np.float32))[rows], rows)

    first = np.arange(n) > 0
    labels = {
        "click": cells(click, first),
        "cart": cells(cart, click & first),
        "buy": cells(buy & cart, cart & known & first),
        "dwell": cells(rng.normal(size=n), rng.random(n) < 0.5),
    }
    return Batch({"x": torch.from_numpy(rng.normal(size=(n, 3)).astype(np.float32))}, n, labels)


def test_the_entire_space_by_hand() -> None:
    """A row counts where the answer is known: 0 as soon as one step is 0, 1 where all happened, else not at all."""
    nan = float("nan")
    table = {"a": [0, 1, 1, 1, 1, nan, 1], "b": [nan, 0, 1, 1, 1, nan, nan], "c": [nan, nan, 0, 1, nan, nan, nan]}
    labels = {}
    for name, values in table.items():
        rows = torch.tensor([i for i, v in enumerate(values) if v == v])
        labels[name] = Labels(torch.tensor(values)[rows], rows, weight=2.0 + rows if name == "a" else None)
    whole = entire_space(("a", "b", "c"), Batch({}, 7, labels))
    assert whole is not None
    assert whole.rows.tolist() == [0, 1, 2, 3]
    assert whole.values.tolist() == [0, 0, 0, 1]
    assert whole.weight is not None
    assert whole.weight.tolist() == [2, 3, 4, 5]
    assert entire_space(("a",), Batch({}, 3, {})) is None


def probabilities(made: MultiTaskModel, data: Batch) -> dict[str, Tensor]:
    return {k: v.double() for k, v in made.predict(data.inputs).items()}


@pytest.mark.parametrize("seed", range(3))
def test_esmm_by_hand(seed: int) -> None:
    """Oracle: cross-entropy of products of probabilities over all exposures, row by row; other tasks as `Supervised`."""
    made, data = model(), batch(seed=seed)
    losses = ESMM(FUNNEL).losses(made, data)
    p = probabilities(made, data)
    dense = {k: dict(zip(v.rows.tolist(), v.values.tolist())) for k, v in data.labels.items()}
    for k, chain in (("click", ["click"]), ("cart", ["click", "cart"]), ("buy", ["click", "cart", "buy"])):
        total, count = 0.0, 0
        for row in range(data.n_rows):
            seen = [dense[s].get(row) for s in chain]
            if 0 not in seen and None in seen:
                continue
            joint = float(np.prod([p[s][row] for s in chain]))
            total -= np.log(joint) if 0 not in seen else np.log1p(-joint)
            count += 1
        assert float(losses.sums[k].detach()) == pytest.approx(total, rel=1e-5)
        assert float(losses.counts[k]) == count
    plain = Supervised().losses(made, data)
    torch.testing.assert_close(losses.sums["dwell"], plain.sums["dwell"])
    assert float(losses.counts["dwell"]) == float(plain.counts["dwell"])


@pytest.mark.parametrize("risk", ["ips", "dr"])
def test_escm2_by_hand(risk: Any) -> None:
    made, data = model(Imputed(FUNNEL, 3, inside="shared_bottom", tower=4)), batch()
    joint = ESMM(FUNNEL).losses(made, data)
    losses = ESCM2(FUNNEL, risk=risk, lambda_c=0.3, lambda_g=0.7, clip=2.0).losses(made, data)
    p = probabilities(made, data)
    imputed = made(data.inputs).extra["imputed"]
    for k, before in (("cart", ["click"]), ("buy", ["click", "cart"])):
        total = 0.0
        whole = entire_space((*before, k), data)
        parent = entire_space(before, data)
        assert whole is not None
        assert parent is not None
        happened = dict(zip(parent.rows.tolist(), parent.values.tolist()))
        for row, y in zip(whole.rows.tolist(), whole.values.tolist()):
            o = happened[row] == 1
            weight = min(2.0, 1 / float(np.prod([p[s][row] for s in before])))
            e = -np.log(p[k][row]) if y else -np.log1p(-p[k][row])
            hat = float(imputed[k][row].detach())
            assert hat >= 0
            if risk == "ips":
                total += weight * float(e) if o else 0.0
            else:
                total += hat + (weight * (float(e) - hat) + weight * (float(e) - hat) ** 2 if o else 0.0)
        expected = 0.7 * float(joint.sums[k].detach()) + 0.3 * total
        assert float(losses.sums[k].detach()) == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(losses.sums["click"], joint.sums["click"])


def test_propensities_take_no_gradient() -> None:
    """Weights are not a way to lower the loss: with λ_g = 0 nothing of a child's risk reaches the parent's head."""
    made, data = model(), batch()
    losses = ESCM2(FUNNEL, lambda_c=1.0, lambda_g=0.0).losses(made, data)
    losses.sums["cart"].backward()  # type: ignore[no-untyped-call]
    gradient = made.heads.weight.grad
    assert gradient is not None
    assert gradient[0].abs().sum() == 0
    assert gradient[1].abs().sum() > 0


@pytest.mark.parametrize("entry", entries_for(__name__, "objective", "funnel"), ids=lambda entry: entry.name)
def test_micro_batches_add_up(entry: Any) -> None:
    """Sums and counts of two halves are the whole's: accumulation and processes stay exact (penalties are means apart)."""
    made, data, objective = model(), batch(), entry.resolve()
    halves = []
    for lo, hi in ((0, 20), (20, 40)):
        labels = {}
        for name, one in data.labels.items():
            mine = (one.rows >= lo) & (one.rows < hi)
            labels[name] = Labels(one.values[mine], one.rows[mine] - lo)
        halves.append(objective(FUNNEL).losses(made, Batch({"x": data.inputs["x"][lo:hi]}, hi - lo, labels)))
    whole = objective(FUNNEL).losses(made, data)
    for name in whole.sums:
        torch.testing.assert_close(whole.sums[name], halves[0].sums[name] + halves[1].sums[name])
        assert whole.counts[name] == halves[0].counts[name] + halves[1].counts[name]


@pytest.mark.parametrize("rows", [2_000, 32_000])
def test_unbiased_by_simulation(rows: int) -> None:
    """Known propensities: IPS with them meets the full space's risk within its own standard error, the observed mean does not;
    DR does so if either the propensities or the imputation are right, and not where both are wrong. 200 draws."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=rows)
    truth = 1 / (1 + np.exp(-1.5 * x))  # P(observed)
    error = torch.from_numpy(np.exp(-0.8 * x) + 0.2 * rng.random(rows))  # what is missed more often is worse
    right = torch.from_numpy(truth).clamp_min(0.05)
    wrong = torch.full_like(right, float(right.mean()))
    good, bad = error * 0.9 + 0.05, torch.full_like(error, float(error.mean()) / 2)
    found: dict[str, list[float]] = {"naive": [], "ips": [], "ips wrong": [], "dr p": [], "dr e": [], "dr none": []}
    for _ in range(200):
        o = torch.from_numpy(rng.random(rows) < right.numpy())
        found["naive"].append(float(error[o].mean()))
        found["ips"].append(float(ips(error, o, right).mean()))
        found["ips wrong"].append(float(ips(error, o, wrong).mean()))
        found["dr p"].append(float(dr(error, bad, o, right).mean()))
        found["dr e"].append(float(dr(error, error, o, wrong).mean()))
        found["dr none"].append(float(dr(error, bad, o, wrong).mean()))
    risk = float(error.mean())
    for name, values in found.items():
        off = abs(np.mean(values) - risk)
        slack = 4 * np.std(values) / np.sqrt(len(values)) + 1e-9
        assert (off <= slack) == (name in ("ips", "dr p", "dr e")), (name, off, slack)
    draws = [torch.from_numpy(rng.random(rows) < right.numpy()) for _ in range(100)]
    spread = np.std([float(dr(error, good, o, right).mean()) for o in draws])
    assert spread < np.std(found["ips"])  # a good imputation lowers the variance


def test_ips_converges_at_the_root_of_n() -> None:
    rng = np.random.default_rng(0)
    spreads = []
    for rows in (500, 8_000):
        p = torch.from_numpy(rng.uniform(0.1, 0.9, rows))
        draws = [float(ips(1 - p, torch.from_numpy(rng.random(rows) < p.numpy()), p).mean()) for _ in range(300)]
        spreads.append(np.std(draws))
    assert spreads[0] / spreads[1] == pytest.approx(4, rel=0.3)


def test_a_row_weighs_what_the_deciding_step_weighs() -> None:
    """Row 0 ends at the click: the weight of its empty cart, a cell that decides nothing, must not count."""
    rows = torch.arange(3)
    labels = {
        "click": Labels(torch.tensor([0.0, 1.0, 1.0]), rows, weight=torch.tensor([2.0, 3.0, 4.0])),
        "cart": Labels(torch.tensor([0.0, 0.0, 1.0]), rows, weight=torch.tensor([7.0, 8.0, 9.0])),
    }
    found = entire_space(("click", "cart"), Batch({}, 3, labels))
    assert found is not None
    assert found.weight is not None
    assert (found.values.tolist(), found.weight.tolist()) == ([0, 0, 1], [2, 8, 9])


@given(st.floats(-100, -1e-6))
def test_log1mexp(x: float) -> None:
    at = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    value = log1mexp(at)
    exact = np.log(-np.expm1(x)) if x > -1 else np.log1p(-np.exp(x))
    assert float(value.detach()) == pytest.approx(float(exact), rel=1e-9)
    (slope,) = torch.autograd.grad(value, at)
    assert torch.isfinite(slope)


@pytest.mark.parametrize("size", [-200.0, 200.0])
def test_extreme_logits_stay_finite(size: float) -> None:
    made, data = model(), batch()
    with torch.no_grad():
        made.heads.bias.fill_(size)
    for objective in (ESMM(FUNNEL), ESCM2(FUNNEL), Calibrated(FUNNEL)):
        made.zero_grad()
        losses = objective.losses(made, data)
        torch.stack([*losses.sums.values(), *losses.penalties.values()]).sum().backward()
        assert all(torch.isfinite(value) for value in losses.sums.values())
        assert all(torch.isfinite(p.grad).all() for p in made.parameters() if p.grad is not None)


def test_the_calibrator_is_zero_iff_probabilities_fall() -> None:
    made, data = model(AITM(FUNNEL, 3, hidden=4)), batch()
    with torch.no_grad():
        made.heads.weight.zero_()
        made.heads.bias[:3] = torch.tensor([1.0, 0.0, -1.0])
    assert float(Calibrated(FUNNEL).losses(made, data).penalties["calibrator"]) == 0
    with torch.no_grad():
        made.heads.bias[:3] = torch.tensor([1.0, 2.0, -1.0])
    rise = float(torch.sigmoid(torch.tensor(2.0)) - torch.sigmoid(torch.tensor(1.0)))
    found = Calibrated(FUNNEL, alpha=0.5).losses(made, data).penalties["calibrator"]
    assert float(found.detach()) == pytest.approx(0.5 * rise, rel=1e-5)


def test_tasks_outside_are_let_be() -> None:
    assert chains(FUNNEL)["buy"] == ("click", "cart", "buy")
    labels = {name: one for name, one in batch().labels.items() if name != "buy"}
    losses = ESMM(FUNNEL).losses(model(), Batch(batch().inputs, 40, labels))
    assert set(losses.sums) == {"click", "cart", "dwell"}
    assert set(ESMM(FUNNEL).counts(Batch(batch().inputs, 40, labels))) == set(losses.sums)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ESMM([step("a", "b"), step("b", "a")]), "form a cycle"),
        (lambda: ESMM([step("a"), step("b")]), "no task comes after another"),
        (lambda: ESMM([step("a"), step("b", "aa")]), "unknown parent task 'aa'"),
        (lambda: ESMM([Task("a", "regression"), step("b", "a")]), "a step of a funnel is binary, not regression"),
        (lambda: ESMM([step("a"), step("b"), Task("c", "binary", after=("a", "b"))]), "one parent, not 2"),
        (lambda: ESCM2(FUNNEL, risk="ipw"), "unknown risk 'ipw'; did you mean 'ips'"),  # type: ignore[arg-type]
        (lambda: ESCM2(FUNNEL, clip=0.5), "clip must be at least 1"),
        (lambda: Calibrated(FUNNEL, alpha=-1.0), "alpha must not be negative"),
        (lambda: ESCM2(FUNNEL, risk="dr").losses(model(), batch()), "needs an imputed error"),
        (lambda: AITM([step("a", "b"), step("b", "a")], 3), "form a cycle"),
    ],
)
def test_bad_input(make: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        make()


def test_a_child_cannot_happen_without_its_parent() -> None:
    everywhere = torch.arange(3)
    labels = {"click": Labels(torch.tensor([1.0, 0, 1]), everywhere), "cart": Labels(torch.tensor([1.0, 1, 0]), everywhere)}
    with pytest.raises(BadInput, match="task 'cart': is 1 in a row whose 'click' is 0"):
        ESMM(FUNNEL[:2]).counts(Batch({"x": torch.zeros(3, 3)}, 3, labels))
