"""Two processes (gloo, spawned): every source gives the union batch's result, with equal weights on both ranks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = '''
import os
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from pluribus.balancing import Balancer, FlatRegions, GradDrop, NashMTL, Processes, RandomLossWeighting, PCGrad, backward, combine
from pluribus.errors import BadInput, NonFinite

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
torch.set_default_dtype(torch.float64)
TASKS = ("a", "b", "c")


class Inverse(Balancer):
    needs = frozenset({"gram"})
    def compute(self, signal, tasks, losses):
        return signal.diagonal().rsqrt()


class Clip(Balancer):
    needs = frozenset({"jacobian"})
    def direction(self, jacobian, *, tasks=None, losses=None):
        return jacobian.clamp(-0.1, 0.1).sum(0)


class Scaled(Balancer):
    def compute(self, signal, tasks, losses):
        return 1 / signal


def build():
    torch.manual_seed(5)
    shared = nn.Sequential(nn.Embedding(9, 6), nn.Flatten(), nn.Linear(12, 8), nn.LayerNorm(8), nn.Tanh(),
                           nn.Unflatten(1, (2, 4)), nn.Conv1d(2, 3, 2), nn.Flatten())
    return shared, nn.ModuleDict({t: nn.Linear(9, 1) for t in TASKS})


def losses_of(shared, heads, x, cells, counts):
    """Each task's sum over its rows, divided by `counts`."""
    z = shared(x)
    return {t: (heads[t](z[r]) - 1).square().sum() / counts[t] for t, r in cells.items()}, z


