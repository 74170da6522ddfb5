"""Twin-Merging: exclusive parts cancel the shared model, and the factored forward is the materialised one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pluribus.errors import BadInput
from pluribus.merging.parts import FactorPart, factor_part, factored
from pluribus.merging.twin import shared_features, twin

State = dict[str, Tensor]


class Mixer(nn.Module):
    """Every kind of site: a convolution, a position, an embedding, norms, a linear, a head inside the model."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 8, 3, 2, 1), nn.GroupNorm(2, 8), nn.GELU())
        self.position = nn.Parameter(torch.randn(1, 16, 8) * 0.1)
        self.table = nn.Embedding(16, 8)
        self.norm, self.mix, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(24, 8)
        self.head = nn.Linear(8, classes)

    def features(self, x: Tensor) -> Tensor:
        h = self.stem(x).flatten(2).transpose(1, 2) + self.position + self.table(torch.arange(16)[None])
        h = h + self.out(torch.tanh(self.mix(self.norm(h))))
        return h.mean(1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.features(x))
        return out


def experts_of(model: nn.Module, tasks: str = "abc", head: str = "head") -> tuple[State, dict[str, State]]:
    generator = torch.Generator().manual_seed(4)
    base = {n: t.clone() for n, t in model.state_dict().items()}
    found = {}
    for i, task in enumerate(tasks):
        found[task] = {n: t + 0.2 * torch.randn(t.shape, generator=generator) for n, t in base.items()}
        found[task][f"{head}.weight"] = torch.randn(i + 2, 8, generator=generator)
        found[task][f"{head}.bias"] = torch.randn(i + 2, generator=generator)
    return base, found


@pytest.fixture
def bed() -> tuple[Mixer, State, dict[str, State], Tensor]:
    torch.manual_seed(0)
    model = Mixer()
    return model, *experts_of(model), torch.randn(9, 2, 8, 8)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.7])
def test_full_rank_one_hot_is_the_expert(bed: tuple[Mixer, State, dict[str, State], Tensor], alpha: float) -> None:
    """θ* cancels for any α: with everything kept, a one-hot mixture has the expert's bits."""
    _, base, experts, _ = bed
    container = twin(base, experts, rank=None, alpha=alpha, keep=["head.*"])
    for task in experts:
        mixed, state = container.mixture({task: 1.0}), container.state(task)
        for name, value in experts[task].items():
            assert torch.equal(state[name], value)
            assert name.startswith("head") or torch.equal(mixed[name], value)


def test_uniform_mixture_is_the_average(bed: tuple[Mixer, State, dict[str, State], Tensor]) -> None:
    """θ* + mean_t(θ_t − θ*) is the uniform average, whatever θ*."""
    _, base, experts, _ = bed
    mixed = twin(base, experts, rank=None, keep=["head.*"]).mixture(dict.fromkeys(experts, 1 / 3))
    for name, value in mixed.items():
        torch.testing.assert_close(value, torch.stack([e[name] for e in experts.values()]).mean(0))


