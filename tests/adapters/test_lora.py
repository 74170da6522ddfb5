"""LoRA and what all adapters share. If these fail: weights are not given back, sites are missed, tasks disturb one another."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.adapters.conftest import Encoder, shake
from torch import nn

from pluribus.adapters import LoRA, load, route
from pluribus.adapters import lora as lora_module
from pluribus.adapters.attention import open_attention
from pluribus.adapters.sites import blocks, linears
from pluribus.errors import BadInput

X = torch.randn(4, 5, 16, generator=torch.Generator().manual_seed(3))


def test_the_update_is_low_rank_and_starts_at_zero(encoder: Encoder) -> None:
    base = encoder(X)
    lora = LoRA(encoder, ["a", "b"], rank=3, alpha=6)
    with route(["a", "b", "a", "b"]):
        torch.testing.assert_close(encoder(X), base)
    shake(lora)
    for path in lora.places:
        assert torch.linalg.matrix_rank(lora.change(path, "a")) <= 3
    stable = LoRA(nn.Linear(16, 16), ["a"], rank=4, alpha=6, rank_stabilised=True)
    assert float(stable.scale[0]) == 3.0


@pytest.mark.parametrize("where", ["all", "attention", ["linear1", "q"]])
def test_merging_is_exact_both_ways(where: Any, encoder: Encoder) -> None:
    """Merged answers equal attached ones to 1e-5; the weights come back bit for bit."""
    lora = LoRA(encoder, ["a", "b"], where=where, rank=4)
    shake(lora)
    before = {name: p.clone() for name, p in encoder.state_dict().items()}
    with route("b"):
        attached = encoder(X)
    lora.merge("b")
    assert any(not torch.equal(p, before[name]) for name, p in encoder.state_dict().items())
    torch.testing.assert_close(encoder(X), attached, rtol=1e-5, atol=1e-5)
    with pytest.raises(BadInput, match="merged already"):
        lora.merge("a")
    lora.unmerge()
    for name, p in encoder.state_dict().items():
        assert torch.equal(p, before[name]), name
    with route("b"):
        assert torch.equal(encoder(X), attached)


def test_training_takes_the_short_way_only_where_nobody_sees_the_difference(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients, down to the input's, are those of the plan `loop`; a map that trains, is listened to by others, or runs in
    another precision takes the long way."""
    calls = []
    short = lora_module.frozen_per_row
    monkeypatch.setattr(lora_module, "frozen_per_row", lambda *a, **k: calls.append(1) or short(*a, **k))
    linear = encoder.encoder.layers[0].linear1
    found = []
    for plan in (None, "loop"):
        torch.manual_seed(0)
        lora = LoRA(encoder, ["a", "b"], rank=3, plan=plan)
        shake(lora)
        x = X.clone().requires_grad_()
        with route(["b", "a", "a", "b"]):
            encoder(x).square().sum().backward()
        found.append([x.grad, *(p.grad for p in lora.parameters())])
        lora.detach()
    assert len(calls) == 4  # the linear maps of two FFNs; attention was opened
    for mine, theirs in zip(*found):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    seen: list[torch.Tensor] = []
    for change in ("trains", "listened", "autocast", "plain"):
        calls.clear()
        lora = LoRA(encoder, ["a", "b"], where="linear1", rank=3, freeze=change != "trains")
        handle = linear.register_forward_hook(lambda m, a, y: seen.append(y)) if change == "listened" else None
        with route(["b", "a", "a", "b"]), torch.autocast("cpu", torch.bfloat16, enabled=change == "autocast"):
            encoder(X).square().sum().backward()
        assert len(calls) == {"trains": 0, "listened": 1, "autocast": 0, "plain": 2}[change], change
        if handle is not None:
            handle.remove()
        lora.detach()
    assert linear.weight.grad is not None