generator = torch.Generator().manual_seed(1)
X = torch.randint(9, (16, 2), generator=generator)
# the union's rows of each task; rows 0-7 are rank 0's. "c" lives on rank 0 only.
UNION = {"a": torch.tensor([0, 1, 8, 9, 10]), "b": torch.tensor([2, 3, 4, 11]), "c": torch.tensor([5, 6])}
LOCAL = {t: r[(r // 8) == rank] - 8 * rank for t, r in UNION.items()}
LOCAL = {t: r for t, r in LOCAL.items() if len(r)}
COUNTS = {t: len(r) for t, r in UNION.items()}
ALONE, SUM = Processes.alone(), Processes.running(reduction="sum")


def reduce(parameters, average):
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        dist.all_reduce(p.grad)
        if average:
            p.grad /= 2


def result(mode, together, balancer):
    shared, heads = build()
    x, cells = (X, UNION) if together else (X[8 * rank:8 * rank + 8], LOCAL)
    losses, z = losses_of(shared, heads, x, cells, COUNTS)
    team = ALONE if together else SUM
    every = [*shared.parameters(), *heads.parameters()]
    if mode == "combine":
        combine(losses, balancer, features=z, processes=team).backward()
        step = balancer.last
        if not together:
            reduce(every, False)
    elif mode == "losses":
        backward(losses, balancer, features=z, processes=team)
        step = balancer.last
        if not together:
            reduce(every, False)
    else:
        cells = {t: cells[t] for t in losses}
        rows = {t: torch.zeros(len(x), dtype=torch.bool).index_fill(0, r, True) for t, r in cells.items()}
        gram = "full" if mode == "direction" else mode
        step = backward(losses, balancer, shared=shared, features=z, gram=gram, cells=rows, processes=team)
        assert step.source == gram, step.why
        if not together:
            reduce(every, False)
    flat = [torch.cat([p.grad.flatten() for p in part.parameters()]) for part in (shared, heads)]
    return step, *flat


for mode, make in [("combine", Inverse), ("combine", NashMTL), ("full", Inverse), ("grouped", Inverse),
                   ("direction", Clip), ("losses", Scaled)]:
    one, shared_one, heads_one = result(mode, True, make())
    two, shared_two, heads_two = result(mode, False, make())
    assert set(two.tasks) == set(TASKS)
    order = [two.tasks.index(t) for t in one.tasks]
    def close(x, y, what):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-10, msg=lambda m: f"{mode} {make.__name__} {what}: {m}")
    if one.gram is not None:
        close(two.gram[order][:, order], one.gram, "gram")
    if one.weights is not None:
        close(two.weights[order], one.weights, "weights")
        everyone = [torch.empty_like(two.weights) for _ in range(2)]
        dist.all_gather(everyone, two.weights)
        assert torch.equal(*everyone), "weights differ between ranks"
    close(two.losses[order], one.losses, "losses")
    close(shared_two, shared_one, "shared gradients")
    close(heads_two, heads_one, "heads")

# a rank without a single label: the other's losses are the union's, its shared part takes part with zeros
shared_one, heads_one = build()
losses, z = losses_of(shared_one, heads_one, X[:8], {"a": UNION["a"][:2], "b": UNION["b"][:3]}, {"a": 2, "b": 3})
for make in (Inverse, Scaled):
    shared, heads = build()
    mine = {"a": UNION["a"][:2], "b": UNION["b"][:3]} if rank == 0 else {}
    local, y = losses_of(shared, heads, X[8 * rank:8 * rank + 8], mine, {"a": 2, "b": 3})
    balancer, alone = make(), make()
    combine(local, balancer, features=y, processes=SUM).backward()
    reduce([*shared.parameters()], False)
    shared_one.zero_grad()
    combine(losses, alone, features=z, processes=ALONE).backward(retain_graph=True)
    torch.testing.assert_close(balancer.last.weights, alone.last.weights)
    for p, q in zip(shared.parameters(), shared_one.parameters()):
        torch.testing.assert_close(p.grad, q.grad)

# a direction from the Jacobian, one rank without a label
for mode, make in (("full", Inverse), ("full", Clip)):
    shared, heads = build()
    mine = {"a": UNION["a"][:2], "b": UNION["b"][:3]} if rank == 0 else {}
    local, y = losses_of(shared, heads, X[8 * rank:8 * rank + 8], mine, {"a": 2, "b": 3})
    backward(local, make(), shared=shared, features=y, gram="full", processes=SUM)
    reduce([*shared.parameters()], False)
    shared_one, heads_one = build()
    losses, z = losses_of(shared_one, heads_one, X[:8], {"a": UNION["a"][:2], "b": UNION["b"][:3]}, {"a": 2, "b": 3})
    backward(losses, make(), shared=shared_one, features=z, gram="full", processes=ALONE)
    for p, q in zip(shared.parameters(), shared_one.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12)

# GradDrop at the features: one draw, the votes of all rows
one, shared_one, heads_one = result("combine", True, GradDrop())
two, shared_two, heads_two = result("combine", False, GradDrop())
torch.testing.assert_close(shared_two, shared_one, rtol=1e-9, atol=1e-10)
torch.testing.assert_close(heads_two, heads_one, rtol=1e-9, atol=1e-10)


# flat regions: the union batch's perturbations and both aggregations
def flat(together, how, inner):
    shared, heads = build()
    x, cells = (X, UNION) if together else (X[8 * rank:8 * rank + 8], LOCAL)
    losses, z = losses_of(shared, heads, x, cells, COUNTS)
    balancer = FlatRegions(inner(), 0.3, how=how)
    step = backward(losses, balancer, shared=shared, features=z, processes=ALONE if together else SUM,
                    closure=lambda: losses_of(shared, heads, x, cells, COUNTS)[0])
    every = [*shared.parameters(), *heads.parameters()]
    if not together:
        reduce(every, False)
    return torch.cat([p.grad.flatten() for p in every])


for how in ("per-task", "common", "samo"):
    for inner in (Inverse, Clip):
        torch.testing.assert_close(flat(False, how, inner), flat(True, how, inner), rtol=1e-8, atol=1e-9)

# random balancers: the ranks must draw alike
for make in (RandomLossWeighting, PCGrad):
    step, _, _ = result("losses" if make is RandomLossWeighting else "combine", False, make())
    everyone = [torch.empty_like(step.weights) for _ in range(2)]
    dist.all_gather(everyone, step.weights)
    assert torch.equal(*everyone)

# DistributedDataParallel with local means: the defaults serve it
class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared, self.heads = build()
    def forward(self, x):
        z = self.shared(x)
        return {t: self.heads[t](z) for t in TASKS}, z

x = X[8 * rank:8 * rank + 8]
model = DistributedDataParallel(Whole())
for step in range(2):
    model.zero_grad()
    out, z = model(x)
    balancer = Inverse()
    combine({t: (o - 1).square().mean() for t, o in out.items()}, balancer, features=z).backward()
single = Whole()
out, z = single(X)
alone = Inverse()
combine({t: (o - 1).square().mean() for t, o in out.items()}, alone, features=z, processes=ALONE).backward()
torch.testing.assert_close(balancer.last.gram, alone.last.gram, rtol=1e-9, atol=1e-12)
for p, q in zip(model.parameters(), single.parameters()):
    torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12)

# the same where it looks for unused parameters, whose node around all outputs must be looked through; "c" is on rank 0 only
class Some(Whole):
    def forward(self, x, tasks):
        z = self.shared(x)
        return {t: self.heads[t](z) for t in tasks}, z

for mine in (TASKS, TASKS if rank == 0 else TASKS[:2]):
    some = DistributedDataParallel(Some(), find_unused_parameters=True)
    for step in range(2):
        some.zero_grad()
        out, z = some(x, mine)
        balancer = Inverse()
        combine({t: (o - 1).square().mean() for t, o in out.items()}, balancer, features=z).backward()
    single = Whole()
    out, z = single(X)
    errors = {t: (o - 1).square() for t, o in out.items()}
    everyone = [None, None]
    dist.all_gather_object(everyone, len(mine))
    wanted = {t: e.mean() if t != "c" or everyone == [3, 3] else e[:8].mean() / 2 for t, e in errors.items()}
    alone = Inverse()
    combine(wanted, alone, features=z, processes=ALONE).backward()
    torch.testing.assert_close(balancer.last.gram, alone.last.gram, rtol=1e-9, atol=1e-12)
    for p, q in zip(some.parameters(), single.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12)

# a NaN on one rank stops both, by name
out, z = single(x)
losses = {t: (o - 1).square().mean() * (float("nan") if (t, rank) == ("b", 1) else 1) for t, o in out.items()}
try:
    combine(losses, Inverse(), features=z)
    raise AssertionError("no error")
except NonFinite as error:
    assert "'b'" in str(error)

# fully sharded parameters: features serve, the full Gram is refused
try:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
except ImportError:
    fully_shard = None
if fully_shard is not None:
    trunk, heads = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 9)), build()[1]
    reference = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 9))
    torch.manual_seed(9)
    with torch.no_grad():
        for p, q in zip(trunk.parameters(), reference.parameters()):
            p.copy_(torch.randn_like(p))
            q.copy_(p)
    fully_shard(trunk, mesh=init_device_mesh("cpu", (2,)))
    rows = torch.randn(16, 6, generator=torch.Generator().manual_seed(3))
    def of(module, part):
        z = module(part)
        return {t: s * (heads[t](z) - 1).square().mean() for t, s in zip(TASKS, (1, 5, 20))}, z
    losses, z = of(trunk, rows[8 * rank:8 * rank + 8])
    balancer = Inverse()
    combine(losses, balancer, features=z).backward()
    losses, z = of(reference, rows)
    alone = Inverse()
    combine(losses, alone, features=z, processes=ALONE).backward()
    torch.testing.assert_close(balancer.last.gram, alone.last.gram, rtol=1e-9, atol=1e-12)
    for p, q in zip(trunk.parameters(), reference.parameters()):
        torch.testing.assert_close(p.grad.full_tensor(), q.grad, rtol=1e-9, atol=1e-12)
    losses, z = of(trunk, rows[8 * rank:8 * rank + 8])
    for gram in ("full", "last"):
        try:
            backward(losses, Inverse(), features=z, gram=gram)
            raise AssertionError("no error")
        except BadInput as error:
            assert "sharded" in str(error)

dist.barrier()
dist.destroy_process_group()
print("fine", flush=True)
os._exit(0)  # gloo's threads can abort a process while it ends
'''


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_give_the_union_batch_s_result(tmp_path: Path) -> None:
    """Sources, directions, losses, absent tasks, DDP, a NaN on one rank: see the worker."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER, "utf-8")
    runs = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for rank in range(2)
    ]
    said = []
    try:
        said = [run.communicate(timeout=120)[0] for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert all(run.returncode == 0 for run in runs), "\n".join(said)
    assert all("fine" in text for text in said)
