"""Dynamic logits fusion: the step is the exact root, against a brute-force grid, and steers a real decoder."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pluribus.errors import BadInput
from pluribus.merging.logits_fusion import LogitsFusion, divergence, solve


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_expert_equal_to_base_changes_nothing() -> None:
    """Target 0 → α = 0 → the large model's own distribution."""
    large, small = draw(4, 9), draw(4, 9, seed=1)
    fusion = LogitsFusion()
    assert bool((fusion.weights(large, small, [small]) == 0).all())
    assert torch.equal(fusion(large, small, [small]), large)


def test_large_equal_to_small_gives_the_expert() -> None:
    """L = S and one expert → α = 1 → its distribution."""
    small, expert = draw(5, 7), draw(5, 7, seed=1)
    fusion = LogitsFusion()
    torch.testing.assert_close(fusion.weights(small, small, [expert]), torch.ones(5, 1, dtype=torch.float64))
    torch.testing.assert_close(fusion(small, small, [expert]).softmax(-1), expert.softmax(-1))


@given(st.integers(0, 2**30), st.floats(0.1, 4.0), st.sampled_from([1, 2, 3]), st.sampled_from(["divergence", "single"]))
def test_weights_match_a_grid(seed: int, scale: float, count: int, direction: str) -> None:
    """Along its direction no α of a 1e-4 grid on [0, 2] comes closer to the targets."""
    large, small = draw(11, seed=seed, scale=scale), draw(11, seed=seed + 1, scale=scale)
    experts = [small + draw(11, seed=seed + 2 + t) for t in range(count)]
    alpha = LogitsFusion(direction=direction).weights(large, small, experts)
    assert float(alpha.min()) >= 0
    assert float(alpha.max()) <= 2 + 1e-12
    targets = torch.stack([divergence(e, small) for e in experts])
    shift = torch.stack([e - small for e in experts])

    def objective(a: Tensor) -> Tensor:  # [N, T] -> [N]
        moved = large + a @ shift
        return ((divergence(moved, large.expand_as(moved))[:, None] - targets) ** 2).sum(1)

    assert float(alpha.max()) > 0
    ray = alpha / alpha.max()
    grid = torch.arange(0, 2 + 1e-9, 1e-4, dtype=torch.float64)[:, None] * ray
    assert float(objective(alpha[None])[0]) <= float(objective(grid).min()) + 1e-9


@settings(max_examples=25)  # a grid of 20,001 points each
@given(st.integers(0, 2**30), st.floats(0.1, 4.0), st.sampled_from([1, 2, 3]))
def test_symmetric_weights_match_a_grid(seed: int, scale: float, count: int) -> None:
    """With the reversed divergences no α of a 1e-4 grid comes closer to both targets; L = S and one expert is still α = 1."""
    large, small = draw(11, seed=seed, scale=scale), draw(11, seed=seed + 1, scale=scale)
    experts = [small + draw(11, seed=seed + 2 + t) for t in range(count)]
    fusion = LogitsFusion(symmetric=True)
    alpha = fusion.weights(large, small, experts)
    assert float(alpha.min()) >= 0
    assert 0 < float(alpha.max()) <= 2 + 1e-12
    shift = torch.stack([e - small for e in experts])

    def objective(a: Tensor) -> Tensor:  # [N, T] -> [N]
        moved = large + a @ shift
        still = large.expand_as(moved)
        each = [(divergence(moved, still) - divergence(e, small)) ** 2 for e in experts]
        back = [(divergence(still, moved) - divergence(small, e)) ** 2 for e in experts]
        return torch.stack([*each, *back]).sum(0)

    grid = torch.arange(0, 2 + 1e-9, 1e-4, dtype=torch.float64)[:, None] * (alpha / alpha.max())
    assert float(objective(alpha[None])[0]) <= float(objective(grid).min()) + 1e-8
    torch.testing.assert_close(fusion.weights(small, small, experts[:1]), torch.ones(1, dtype=torch.float64))
    assert float(fusion.weights(large, small, [small])) == 0
    ruled_out = experts[0].clone()
    ruled_out[3] = -torch.inf  # the reversed target is infinite: the step is the usual one
    usual = LogitsFusion().weights(large, small, [ruled_out])
    torch.testing.assert_close(fusion.weights(large, small, [ruled_out]), usual)


@given(st.integers(0, 2**30))
def test_divergence_rises_along_the_ray(seed: int) -> None:
    """f(α) = KL(P̃(α) ‖ P) is monotone, with derivative α·Var(d), checked by autograd."""
    large, d = draw(8, seed=seed), draw(8, seed=seed + 1)
    alpha = torch.linspace(0, 3, 40, dtype=torch.float64, requires_grad=True)
    moved = large + alpha[:, None] * d
    f = divergence(moved, large.expand_as(moved))
    assert bool((f.diff() > 0).all())
    (slope,) = torch.autograd.grad(f.sum(), alpha)
    p = moved.softmax(-1)
    variance = (p * (d - (p * d).sum(-1, keepdim=True)) ** 2).sum(-1)
    torch.testing.assert_close(slope, alpha.detach() * variance.detach(), atol=1e-10, rtol=1e-8)