def test_torchs_fused_paths_do_not_skip_the_adapters(encoder: Encoder) -> None:
    """In evaluation nn.TransformerEncoder takes a fused path, and nested tensors with a padding mask; detached, it does again."""
    mask = torch.zeros(4, 5, dtype=torch.bool)
    mask[:, 3:] = True
    lora = LoRA(encoder, ["a"], where=["linear2", "v"], rank=2)
    shake(lora)
    with torch.no_grad(), route("a"):
        inference = encoder(X, mask)
    encoder.train()
    with route("a"):
        training = encoder(X, mask)
    encoder.eval()
    torch.testing.assert_close(inference[:, :3], training[:, :3], rtol=1e-4, atol=1e-5)
    lora.detach()
    assert encoder.encoder.use_nested_tensor
    assert encoder.encoder.layers[0].activation_relu_or_gelu == 1
    assert type(encoder.encoder.layers[0].self_attn) is nn.MultiheadAttention


@pytest.mark.parametrize("batch_first", [True, False])
def test_opened_attention_computes_the_same(batch_first: bool) -> None:
    """Against nn.MultiheadAttention itself: masks of all kinds, weights, other key widths, both layouts."""
    torch.manual_seed(0)
    x = torch.randn(3, 5, 16)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    causal = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
    for settings in ({}, {"bias": False}, {"kdim": 6, "vdim": 7}):
        mha: Any = nn.MultiheadAttention(16, 4, batch_first=batch_first, **settings).eval()
        key, value = (torch.randn(3, 5, mha.kdim), torch.randn(3, 5, mha.vdim)) if "kdim" in settings else (x, x)
        holder = nn.ModuleDict({"attention": mha})
        for mask, pad in ((None, None), (causal, padding), (torch.randn(12, 5, 5), None), (None, padding.float() * -9)):
            inputs = [t if batch_first else t.transpose(0, 1) for t in (x, key, value)]
            wanted = mha(*inputs, attn_mask=mask, key_padding_mask=pad)
            lora = LoRA(holder, ["a"], where=["q", "k", "v", "out_proj"], rank=2)
            with route("a"):
                got = holder["attention"](*inputs, attn_mask=mask, key_padding_mask=pad)
                fast = holder["attention"](*inputs, attn_mask=mask, key_padding_mask=pad, need_weights=False)
            lora.detach()
            for a, b in zip((*got, fast[0]), (*wanted, wanted[0])):
                torch.testing.assert_close(a, b)
            assert holder["attention"] is mha


@pytest.mark.parametrize("batch_first", [True, False])
def test_opened_attention_returns_the_weights_of_the_given_keys(batch_first: bool) -> None:
    """With keys in front (a prefix), what is returned goes by the given keys: the plain weights, less what the prefix took."""
    torch.manual_seed(0)
    holder = nn.ModuleDict({"attention": nn.MultiheadAttention(16, 4, batch_first=batch_first).eval()})
    x = torch.randn(3, 5, 16) if batch_first else torch.randn(5, 3, 16)
    plain = holder["attention"](x, x, x, average_attn_weights=False)[1]
    opened = open_attention(holder, "attention")
    front = torch.randn(2, 3, 2, 16)
    opened.extras.append(lambda key: (front[0], front[1]))
    weights = holder["attention"](x, x, x, average_attn_weights=False)[1]
    assert weights.shape == (3, 4, 5, 5)
    left = weights.sum(-1, keepdim=True)
    assert bool((left < 1).all())
    torch.testing.assert_close(weights / left, plain)


def test_sequence_first_models(encoder: Encoder) -> None:
    """batch_first=False: the rows are the second dimension."""
    torch.manual_seed(0)
    other = Encoder(batch_first=False).eval()
    other.load_state_dict(encoder.state_dict())
    outs = []
    for model, x in ((encoder, X), (other, X.transpose(0, 1))):
        torch.manual_seed(1)
        lora = LoRA(model, ["a", "b"], rank=4)
        shake(lora)
        with torch.no_grad(), route(["a", "b", "b", "a"]):
            outs.append(model(x))
    torch.testing.assert_close(outs[0], outs[1].transpose(0, 1))


