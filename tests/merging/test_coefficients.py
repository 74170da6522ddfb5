"""Learned coefficients: the contraction is the gradient. If these fail, every learned merger learns something else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from pluribus.errors import BadInput, NonFinite
from pluribus.files import safetensors
from pluribus.merging import coefficients as C

State = dict[str, Tensor]


def net(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def checkpoints(model: nn.Module, tasks: str = "abc", scale: float = 0.3, seed: int = 1) -> tuple[State, dict[str, State]]:
    generator = torch.Generator().manual_seed(seed)
    base = {n: t.clone() for n, t in model.state_dict().items()}

    def moved(t: Tensor) -> Tensor:
        noise = scale * torch.randn(t.shape, generator=generator).to(t.dtype)
        return t + noise if t.is_floating_point() else t.clone()

    return base, {task: {n: moved(t) for n, t in base.items()} for task in tasks}


def inputs(tasks: str = "abc", n: int = 6, dtype: torch.dtype = torch.float32) -> dict[str, list[Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return {t: [torch.randn(n, 5, generator=generator).to(dtype) for _ in range(2)] for t in tasks}


@pytest.mark.parametrize("granularity", C.GRANULARITIES)
@pytest.mark.parametrize("partitions", [1, 3])
@pytest.mark.parametrize("resident", [0, 1 << 20])
def test_contraction_is_autograd(granularity: str, partitions: int, resident: int) -> None:
    """The contracted gradient equals the one autograd takes through functional_call, to 1e-6 relative."""
    if partitions > 1 and granularity != "partition":
        pytest.skip("only partitions have parts")
    model = net(dtype=torch.float64)
    base, experts = checkpoints(model)
    vectors = C.TaskVectors(base, experts, resident_bytes=resident)
    coefficients = C.Coefficients(vectors, granularity=granularity, partitions=partitions, clamp=None)
    with torch.no_grad():
        coefficients.raw.copy_(torch.rand(coefficients.raw.shape, generator=torch.Generator().manual_seed(3)))
    batches = {t: b[0] for t, b in inputs(dtype=torch.float64).items()}
    objective = C.entropy_objective(C.forward_with())

    lam = coefficients.raw.detach().clone().requires_grad_(True)
    merged = {}
    for name, origin in base.items():
        b, taus = coefficients.block_of[name], torch.stack([experts[t][name] - origin for t in "abc"])
        ids = coefficients.parts(name, 0, origin.numel()).view(origin.shape)
        merged[name] = origin + (lam[:, b][:, ids] * taus).sum(0)
    loss = sum(C.entropy(functional_call(model, merged, (x,))) for x in batches.values())
    (wanted,) = torch.autograd.grad(loss, lam)

    coefficients.write(model)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, merged[name].detach())
    with C.workspace(model, vectors) as parameters:
        C.accumulate(model, parameters, objective, batches)
        found = coefficients.contract({n: p.grad for n, p in parameters.items()})
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-12)


def test_zero_is_the_base_and_one_hot_the_expert() -> None:
    """λ = 0 gives the base's bits, one-hot λ an expert's, in every granularity."""
    base, experts = checkpoints(net())
    for granularity in C.GRANULARITIES:
        c = C.Coefficients(C.TaskVectors(base, experts), granularity=granularity, init=0.0)
        assert all(torch.equal(t, base[n]) for n, t in c.state().items())
        hot = torch.zeros_like(c.raw)
        hot[1] = 1
        assert all(torch.equal(t, experts["b"][n]) for n, t in c.state(hot).items())


def test_clamp_acts_and_stops_the_gradient() -> None:
    """A raw value of 1.7 acts as 1 and is stuck: its gradient is 0."""
    base, experts = checkpoints(net())
    c = C.Coefficients(C.TaskVectors(base, experts), init=1.7, clamp=(0.0, 1.0))
    lam = c()
    assert bool((lam == 1).all())
    lam.sum().backward()
    assert c.raw.grad is not None
    assert bool((c.raw.grad == 0).all())


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=6))
def test_entropy_bounds(logits: list[float]) -> None:
    """0 ≤ H ≤ log C, with log C for uniform logits."""
    h = float(C.entropy(torch.tensor([logits], dtype=torch.float64)))
    count = torch.tensor(float(len(logits)), dtype=torch.float64)
    assert -1e-9 <= h <= float(count.log()) + 1e-9
    uniform = C.entropy(torch.zeros(4, len(logits), dtype=torch.float64))
    torch.testing.assert_close(uniform, count.log())


def test_linear_oracle() -> None:
    """Squared loss and a linear model: learned coefficients equal the least-squares solution of the normal equations."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(6, 2, bias=False).double()
    base, experts = checkpoints(model, tasks="abcd", scale=1.0)
    x = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    y = torch.randn(50, 2, generator=generator, dtype=torch.float64)
    columns = torch.stack([(x @ (e["weight"] - base["weight"]).T).flatten() for e in experts.values()], 1)
    wanted = torch.linalg.lstsq(columns, (y - x @ base["weight"].T).flatten()[:, None]).solution[:, 0]
    c = C.Coefficients(C.TaskVectors(base, experts), clamp=None, init=0.0)
    learned = C.fit(
        c,
        model,
        lambda m, task, batch: ((m(batch[0]) - batch[1]) ** 2).sum(),
        {"all": [(x, y)]},
        steps=700,
        optimiser=lambda p: torch.optim.Adam(p, lr=0.05),
    )
    torch.testing.assert_close(learned.coefficients[:, 0, 0], wanted, rtol=1e-4, atol=1e-5)


