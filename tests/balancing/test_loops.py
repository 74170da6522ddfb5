"""`combine` in other people's loops: each must leave the gradients (or weights) that a plain loop leaves."""

from __future__ import annotations

import gc
import os
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pluribus.balancing import MGDA, NashMTL, combine

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
Y = torch.randn(32, 2, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """An encoder of two blocks and two heads of different loss scales; `losses` gives (losses, features)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.encoder = nn.Sequential(nn.Sequential(nn.Linear(6, 16), nn.GELU()), nn.Sequential(nn.Linear(16, 8), nn.Tanh()))
        self.heads = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)) for _ in range(2)])

    def losses(self, x: Tensor, y: Tensor, encoder: Any = None) -> tuple[dict[str, Tensor], Tensor]:
        z = (encoder or self.encoder)(x)
        return {
            n: s * (h(z)[:, 0].float() - y[:, t]).square().mean()
            for t, (n, s, h) in enumerate(zip(("seg", "depth"), (1.0, 30.0), self.heads))
        }, z


def grads(net: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in net.parameters()]


def plain(net: Net, scale: float = 1.0) -> list[Tensor]:
    """The reference: w from the features' Gram, shared part weighted, heads plain, by autograd alone."""
    losses, z = net.losses(X, Y)
    rows = torch.stack([torch.autograd.grad(l, z, retain_graph=True)[0].flatten() for l in losses.values()])
    w = MGDA().weights(rows @ rows.T)
    shared, heads = list(net.encoder.parameters()), list(net.heads.parameters())
    weighted = sum(a * l for a, l in zip(w, losses.values()))
    found = torch.autograd.grad(weighted, shared, retain_graph=True) + torch.autograd.grad(sum(losses.values()), heads)
    return [scale * g for g in found]


def assert_same(found: list[Tensor], wanted: list[Tensor], tolerance: float = 1e-5) -> None:
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool) -> None:
    """The encoder's activations are recomputed in the one pass that goes below z."""
    net = Net()
    wanted = plain(net)

    def encoder(x: Tensor) -> Tensor:
        h = x.clone().requires_grad_()
        for block in net.encoder:
            h = checkpoint(block, h, use_reentrant=reentrant)
        return h

    losses, z = net.losses(X, Y, encoder)
    combine(losses, MGDA(), features=z).backward()
    assert_same(grads(net), wanted)


def test_checkpointed_heads() -> None:
    net = Net()
    wanted = plain(net)
    z = net.encoder(X)
    outs = [checkpoint(head, z, use_reentrant=False) for head in net.heads]
    losses = {n: s * (o[:, 0] - Y[:, t]).square().mean() for t, (n, s, o) in enumerate(zip(("a", "b"), (1.0, 30.0), outs))}
    combine(losses, MGDA(), features=z).backward()
    assert_same(grads(net), wanted)


@pytest.mark.skipif(os.environ.get("PLURIBUS_NO_COMPILE") == "1", reason="no compiler asked for")
def test_a_compiled_encoder() -> None:
    net = Net()
    wanted = plain(net)
    compiled = torch.compile(net.encoder, backend="aot_eager")
    losses, z = net.losses(X, Y, compiled)
    combine(losses, MGDA(), features=z).backward()
    assert_same(grads(net), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_automatic_mixed_precision(dtype: torch.dtype) -> None:
    """Under autocast and a loss scale: near the float32 gradients, and the scaler can undo its scale."""
    net = Net()
    wanted = plain(net)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.0)
    with torch.autocast("cpu", dtype=dtype):
        losses, z = net.losses(X, Y)
    assert z.dtype == dtype
    balancer = MGDA()
    scaler.scale(combine(losses, balancer, features=z)).backward()
    assert balancer.last.gram.dtype == torch.float32
    scaler.unscale_(optimiser)
    for a, b in zip(grads(net), wanted, strict=True):
        assert torch.cosine_similarity(a.flatten(), b.flatten(), 0) > 0.98
        assert a.norm().item() == pytest.approx(b.norm().item(), rel=0.15)


class Batches(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 32

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"x": X[i], "y": Y[i]}


