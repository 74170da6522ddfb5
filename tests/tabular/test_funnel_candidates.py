"""Funnels as candidates: if these fail, a column does not hold what it says, a setting does nothing, or a bad funnel passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from pluribus import catalog
from pluribus.cli import run
from pluribus.data.prepared import Prepared, prepare
from pluribus.data.splitting import split
from pluribus.data.table import Table
from pluribus.errors import BadInput
from pluribus.modeling import Budget
from pluribus.modeling.funnels import ESCM2, Calibrated, chains, whole_way
from pluribus.sharing import MMoE, SharedBottom
from pluribus.sharing.stacked import Experts
from pluribus.study.plan import make
from pluribus.tabular.apem import APEMNetwork
from pluribus.tabular.funnel_candidates import AITMNetwork, ESCM2DRNetwork, ESCM2IPSNetwork, ESMMNetwork, Handed
from pluribus.tasks import Task

MIXTURES = ("mmoe", "cgc", "ple", "dselect_k", "adatt", "home", "imputed")
NAMES = ("esmm", "escm2_ips", "escm2_dr", "aitm")


def frame(rows: int = 1500, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 3))
    click = rng.random(rows) < 1 / (1 + np.exp(-1.5 * x[:, 0]))
    cart = click & (rng.random(rows) < 1 / (1 + np.exp(-x[:, 0] - x[:, 1])))
    buy = cart & (rng.random(rows) < 1 / (1 + np.exp(-x[:, 2])))
    return pd.DataFrame(x, columns=list("pqr")).assign(click=click * 1, cart=cart * 1, buy=buy * 1)


TASKS = [Task("click", "binary"), Task("cart", "binary", after=("click",)), Task("buy", "binary", after=("cart",))]


@pytest.fixture(scope="module")
def funnel() -> Prepared:
    table = Table(frame(), TASKS, split="random")
    return prepare(table, split(table, 0))


def whole_logits(model: Handed, inputs: Any) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = model.eval()(inputs).extra["whole"]
    return found


def test_aitm_answers_the_ratio(funnel: Prepared) -> None:
    """P(step | step before) = P(whole way) / P(whole way before), cut at 1, for any request; the first step is its own."""
    torch.manual_seed(0)
    model = Handed.of(funnel.tasks, funnel.columns, width=8, depth=1)
    with torch.no_grad():
        model.heads.bias[:] = torch.tensor([0.5, -0.5, -0.4])  # somewhere a step is likelier than the one before it
    inputs = funnel.batch(torch.arange(64), tasks=()).inputs
    p = {name: torch.sigmoid(value[:, 0].double()) for name, value in whole_logits(model, inputs).items()}
    expected = {"click": p["click"], "cart": (p["cart"] / p["click"]).clamp_max(1), "buy": (p["buy"] / p["cart"]).clamp_max(1)}
    assert float((p["buy"] > p["cart"]).double().mean()) > 0.1
    for name, value in model.predict(inputs).items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-4, atol=1e-6)
    rows = torch.tensor([5, 1, 40])
    some = model.predict(inputs, {"buy": rows, "cart": None, "click": rows})
    torch.testing.assert_close(some["buy"].double(), expected["buy"][rows], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(some["cart"].double(), expected["cart"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(some["click"].double(), expected["click"][rows], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["esmm", "escm2_dr"])
def test_any_sharing_stands_below_a_funnel(name: str, funnel: Prepared) -> None:
    """Also one without towers of its own; experts are looked at, and batch norms folded, as without a funnel."""
    for entry in catalog.entries(family="sharing"):
        fitted = make(name, {"sharing": entry.name, "width": 8, "epochs": 1}).fit(funnel, Budget(60.0), 0)
        assert not [part for part in fitted.model.modules() if isinstance(part, Experts) and part.norms is not None]
        assert ("expert_health" in fitted.record) == (entry.name in MIXTURES), entry.name


@pytest.mark.parametrize("name", ["shared_bottom_equal", "shared_bottom+nash", "esmm", "escm2_dr", "aitm"])
def test_batches_of_rows_that_weigh_0_teach_nothing(name: str) -> None:
    """Most rows weigh 0, so that some batches have nothing that counts: no step is 0/0, and the others are learnt from."""
    given = frame(600).assign(w=(np.arange(600) % 20 == 0) * 1.0)
    table = Table(given, TASKS, split="random", weight="w")
    data = prepare(table, split(table, 0))
    fitted = make(name, {"width": 8, "epochs": 2, "batch_size": 4}).fit(data, Budget(60.0), 0)
    assert np.isfinite(fitted.predict(given.head(20))[["click__p", "cart__p", "buy__p"]].to_numpy()).all()


def test_aitm_trains_the_whole_way(funnel: Prepared) -> None:
    """The objective reads logits of the whole way, not the ratios that are answered."""
    torch.manual_seed(0)
    model = Handed.of(funnel.tasks, funnel.columns, width=8, depth=1)
    batch = funnel.batch(torch.arange(200))
    losses = Calibrated(funnel.tasks, alpha=0.0).losses(model, batch)
    model.eval()
    bought = torch.from_numpy(frame()["buy"].to_numpy()[:200].astype(np.float32))
    torch.manual_seed(0)
    whole = whole_logits(model, batch.inputs)["buy"][:, 0]
    exact = torch.nn.functional.binary_cross_entropy_with_logits(whole, bought, reduction="sum")
    assert float(losses.sums["buy"].detach()) == pytest.approx(float(exact.detach()), rel=0.05)  # dropout is on in one
    assert not losses.penalties
    assert Calibrated(funnel.tasks, alpha=0.6).losses(model, batch).penalties["calibrator"] >= 0


@pytest.mark.parametrize("name", NAMES)
def test_columns_are_conditional(funnel: Prepared, name: str) -> None:
    """A step's column means P(step | step before): its mean over its own cells is their rate, and the product along the chain
    is the rate over all exposures, within what so few rows allow; P(whole way) would miss it by a factor of 2."""
    fitted = catalog.get("candidate", name).resolve()(width=16, epochs=12).fit(funnel, Budget(60.0), 0)
    rows = np.arange(funnel.n_rows)
    p = fitted.scores(funnel, rows, ["click", "cart", "buy"])
    for step in ("click", "cart", "buy"):
        cells = funnel.cells[step]
        assert p[step][cells.rows].mean() == pytest.approx(cells.values.mean(), rel=0.35), step
    assert whole_way(funnel.tasks, p)["buy"].mean() == pytest.approx(frame()["buy"].mean(), rel=0.35)


def test_whole_way_by_hand() -> None:
    p = {"buy": np.array([0.5, 0.1]), "cart": np.array([0.2, 1.0]), "click": np.array([0.5, 0.5])}
    found = whole_way(TASKS, p)
    np.testing.assert_allclose(found["buy"], [0.05, 0.05])
    np.testing.assert_allclose(found["cart"], [0.1, 0.5])
    np.testing.assert_allclose(found["click"], p["click"])
    with pytest.raises(BadInput, match="no prediction of 'cart'"):
        whole_way(TASKS, {"buy": p["buy"], "click": p["click"]})


@pytest.mark.parametrize("name", NAMES)
def test_left_out_where_there_is_no_funnel(mixed: Prepared, funnel: Prepared, name: str) -> None:
    kind = catalog.get("candidate", name).resolve()
    assert "no task comes after another" in kind().unfit(mixed)
    assert "one task alone" in kind().unfit(funnel.only(["click"]))
    assert kind().unfit(funnel) is None
    assert not catalog.get("candidate", name).default
    assert kind().estimate(funnel) > 0.5


def test_settings_reach_what_they_name(funnel: Prepared) -> None:
    objective = ESCM2IPSNetwork(lambda_c=0.3, lambda_g=0.5, clip=4.0).objective(funnel)
    assert isinstance(objective, ESCM2)
    assert (objective.risk, objective.lambda_c, objective.lambda_g, objective.clip) == ("ips", 0.3, 0.5, 4.0)
    robust = ESCM2DRNetwork().objective(funnel)
    assert isinstance(robust, ESCM2)
    assert robust.risk == "dr"
    calibrated = AITMNetwork(alpha=0.0).objective(funnel)
    assert isinstance(calibrated, Calibrated)
    assert calibrated.alpha == 0
    short = {"width": 16, "epochs": 1, "tower": 8}
    assert isinstance(ESMMNetwork(sharing="mmoe", **short).fit(funnel, Budget(60.0), 0).model.sharing, MMoE)
    inside = ESCM2DRNetwork(**short).fit(funnel, Budget(60.0), 0).model.sharing.inside
    assert isinstance(inside, SharedBottom)
    assert inside.width == 8
    with pytest.raises(BadInput, match="unknown sharing 'mmoo'; did you mean 'mmoe'"):
        ESMMNetwork(sharing="mmoo")
    with pytest.raises(BadInput, match="unknown balancer 'nosh'; did you mean 'nash'"):
        ESMMNetwork(balancer="nosh")


def test_any_balancer_hears_the_steps(funnel: Prepared) -> None:
    """A study's spelling NAME+BALANCER works for funnels, through both doors."""
    for name in ("esmm+nash", "escm2_dr+uncertainty", "aitm+upgrad"):
        candidate = make(name, {"width": 16, "epochs": 2})
        assert "," in candidate.label
        value = candidate.fit(funnel, Budget(60.0), 0).scores(funnel, np.arange(20), ["buy"])["buy"]
        assert np.isfinite(value).all()