def test_orthogonal_inputs_want_both_experts() -> None:
    """f = Wx, two tasks on orthogonal inputs: the optimum of the labelled loss is λ = (1, 1)."""
    model = nn.Linear(4, 2, bias=False).double()
    base = {"weight": torch.zeros(2, 4, dtype=torch.float64)}
    first, second = torch.zeros(2, 2, 4, dtype=torch.float64)
    first[:, :2], second[:, 2:] = torch.tensor([[1.0, 2], [3, -1]]), torch.tensor([[2.0, 0], [1, 1]])
    x = torch.eye(4, dtype=torch.float64)
    data = {"a": [(x[:2], x[:2] @ first.T)], "b": [(x[2:], x[2:] @ second.T)]}
    c = C.Coefficients(C.TaskVectors(base, {"a": {"weight": first}, "b": {"weight": second}}), clamp=None)
    loss = lambda m, t, b: ((m(b[0]) - b[1]) ** 2).mean()  # noqa: E731
    found = C.fit(c, model, loss, data, steps=600, optimiser=lambda p: torch.optim.Adam(p, lr=0.02)).coefficients
    torch.testing.assert_close(found.flatten(), torch.ones(2, dtype=torch.float64), atol=1e-3, rtol=0)


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading in chunks of a few entries gives the merged weights and the gradient of reading whole tensors."""
    base, experts = checkpoints(net())
    found = []
    for chunk in (1 << 21, 29):
        monkeypatch.setattr(C, "CHUNK", chunk)
        c = C.Coefficients(C.TaskVectors(base, experts, resident_bytes=0), granularity="partition", partitions=2, init=0.4)
        found.append((c.state(), c.contract({n: t * 2 for n, t in base.items()})))
    assert all(torch.equal(found[0][0][n], found[1][0][n]) for n in base)
    torch.testing.assert_close(found[0][1], found[1][1])


def test_partitions_are_a_partition() -> None:
    """Every entry falls in exactly one part, all parts are used, and K = 1 is the tensor granularity."""
    base, experts = checkpoints(net())
    c = C.Coefficients(C.TaskVectors(base, experts), granularity="partition", partitions=4)
    masks = torch.stack([c.parts("0.weight", 0, 40) == k for k in range(4)])
    assert bool((masks.sum(0) == 1).all())
    assert bool(masks.any(1).all())
    one = C.Coefficients(C.TaskVectors(base, experts), granularity="partition", partitions=1, init=0.2)
    tensor = C.Coefficients(C.TaskVectors(base, experts), granularity="tensor", init=0.2)
    assert all(torch.equal(one.state()[n], tensor.state()[n]) for n in base)


def test_blocks_follow_the_layers() -> None:
    assert C.layer_of("encoder.layer.3.attention.query.weight") == "encoder.layer.3"
    assert C.layer_of("embeddings.word.weight") == "embeddings.word"
    assert C.layer_of("scale") == "scale"
    c = C.Coefficients(C.TaskVectors(*checkpoints(net())), granularity="block", block=lambda n: n.split(".")[0])
    assert c.blocks == ("0", "1", "3")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.tanh(self.first(x)))
        return out


def test_tied_tensors_merge_once() -> None:
    """Both names of a tied tensor have one coefficient and one value in the result."""
    torch.manual_seed(0)
    model = Tied()
    base, experts = checkpoints(model)
    for e in experts.values():
        e["second.weight"] = e["first.weight"]
    c = C.Coefficients(C.TaskVectors(base, experts))
    learned = C.fit(
        c,
        model,
        C.entropy_objective(C.forward_with()),
        {"a": [torch.randn(5, 4)]},
        steps=5,
        optimiser=lambda p: torch.optim.Adam(p, lr=0.05),
    )
    state = learned.state()
    assert torch.equal(state["first.weight"], state["second.weight"])
    assert not torch.equal(state["first.weight"], base["first.weight"])
    assert torch.equal(model.first.weight.data, model.second.weight.data)


def test_statistics_and_integers() -> None:
    """Running statistics move with the mean coefficient, variances stay ≥ 0, integer tensors are the base's."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    base, experts = checkpoints(model, tasks="ab")
    experts["a"]["1.running_var"] = torch.full((4,), 0.1)
    experts["b"]["1.running_var"] = torch.full((4,), 0.1)
    experts["a"]["1.num_batches_tracked"] += 7
    c = C.Coefficients(C.TaskVectors(base, experts), clamp=None, init=1.0)
    state = c.state()
    assert bool((state["1.running_var"] == 0).all())  # 1 − 2 · 0.9 would be negative
    assert int(state["1.num_batches_tracked"]) == int(base["1.num_batches_tracked"])
    c.write(model)
    assert bool((model[1].running_var >= 0).all())
    hot = torch.zeros_like(c.raw)
    hot[0] = 1
    assert torch.equal(c.state(hot)["1.running_mean"], experts["a"]["1.running_mean"])