def test_two_adapters_share_a_model_and_leave_it_as_it_was(encoder: Encoder) -> None:
    before = {name: p.clone() for name, p in encoder.state_dict().items()}
    flags = [p.requires_grad for p in encoder.parameters()]
    with torch.no_grad():
        plain = encoder(X)
    one, two = LoRA(encoder, ["a"], rank=2), LoRA(encoder, ["a"], where="ffn", rank=3)
    assert not any(p.requires_grad for p in encoder.parameters())
    assert list(encoder.state_dict()) == list(before)
    one.detach()
    assert not any(p.requires_grad for p in encoder.parameters())
    two.detach()
    assert [p.requires_grad for p in encoder.parameters()] == flags
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in encoder.modules())
    assert all(torch.equal(p, before[name]) for name, p in encoder.state_dict().items())
    with torch.no_grad():
        assert torch.equal(encoder(X), plain)


def test_slots_come_and_go(encoder: Encoder) -> None:
    """Adding in free room keeps the parameter objects; a full bank doubles; an evicted task is unknown; others are untouched."""
    lora = LoRA(encoder, ["a", "b"], rank=2)
    shake(lora)
    state = lora.task_state("a")
    lora.add("c", state)  # doubles: 2 → 4
    assert lora.capacity == 4
    objects = list(lora.parameters())
    lora.add("d")
    assert all(p is q for p, q in zip(objects, lora.parameters()))
    with torch.no_grad():
        with route(["a", "c"]):
            first, second = encoder(X[:1].expand(2, -1, -1))
        torch.testing.assert_close(first, second)
        lora.evict("a")
        with pytest.raises(BadInput, match="unknown task 'a'"), route("a"):
            encoder(X)
        lora.add("e", state)
        with route("e"):
            torch.testing.assert_close(encoder(X[:1])[0], first)
    with pytest.raises(BadInput, match="is there already"):
        lora.add("b")
    with pytest.raises(BadInput, match="lacks the tensor"):
        lora.add("f", {})
    assert "f" not in lora.slots
    assert lora.slices("e")["sites.encoder/layers/0/linear1.A"] == slice(0, 1)


def test_copies_are_whole(encoder: Encoder) -> None:
    """A deep copy of a module that holds model and adapters works alone: its hooks read the copy's parameters."""
    both = nn.ModuleDict({"model": encoder, "adapters": LoRA(encoder, ["a"], rank=2)})
    twin = copy.deepcopy(both)
    shake(twin["adapters"])
    with torch.no_grad(), route("a"):
        assert not torch.allclose(twin["model"](X), encoder(X))
        again = LoRA(Encoder().eval(), ["a"], rank=2)
        again.model.load_state_dict(encoder.state_dict())
        again.load_tensors(twin["adapters"].state_dict(), "state")
        torch.testing.assert_close(again.model(X), twin["model"](X))


def test_saved_and_loaded(encoder: Encoder, tmp_path: Path) -> None:
    lora = LoRA(encoder, ["a", "b", "c"], where=["q", "linear1"], rank=2)
    shake(lora)
    lora.evict("b")  # slots are written without holes
    with torch.no_grad(), route(["a", "c"]):
        wanted = encoder(X[:2])
    lora.save(tmp_path / "a")
    lora.detach()
    again = load(encoder, tmp_path / "a")
    assert again.tasks == ("a", "c")
    with torch.no_grad(), route(["a", "c"]):
        torch.testing.assert_close(encoder(X[:2]), wanted)  # fewer slots may take another plan
    again.detach()
    torch.manual_seed(5)
    with pytest.raises(BadInput, match=r"the weights at .* differ"):
        load(Encoder().eval(), tmp_path / "a")
    with pytest.raises(BadInput, match="matches no linear map"):
        load(nn.Sequential(nn.Linear(3, 3)), tmp_path / "a")
    with pytest.raises(BadInput, match="no such description"):
        load(encoder, tmp_path)
    assert not any(m._forward_hooks for m in encoder.modules())


