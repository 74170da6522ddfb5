"""Rep-MTL's two terms against their definitions, written out plainly."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pluribus.balancing import EqualWeighting, RepMTL, combine
from pluribus.balancing.rep_mtl import saliency_contrast, saliency_entropy
from pluribus.errors import BadInput


def saliencies(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_entropy_lies_between_0_and_log_t() -> None:
    S = saliencies(3, 4, 5, 6)
    assert 0 < saliency_entropy(S).item() < math.log(3)
    same = saliencies(1, 4, 5, 6).expand(3, -1, -1, -1) * torch.tensor([1.0, -1.0, 1.0])[:, None, None, None]
    assert saliency_entropy(same).item() == pytest.approx(math.log(3))
    apart = torch.zeros(3, 6, 2, 1, dtype=torch.float64)
    for t in range(3):
        apart[t, 2 * t : 2 * t + 2] = 1
    assert saliency_entropy(apart).item() == pytest.approx(0, abs=1e-9)


def test_the_entropy_by_the_formula() -> None:
    S = saliencies(3, 4, 5, 6)
    total = 0.0
    for b in range(4):
        for i in range(6):
            size = [S[t, b, :, i].mean().abs().item() for t in range(3)]
            total -= sum(s / sum(size) * math.log(s / sum(size)) for s in size)
    assert saliency_entropy(S).item() == pytest.approx(total / 24)


@pytest.mark.parametrize("shape", [(3, 5, 4, 1), (2, 4, 3, 7), (3, 4, 6, 2)])
def test_the_contrast_by_the_formula(shape: tuple[int, ...]) -> None:
    """With C × C matrices formed, which the implementation avoids where they are the larger ones."""
    S, tau = saliencies(*shape), 0.3
    T, B = shape[:2]
    A = S.mean(0)
    M = [[S[t, b] @ S[t, b].T for b in range(B)] for t in range(T)]
    anchor = [A[b] @ A[b].T for b in range(B)]

    def cos(p: Tensor, q: Tensor) -> float:
        return torch.cosine_similarity(p.flatten(), q.flatten(), 0).item()

    total = 0.0
    for t in range(T):
        for b in range(B):
            below = sum(math.exp(cos(anchor[b], anchor[k]) / tau) for k in range(B) if k != b)
            total -= math.log(math.exp(cos(anchor[b], M[t][b]) / tau) / below)
    assert saliency_contrast(S, tau).item() == pytest.approx(total / (T * B))


def test_vector_features_have_squared_cosines() -> None:
    S = saliencies(1, 2, 6, 1)
    cos = torch.cosine_similarity(S[0, 0, :, 0], S[0, 1, :, 0], 0).item()
    assert saliency_contrast(S, 1.0).item() == pytest.approx(cos**2 - 1)  # −(1) + log exp(cos²)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 4)
        self.heads = nn.ModuleList([nn.Linear(4, 1), nn.Linear(4, 1)])

    def losses(self, z: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        return {str(t): scale * (torch.tanh(head(z)) - t).square().mean() for t, head in enumerate(self.heads)}


@pytest.fixture
def net() -> Net:
    torch.manual_seed(1)
    return Net().double()


X = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def test_zero_strengths_are_the_base(net: Net) -> None:
    z = net.encoder(X)
    assert RepMTL(tsr=0, csa=0)(net.losses(z), features=z).item() == 0


def test_scale_and_batch_mean_do_not_matter(net: Net) -> None:
    z = net.encoder(X)
    one = RepMTL()(net.losses(z), features=z)
    for scale in (1e-9, 1e6):
        assert RepMTL()(net.losses(z, scale), features=z).item() == pytest.approx(one.item(), rel=1e-6)


def test_the_gradient_is_right(net: Net) -> None:
    """Second derivatives through the heads: finite differences of the whole objective."""
    leaves = [p.detach().requires_grad_() for p in net.parameters()]
    names = [name for name, _ in net.named_parameters()]

    def objective(*values: Tensor) -> Tensor:
        state = dict(zip(names, values))
        z = torch.nn.functional.linear(X, state["encoder.weight"], state["encoder.bias"])
        losses = {
            str(t): (torch.tanh(torch.nn.functional.linear(z, state[f"heads.{t}.weight"], state[f"heads.{t}.bias"])) - t)
            .square()
            .mean()
            for t in range(2)
        }
        return sum(losses.values()) + RepMTL(0.5, 0.5, 0.5)(losses, features=z)

    assert torch.autograd.gradcheck(objective, leaves, atol=1e-6)


def test_it_goes_into_combine_as_extra(net: Net) -> None:
    z = net.encoder(X)
    losses = net.losses(z)
    combine(losses, EqualWeighting(), features=z, extra=RepMTL()(losses, features=z)).backward()
    found = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    z = net.encoder(X)
    losses = net.losses(z)
    (sum(losses.values()) + RepMTL()(losses, features=z)).backward()
    for p, g in zip(net.parameters(), found):
        torch.testing.assert_close(p.grad, g)


def test_a_task_without_labels_on_a_sample_takes_no_part(net: Net) -> None:
    """Adding rows that only task 0 labels changes task 1's part of the contrast through the anchors only: no NaN, no 0/0."""
    z = net.encoder(X)
    losses = {"0": (net.heads[0](z) - 1).square().mean(), "1": net.heads[1](z[:3]).square().mean()}
    penalty = RepMTL()(losses, features=z)
    penalty.backward()
    assert penalty.isfinite()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)
    S = saliencies(2, 5, 4, 1)
    S[1, 3:] = 0
    wanted = saliency_contrast(S, 0.5)
    S2 = S.clone()
    S2[0, 3:] *= 100  # the anchor there is task 0's alone: cosines do not change
    assert saliency_contrast(S2, 0.5).item() == pytest.approx(wanted.item())


def test_one_sample_and_one_task(net: Net) -> None:
    z = net.encoder(X[:1])
    assert RepMTL()(net.losses(z), features=z).isfinite()
    assert RepMTL()({"0": net.losses(z)["0"]}, features=z).item() == pytest.approx(0, abs=1e-9)


def test_tokens_and_images() -> None:
    """[B, L, C] with channels=-1 is [B, C, L] with channels=1."""
    z = torch.randn(3, 6, 4, dtype=torch.float64, requires_grad=True)
    tokens = RepMTL(channels=-1)({"a": z.square().mean(), "b": z.sin().mean()}, features=z)
    turned = z.detach().mT.contiguous().requires_grad_()
    other = RepMTL()({"a": turned.square().mean(), "b": turned.sin().mean()}, features=turned)
    assert tokens.item() == pytest.approx(other.item())


def test_bad_rep(net: Net) -> None:
    z = net.encoder(X)
    with pytest.raises(BadInput, match=r"tau"):
        RepMTL(tau=0)
    with pytest.raises(BadInput, match=r"tsr"):
        RepMTL(tsr=-1)
    with pytest.raises(BadInput, match=r"features.*'stray'"):
        RepMTL()({"stray": net.encoder(X).sum()}, features=z)
    with pytest.raises(BadInput, match=r"'a'.*no graph"):
        RepMTL()({"a": torch.ones(())}, features=z)