def test_distillation_is_zero_at_the_expert() -> None:
    """KL to the expert is 0 exactly where the merged model is the expert, and positive elsewhere."""
    model, teacher = net(), net()
    base, experts = checkpoints(model, tasks="a")
    teacher.load_state_dict(experts["a"])
    objective = C.distillation_objective(C.forward_with(), lambda task, x: teacher(x), temperature=2.0)
    x = inputs("a")["a"][0]
    c = C.Coefficients(C.TaskVectors(base, experts), init=1.0)
    c.write(model, c())
    assert objective(model, "a", x).item() == pytest.approx(0, abs=1e-6)
    c.write(model, torch.zeros_like(c.raw))
    assert objective(model, "a", x).item() > 1e-4


def test_cross_entropy_reads_pairs_and_mappings() -> None:
    model = net()
    x, y = torch.randn(4, 5), torch.tensor([0, 1, 2, 0])
    objective = C.cross_entropy_objective(C.forward_with())
    wanted = nn.functional.cross_entropy(model(x), y)
    torch.testing.assert_close(objective(model, "a", (x, y)), wanted)
    torch.testing.assert_close(objective(model, "a", {"input": x, "labels": y}), wanted)
    with pytest.raises(BadInput, match="no labels"):
        objective(model, "a", x)


def test_the_best_score_is_kept() -> None:
    """With a score, the coefficients of the best evaluation are those returned, though the steps went on."""
    model = net()
    base, experts = checkpoints(model, tasks="a")
    start = C.Coefficients(C.TaskVectors(base, experts), granularity="task", init=0.5, clamp=None)
    seen: list[float] = []

    def score(m: nn.Module) -> float:
        seen.append(-abs(float((m[0].weight.detach() - base["0.weight"]).norm())))
        return seen[-1]

    learned = C.fit(
        start,
        model,
        lambda m, t, b: -sum((p - base[n]).square().sum() for n, p in m.named_parameters()),
        {"a": [0]},
        steps=6,
        optimiser=lambda p: torch.optim.SGD(p, lr=0.01),
        score=score,
        every=2,
    )
    assert seen[0] == max(seen)
    assert float(learned.coefficients.flatten()) == 0.5
    assert float((model[0].weight.detach() - base["0.weight"]).norm()) == pytest.approx(-seen[0])