def loop(steps: int, accumulate: int = 1) -> list[Tensor]:
    """Plain SGD with combine, the reference for the frameworks: `steps` passes over the 32 rows in batches of 8."""
    net, balancer = Net(), NashMTL()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.01)
    batch = 0
    for _ in range(steps):
        for part in range(4):
            losses, z = net.losses(X[8 * part : 8 * part + 8], Y[8 * part : 8 * part + 8])
            (combine(losses, balancer, features=z) / accumulate).backward()
            batch += 1
            if batch % accumulate == 0:
                optimiser.step()
                optimiser.zero_grad()
    return [p.detach().clone() for p in net.parameters()]


@pytest.fixture
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.peer
def test_lightning(quiet: None, tmp_path: Path) -> None:
    """Automatic optimisation with accumulation: training_step returns what combine returns."""
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net, self.balancer = Net(), NashMTL()

        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
            losses, z = self.net.losses(batch["x"], batch["y"])
            return combine(losses, self.balancer, features=z)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    module = Module()
    trainer = lightning.Trainer(
        max_epochs=2,
        accumulate_grad_batches=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        devices=1,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, torch.utils.data.DataLoader(Batches(), batch_size=8, shuffle=False))
    assert_same([p.detach() for p in module.net.parameters()], loop(2, accumulate=2))


def test_a_loop_that_calls_a_closure() -> None:
    """What Lightning does without Lightning: the optimiser calls forward, zero_grad and backward from a closure."""
    net, balancer = Net(), NashMTL()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.01)
    for part in range(4):

        def closure(part: int = part) -> float:
            losses, z = net.losses(X[8 * part : 8 * part + 8], Y[8 * part : 8 * part + 8])
            loss = combine(losses, balancer, features=z)
            optimiser.zero_grad()
            loss.backward()
            return loss.item()

        optimiser.step(closure)
    assert_same([p.detach() for p in net.parameters()], loop(1))


@pytest.mark.peer
def test_hugging_face_trainer(quiet: None, tmp_path: Path) -> None:
    """compute_loss returns what combine returns; two accumulated micro-batches a step."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    balancer = NashMTL()

    class Trainer(transformers.Trainer):  # type: ignore[misc,name-defined]
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            losses, z = model.losses(inputs["x"], inputs["y"])
            loss = combine(losses, balancer, features=z)
            return (loss, {"z": z}) if return_outputs else loss

        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(Batches())

    net = Net()
    net.forward = lambda x, y: net.losses(x, y)  # the trainer reads the signature
    trainer = Trainer(
        model=net,
        args=transformers.TrainingArguments(
            output_dir=str(tmp_path),
            num_train_epochs=1,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2,
            learning_rate=0.01,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
            remove_unused_columns=False,
            label_names=["y"],
        ),
        train_dataset=Batches(),
        optimizers=(torch.optim.SGD(net.parameters(), lr=0.01), None),
    )
    trainer.train()
    assert trainer.evaluate(Batches())["eval_loss"] > 0  # the same compute_loss, without gradients
    assert_same([p.detach() for p in net.parameters()], loop(1, accumulate=2), 1e-4)


@pytest.mark.peer
def test_accelerate(quiet: None) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    net, balancer = Net(), NashMTL()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.01)
    data = torch.utils.data.DataLoader(Batches(), batch_size=8, shuffle=False)
    model, optimiser, data = accelerator.prepare(net, optimiser, data)
    for _ in range(2):
        for batch in data:
            with accelerator.accumulate(model):
                losses, z = accelerator.unwrap_model(model).losses(batch["x"], batch["y"])
                accelerator.backward(combine(losses, balancer, features=z))
                optimiser.step()
                optimiser.zero_grad()
    assert_same([p.detach() for p in net.parameters()], loop(2, accumulate=2))


def test_distributed_data_parallel_of_one(tmp_path: Path) -> None:
    """DDP's own hooks in one process (two processes: test_processes)."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
            z = self.net.encoder(x)
            return [head(z) for head in self.net.heads], z

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        whole = Whole()
        wanted = plain(whole.net)
        model = DistributedDataParallel(whole)
        outs, z = model(X)
        losses = {n: s * (o[:, 0] - Y[:, t]).square().mean() for t, (n, s, o) in enumerate(zip("ab", (1.0, 30.0), outs))}
        combine(losses, MGDA(), features=z).backward()
        assert_same(grads(whole.net), wanted)
        gone = weakref.ref(model)
        del model
        gc.collect()
        assert gone() is None
    finally:  # the group must not die with the model: there its thread is joined with the interpreter locked, maybe for ever
        dist.destroy_process_group()