def test_bad_sites(encoder: Encoder) -> None:
    with pytest.raises(BadInput, match=r"'linaer1' matches no linear map of the model; nearest: linear1"):
        LoRA(encoder, ["a"], where="linaer1")
    with pytest.raises(BadInput, match=r"more than the rank of .* choose at most 16"):
        LoRA(encoder, ["a"], rank=17)
    with pytest.raises(BadInput, match="choose at least 1"):
        LoRA(encoder, ["a"], rank=0)
    for tasks in ("a", [], ["a", "a"]):
        with pytest.raises(BadInput, match="different names of at least one task"):
            LoRA(encoder, tasks)


def test_any_module_has_linear_sites() -> None:
    """Without known blocks "all" is every linear map; globs and whole paths work; two-dimensional inputs too."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    assert [s.path for s in linears(model, "all")] == ["0", "2"]
    assert [s.path for s in linears(model, "[12]")] == ["2"]
    lora = LoRA(model, ["a", "b"], rank=2)
    shake(lora)
    x = torch.randn(3, 8)
    with route(["a", "b", "a"]):
        mixed = model(x)
    with route("b"):
        torch.testing.assert_close(model(x)[1], mixed[1])


FAMILIES: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "bert": ("Bert", "bert", {}, 6),
    "roberta": ("Roberta", "bert", {}, 6),
    "distilbert": ("DistilBert", "distilbert", {"dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 32}, 6),
    "gpt2": ("GPT2", "gpt2", {"n_embd": 16, "n_layer": 2, "n_head": 4}, 4),
    "llama": ("Llama", "llama", {"num_key_value_heads": 2}, 7),
    "t5": ("T5Encoder", "t5", {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4}, 6),
    "vit": ("ViT", "vit", {"image_size": 8, "patch_size": 4}, 6),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_block_map_knows_the_family(name: str) -> None:
    """Each family's blocks with all their linear maps; a mixed batch through all of them is each row alone."""
    transformers = pytest.importorskip("transformers")
    kind, family, settings, count = FAMILIES[name]
    torch.manual_seed(0)
    config = (
        getattr(transformers, f"{kind.removesuffix('Encoder')}Config")(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=32,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
        if not settings or name in ("llama", "vit")
        else getattr(transformers, f"{kind.removesuffix('Encoder')}Config")(
            vocab_size=40, bos_token_id=1, eos_token_id=2, pad_token_id=0, **settings
        )
    )
    for key, value in settings.items():
        setattr(config, key, value)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    found = blocks(model)
    assert [block.family for block in found] == [family] * 2
    lora = LoRA(model, ["a", "b"], rank=2)
    assert len(lora.places) == 2 * count
    shake(lora)
    x = torch.randn(2, 3, 8, 8) if name == "vit" else torch.arange(3, 15).view(2, 6)
    with torch.no_grad():
        with route(["a", "b"]):
            mixed = model(x).last_hidden_state
        for i, task in enumerate("ab"):
            with route(task):
                torch.testing.assert_close(model(x[i : i + 1]).last_hidden_state[0], mixed[i], rtol=1e-4, atol=1e-5)


def test_checkpointing_of_transformers(bert: Callable[..., Any]) -> None:
    """Their own switch, both kinds: the gradients are those without it."""
    found = []
    for how in (None, False, True):
        model = bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
        if how is not None:
            model.gradient_checkpointing_enable({"use_reentrant": how})
        if how:
            model.enable_input_require_grads()
        lora = LoRA(model, ["a", "b"], where="attention", rank=2)
        shake(lora)
        with route(["a", "b"]):
            out = model(torch.arange(12).view(2, 6)).last_hidden_state
        out.square().sum().backward()
        found.append([p.grad for p in lora.parameters()])
    for other in found[1:]:
        for a, b in zip(found[0], other):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