def test_rank_r_error_is_the_discarded_spectrum() -> None:
    """‖Δ − U V‖² is the sum of the discarded σ²; `energy` keeps the least rank that reaches it."""
    delta = torch.randn(20, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    s = torch.linalg.svdvals(delta.flatten(1))
    for rank in (0, 1, 5, 12):
        u, v = factored(delta, rank)
        assert u.shape == (20, rank)
        torch.testing.assert_close((delta.flatten(1) - u @ v).square().sum(), s[rank:].square().sum(), atol=1e-9, rtol=1e-9)
    kept = s.square().cumsum(0) / s.square().sum()
    assert factored(delta, None, energy=float(kept[3]) - 1e-9)[0].shape[1] == 4
    assert factored(delta * 0, None, energy=0.9)[0].shape[1] == 0


def test_factors_are_kept_only_where_they_are_smaller() -> None:
    base = {"big": torch.zeros(32, 32), "small": torch.zeros(4, 4), "vector": torch.zeros(8), "same": torch.ones(3)}
    expert = {"big": torch.randn(32, 32), "small": torch.randn(4, 4), "vector": torch.ones(8), "same": torch.ones(3)}
    part = factor_part(base, expert, rank=4)
    assert set(part.factors) == {"big"}
    assert set(part.whole) == {"small", "vector"}
    assert factor_part(base, base, rank=4) == FactorPart()


@pytest.mark.parametrize("rank", [2, None])
def test_batched_forward_is_the_materialised_one(bed: tuple[Mixer, State, dict[str, State], Tensor], rank: int | None) -> None:
    """Rows of different tasks, by id and by mixture: one batched forward gives what each row's own weights give, to 1e-5."""
    model, base, experts, x = bed
    container = twin(base, experts, rank=rank, keep=["head.*"])
    served = container.serve(model, example=x)
    assert served.plan == "batched"
    tasks = [list(experts)[i % 3] for i in range(len(x))]
    routed = served(x, tasks)
    for task, rows in routed.rows.items():
        own = Mixer(len(experts[task]["head.bias"]))
        own.load_state_dict(container.state(task))
        torch.testing.assert_close(routed.outputs[task], own(x[rows]).detach(), atol=1e-5, rtol=1e-5)
    w = torch.rand(len(x), 3).softmax(1)
    routed = served(x, weights=w)
    for task, rows in routed.rows.items():
        for i, row in enumerate(rows.tolist()):
            assert int(w[row].argmax()) == list(experts).index(task)
            own = Mixer(len(experts[task]["head.bias"]))
            mixed = container.mixture(dict(zip(experts, w[row].tolist())))
            own.load_state_dict({**mixed, **container.heads[task]})
            torch.testing.assert_close(routed.outputs[task][i], own(x[row : row + 1]).detach()[0], atol=1e-5, rtol=1e-5)
    assert sorted(torch.cat(list(routed.rows.values())).tolist()) == list(range(len(x)))


def test_an_embedding_of_low_rank_is_served() -> None:
    """Tables of words are factored too, the lookup going through U."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 4))
    base = {n: t.clone() for n, t in model.state_dict().items()}
    experts = {t: {n: v + 0.1 * torch.randn_like(v) for n, v in base.items()} for t in "ab"}
    x = torch.randint(50, (6, 3))
    container = twin(base, experts, rank=2)
    assert isinstance(container.parts["a"], FactorPart)
    assert "0.weight" in container.parts["a"].factors
    served = container.serve(model, example=x)
    assert served.plan == "batched"
    out = served(x, "b").stacked()
    grouped = container.serve(model)
    assert grouped.plan == "grouped"
    torch.testing.assert_close(out, grouped(x, "b").stacked(), atol=1e-5, rtol=1e-5)


def test_unusual_modules_fall_back_to_full_weights() -> None:
    """A parameter that no hook reaches is served exactly by the grouped plan."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(5, 5))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.matrix

    model = Odd()
    base = {"matrix": model.matrix.detach().clone()}
    experts = {t: {"matrix": torch.randn(5, 5)} for t in "ab"}
    x = torch.randn(4, 5)
    served = twin(base, experts, rank=None).serve(model, example=x)
    assert served.plan == "grouped"
    out = served(x, ["a", "b", "b", "a"]).stacked()
    wanted = torch.stack([x[i] @ experts[t]["matrix"] for i, t in enumerate("abba")])
    torch.testing.assert_close(out, wanted)


def test_rows_that_are_not_separable_at_the_first_dimension_fall_back() -> None:
    """A model that puts tokens before rows would be served wrongly by the hooks: the check on the example catches it."""

    class TokensFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            mixed = self.linear(x.transpose(0, 1).reshape(-1, 4))
            return mixed.view(x.shape[1], x.shape[0], 4).transpose(0, 1).sum(1)

    model = TokensFirst()
    base = {n: t.clone() for n, t in model.state_dict().items()}
    experts = {t: {n: v + torch.randn_like(v) for n, v in base.items()} for t in "ab"}
    x = torch.randn(4, 3, 4)
    served = twin(base, experts, rank=None).serve(model, example=x)
    assert served.plan == "grouped"
    torch.testing.assert_close(served(x, "a").stacked(), twin(base, experts, rank=None).serve(model)(x, "a").stacked())


def test_router_finds_separable_tasks_and_falls_back_where_there_is_nothing_to_see() -> None:
    """Tasks whose inputs differ are told apart; tasks on the same inputs leave the router at chance, the mixture near uniform."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh())
    base = {n: t.clone() for n, t in model.state_dict().items()}
    experts = {t: {n: v + 0.1 * torch.randn_like(v) for n, v in base.items()} for t in "ab"}
    apart = {"a": torch.randn(300, 6) + 3, "b": torch.randn(300, 6) - 3}
    container = twin(base, experts, model=model, inputs=apart, epochs=40)
    served = container.serve(model, example=apart["a"][:4])
    new = torch.cat([torch.randn(50, 6) + 3, torch.randn(50, 6) - 3])
    assert float((served.route(new).argmax(1) == torch.arange(2).repeat_interleave(50)).float().mean()) > 0.95
    assert set(served(new).rows) == {"a", "b"}
    same = torch.randn(600, 6)
    container = twin(base, experts, model=model, inputs={"a": same[:300], "b": same[300:]}, epochs=40)
    shares = container.serve(model).route(torch.randn(400, 6))
    assert float((shares - 0.5).abs().mean()) < 0.25


def test_the_router_sees_the_weights_that_are_served(bed: tuple[Mixer, State, dict[str, State], Tensor]) -> None:
    """Features come from θ*, not from whatever the model held before."""
    model, base, experts, x = bed
    container = twin(base, experts, rank=2, keep=["head.*"])
    found = shared_features(container, model, {"a": x}, lambda m, v: m.features(v))["a"]
    own = Mixer()
    own.load_state_dict({**container.shared, "head.weight": base["head.weight"], "head.bias": base["head.bias"]})
    torch.testing.assert_close(found, own.features(x).detach())


def test_bad_inputs(bed: tuple[Mixer, State, dict[str, State], Tensor]) -> None:
    model, base, experts, x = bed
    with pytest.raises(BadInput, match=r"head\.weight"):
        twin(base, experts)
    with pytest.raises(BadInput, match="rank is -1"):
        twin(base, experts, rank=-1, keep=["head.*"])
    with pytest.raises(BadInput, match="energy is 2"):
        twin(base, experts, energy=2.0, keep=["head.*"])
    with pytest.raises(BadInput, match="both a model and inputs"):
        twin(base, experts, model=model, keep=["head.*"])
    with pytest.raises(BadInput, match="no expert for task 'z'"):
        twin(base, experts, model=model, inputs={"z": x}, keep=["head.*"])
    served = twin(base, experts, rank=2, keep=["head.*"]).serve(model)
    with pytest.raises(BadInput, match="no router"):
        served(x)
    with pytest.raises(BadInput, match="unknown task 'd'"):
        served(x, "d")
    with pytest.raises(BadInput, match="2 tasks for 9 rows"):
        served(x, ["a", "b"])
    with pytest.raises(BadInput, match=r"give \[9, 3\]"):
        served(x, weights=torch.ones(2, 3))
    with pytest.raises(BadInput, match="different shapes"):
        served(x, ["a", "b", "c"] * 3).stacked()
    with pytest.raises(BadInput, match="give its architecture"):
        twin(base, experts, rank=2, keep=["head.*"]).serve(nn.Linear(2, 2))