def test_model_is_given_back_as_it_was() -> None:
    """Training mode and requires_grad return, no gradient is left."""
    model = net().train()
    model[3].weight.requires_grad_(False)
    base, experts = checkpoints(model)
    c = C.Coefficients(C.TaskVectors(base, experts))
    C.fit(c, model, C.entropy_objective(C.forward_with()), inputs(), steps=2, optimiser=lambda p: torch.optim.Adam(p))
    assert model.training
    assert not model[3].weight.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_bad_inputs() -> None:
    """Each wrong input is one clear line."""
    model = net()
    base, experts = checkpoints(model)
    vectors = C.TaskVectors(base, experts)
    goal = C.entropy_objective(C.forward_with())

    def fit(**changes: object) -> None:
        settings = {"steps": 1, "optimiser": lambda p: torch.optim.Adam(p)} | changes
        batches, objective = settings.pop("batches", inputs()), settings.pop("objective", goal)
        C.fit(C.Coefficients(vectors), settings.pop("model", model), objective, batches, **settings)  # type: ignore[arg-type]

    with pytest.raises(BadInput, match="no expert"):
        C.TaskVectors(base, {})
    with pytest.raises(BadInput, match="experts: is a list"):
        C.TaskVectors(base, [base])  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="optimiser: Invalid learning rate"):
        fit(optimiser=lambda p: torch.optim.Adam(p, lr=float("nan")))
    with pytest.raises(BadInput, match="task 'a': the loss is a float"):
        fit(objective=lambda model, task, batch: 1.0)
    with pytest.raises(BadInput, match=r"the loss is a tensor of shape \(2,\)"):
        fit(objective=lambda model, task, batch: torch.zeros(2, requires_grad=True))
    with pytest.raises(BadInput, match="no task's loss has a gradient"):
        fit(objective=lambda model, task, batch: goal(model, task, batch).detach())
    with pytest.raises(BadInput, match=r"0\.weight.*missing"):
        C.TaskVectors(base, {"a": {n: t for n, t in base.items() if n != "0.weight"}})
    with pytest.raises(BadInput, match=r"expert 'a'.*0\.weight.*\(2, 2\).*\(8, 5\)"):
        C.TaskVectors(base, {"a": {**base, "0.weight": torch.zeros(2, 2)}})
    with pytest.raises(BadInput, match="did you mean 'tensor'"):
        C.Coefficients(vectors, granularity="tensors")
    with pytest.raises(BadInput, match="granularity='partition'"):
        C.Coefficients(vectors, partitions=3)
    with pytest.raises(BadInput, match=r"no tensor .0\.weight"):
        fit(model=nn.Linear(2, 2))
    with pytest.raises(BadInput, match="no batches"):
        fit(batches={})
    with pytest.raises(BadInput, match="task 'a' gives no batch"):
        fit(batches={"a": []})
    with pytest.raises(BadInput, match="only once"):
        fit(batches={"a": iter([inputs()["a"][0]])}, steps=3)
    with pytest.raises(NonFinite, match="task 'b'"):
        fit(batches={"a": inputs()["a"], "b": [torch.full((2, 5), float("nan"))]})
    with pytest.raises(BadInput, match="steps"):
        fit(steps=-1)
    with pytest.raises(BadInput, match="unknown objective 'entropie'; did you mean 'entropy'"):
        C.objective_of("entropie", C.forward_with())


LEAN = """
import sys, threading, time, torch
from torch import nn
from pluribus.merging.coefficients import *
folder, tasks = sys.argv[1], 8
size = 1600
def learn(vectors, model, width):
    x = {str(t): [torch.randn(4, width)] for t in range(tasks)}
    fit(Coefficients(vectors), model, entropy_objective(forward_with()), x, steps=2, optimiser=lambda p: torch.optim.Adam(p))
small = nn.Linear(4, 4)
learn(TaskVectors(small, {str(t): small for t in range(tasks)}), small, 4)  # what the first step of a process loads
model = nn.Sequential(nn.Linear(size, size, bias=False), nn.Linear(size, size, bias=False))
one = sum(p.numel() * 4 for p in model.parameters())
def resident():
    return int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1]) * 1024
vectors = TaskVectors(f"{folder}/base.safetensors", {str(t): f"{folder}/{t}.safetensors" for t in range(tasks)}, resident_bytes=0)
start, peak, stop = resident(), [0], threading.Event()
def watch():
    while not stop.is_set():
        peak[0] = max(peak[0], resident()); time.sleep(0.002)
thread = threading.Thread(target=watch); thread.start()
learn(vectors, model, size)
stop.set(); thread.join()
print((peak[0] - start) / one)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_is_one_gradient_and_a_chunk(tmp_path: Path) -> None:
    """Eight experts on disk: beyond the model, learning holds its gradient and a chunk, far from eight models."""
    generator = torch.Generator().manual_seed(0)
    for name in ("base", *map(str, range(8))):
        tensors = {f"{i}.weight": torch.randn(1600, 1600, generator=generator) * 0.01 for i in range(2)}
        safetensors.save(tmp_path / f"{name}.safetensors", tensors)
    # glibc otherwise keeps freed layers for itself, which says nothing about what is held
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LEAN, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    models = float(done.stdout)
    # one gradient, half a model for the layer in the backward, a chunk of 8 MB; a model is 20 MB
    assert models < 2.5, f"{models:.1f} models beyond the first"