def test_a_target_out_of_reach_ends_at_the_limit() -> None:
    large, d = torch.zeros(1, 4, dtype=torch.float64), torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64)
    reach = divergence(large + 2 * d, large)
    assert float(solve(large, d, reach * 2, 2.0)) == 2.0
    assert float(solve(large, d, reach * 0, 2.0)) == 0.0
    assert float(solve(large, d * 0, reach, 2.0)) == 2.0  # nothing to move along: harmless
    assert float(solve(large, d, reach * 0.999, 2.0)) < 2.0


def test_constants_on_logits_change_nothing() -> None:
    """Each vector of logits is known up to a constant."""
    large, small, expert = draw(3, 6), draw(3, 6, seed=1), draw(3, 6, seed=2)
    fusion = LogitsFusion()
    plain = fusion(large, small, [expert]).softmax(-1)
    shifted = fusion(large + 5, small - 3, [expert + 100]).softmax(-1)
    torch.testing.assert_close(plain, shifted)


def test_rows_are_independent_and_dtype_is_kept() -> None:
    large, small, expert = (draw(3, 5, 6, seed=s).float() for s in range(3))
    fusion = LogitsFusion()
    whole = fusion(large, small, [expert])
    assert whole.dtype == torch.float32
    assert fusion.weights(large, small, [expert]).shape == (3, 5, 1)
    torch.testing.assert_close(whole[1, 2], fusion(large[1, 2], small[1, 2], [expert[1, 2]]))


def test_tokens_ruled_out_stay_out() -> None:
    """A token of logit −inf keeps probability 0 and makes no NaN."""
    large, small, expert = draw(2, 6), draw(2, 6, seed=1), draw(2, 6, seed=2)
    large[:, 2] = small[:, 3] = expert[:, 3] = -torch.inf
    out = LogitsFusion()(large, small, [expert]).softmax(-1)
    assert bool(out.isfinite().all())
    assert bool((out[:, 2] == 0).all())


def test_bad_inputs() -> None:
    x = draw(2, 5)
    with pytest.raises(BadInput, match=r"experts\[0\].*\(2, 4\).*\(2, 5\).*one vocabulary"):
        LogitsFusion()(x, x, [x[:, :4]])
    with pytest.raises(BadInput, match="no expert"):
        LogitsFusion()(x, x, [])
    with pytest.raises(BadInput, match="small: holds NaN"):
        LogitsFusion()(x, x * torch.nan, [x])
    with pytest.raises(BadInput, match="limit"):
        LogitsFusion(limit=0)
    with pytest.raises(BadInput, match="unknown direction"):
        LogitsFusion(direction="all")


def models():  # type: ignore[no-untyped-def]
    transformers = pytest.importorskip("transformers")
    found = []
    for seed, width in ((0, 32), (1, 16), (2, 16), (3, 16)):
        torch.manual_seed(seed)
        config = transformers.GPT2Config(
            vocab_size=40,
            n_positions=64,
            n_embd=width,
            n_layer=2,
            n_head=2,
            bos_token_id=0,
            eos_token_id=None,
            initializer_range=0.4,
        )
        found.append(transformers.GPT2LMHeadModel(config).eval())
    return found


def test_decoding_with_caches_is_decoding_without() -> None:
    """`generate` with the processor gives the tokens of recomputing every model on the whole prefix, left padding included."""
    large, small, *experts = models()
    prompt = torch.tensor([[5, 7, 9, 11], [0, 0, 3, 4]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    fusion = LogitsFusion()
    processor = fusion.processor(small, experts, attention_mask=mask)
    out = large.generate(
        prompt, attention_mask=mask, max_new_tokens=6, do_sample=False, logits_processor=[processor], pad_token_id=0
    )
    assert len(processor.weights) == 6
    assert processor.weights[0].shape == (2, 2)
    ids, keep = prompt, mask
    with torch.no_grad():
        for _ in range(6):
            positions = (keep.cumsum(1) - 1).clamp(min=0)
            at = [m(input_ids=ids, attention_mask=keep, position_ids=positions).logits[:, -1] for m in (large, small, *experts)]
            new = fusion(at[0], at[1], at[2:]).argmax(-1, keepdim=True)
            ids, keep = torch.cat([ids, new], 1), torch.cat([keep, torch.ones_like(new)], 1)
    assert torch.equal(out, ids)


def test_beams_that_are_reordered_do_not_use_stale_caches() -> None:
    """With beam search rows change places between steps; the processor notices and reads the prefixes again."""
    _large, small, *experts = models()
    processor = LogitsFusion().processor(small, experts)
    ids = torch.tensor([[5, 7, 9], [1, 2, 3]])
    scores = torch.zeros(2, 40)
    processor(ids, scores)
    longer = torch.tensor([[1, 2, 3, 4], [5, 7, 9, 8]])
    found = processor(longer, scores)
    fresh = LogitsFusion().processor(small, experts)(longer, scores)
    torch.testing.assert_close(found, fresh, atol=1e-5, rtol=1e-5)