def test_chains_refuse_what_is_no_funnel() -> None:
    by = [Task("a", "binary"), Task("b", "binary"), Task("c", "binary", after=("a", "b"))]
    with pytest.raises(BadInput, match="one parent, not 2"):
        chains(by)


def test_onnx_answers_the_conditional_step_too(funnel: Prepared, tmp_path: Path) -> None:
    """Other runtimes get the columns that a table gets, not the network's own P(whole way)."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from pluribus.tabular import export_onnx

    fitted = APEMNetwork(width=8, epochs=1, calibrator=0.6).fit(funnel, Budget(60.0), 0)
    folder = export_onnx(fitted, tmp_path / "onnx")
    inputs = funnel.batch(torch.arange(30), tasks=()).inputs
    fed = {"numeric": inputs["numeric"].numpy(), "categorical": inputs["categorical"].numpy().astype(np.int64)}
    found = onnxruntime.InferenceSession(str(folder / "model.onnx")).run(None, fed)
    for value, expected in zip(found, fitted.scores(funnel, np.arange(30), ["click", "cart", "buy"]).values()):
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6)


def test_the_public_samples_run(real_data: Callable[[str], Path]) -> None:
    """AliExpress's public sample (121 rows): too small to judge anything, but all of a funnel's ways go through."""
    folder = real_data("ads_samples")
    parts = [pd.read_csv(folder / f"aliexpress_{part}_sample.csv") for part in ("train", "test")]
    data = pd.concat(parts, ignore_index=True)
    data.loc[data.index[data["click"] == 1][:12], "conversion"] = 1  # in the sample next to nobody does
    tasks = [Task("click", "binary"), Task("conversion", "binary", after=("click",))]
    table = Table(data, tasks, split="random")
    found = prepare(table, split(table, 0))
    for name in (*NAMES, "apem"):
        fitted = catalog.get("candidate", name).resolve()(width=16, epochs=2).fit(found, Budget(60.0), 0)
        p = whole_way(found.tasks, fitted.scores(found, np.arange(found.n_rows), ["click", "conversion"]))
        assert ((p["conversion"] <= p["click"]) & (p["conversion"] >= 0)).all()


@pytest.fixture
def study(tmp_path: Path) -> Any:
    """`pluribus study` on a frame with these targets: exit code and what was printed."""

    def go(data: pd.DataFrame, targets: list[dict[str, Any]], capsys: Any, **more: Any) -> tuple[int, str]:
        data.to_csv(tmp_path / "shop.csv", index=False)
        spec = {"kind": "table", "table": str(tmp_path / "shop.csv"), "targets": targets, "split": "random"} | more
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(spec), "utf-8")
        code = run(["study", str(tmp_path / "study.yaml"), "--runs", str(tmp_path / "runs"), "--plan"])
        said = capsys.readouterr()
        return code, said.out + said.err

    return go


def step(name: str, *after: str) -> dict[str, Any]:
    return {"name": name, "kind": "binary", "after": list(after)}


def test_a_study_plans_funnels_and_says_why_not(study: Any, capsys: Any) -> None:
    chosen = ["single_networks", "esmm", "escm2_dr+nash", "aitm"]
    code, said = study(frame(), [step("click"), step("cart", "click"), step("buy", "cart")], capsys, candidates=chosen)
    assert code == 0, said
    assert all(name in said for name in chosen)
    assert "left out" not in said
    code, said = study(frame(), [step("click"), step("cart")], capsys, candidates=chosen, name="other")
    assert code == 0, said
    assert "esmm: left out, no task comes after another" in said


def test_a_study_refuses_bad_funnels(study: Any, capsys: Any) -> None:
    """Exit 2 and one line for a cycle and for a child that happened without its parent."""
    code, said = study(frame(), [step("click", "buy"), step("cart", "click"), step("buy", "cart")], capsys)
    assert code == 2
    assert "form a cycle through" in said
    data = frame()
    row = int(np.flatnonzero(data["click"] == 0)[3])
    data.loc[row, "cart"] = 1
    code, said = study(data, [step("click"), step("cart", "click"), step("buy", "cart")], capsys)
    assert code == 2
    assert f"task 'cart': is '1' in row {row + 1}, where 'click' is '0'" in said
    assert "Traceback" not in said


def test_a_study_weighs_late_labels(study: Any, capsys: Any) -> None:
    """`late: weighed` reaches the table from the study file and from `--late`; another word is one line and exit 2."""
    data = frame()
    data["day"] = pd.Timestamp("2020-01-01") + pd.to_timedelta(np.arange(len(data)) // 25, "D")
    data["wait"] = ((np.arange(len(data)) > 1300) & (data["click"] == 1) & (data["cart"] == 0)).astype(int)
    steps, roles = [step("click"), step("cart", "click")], {"delayed": {"cart": "wait"}, "ignore": ["buy"]}
    code, said = study(data, steps, capsys, candidates=["esmm"], late="weighed", **roles, split="time:day")
    assert code == 0, said
    code, said = study(data, steps, capsys, candidates=["esmm"], late="weighed", **roles)
    assert code == 2
    assert "weighed by the rows' time, which is not known" in said
    code, said = study(data, steps, capsys, candidates=["esmm"], late="weighted", **roles)
    assert code == 2
    assert "late" in said
