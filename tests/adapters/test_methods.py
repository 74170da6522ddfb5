"""Every method against its paper's formula, a degenerate case or a peer. If one fails, it is another method under that name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from tests.adapters.conftest import Encoder, shake
from torch import Tensor, nn

from pluribus.adapters import (
    IA3,
    MHR,
    AdapterFusion,
    BitFit,
    Bottleneck,
    Compacter,
    HyperFormer,
    LoRA,
    LoRAHub,
    MHRmu,
    MHRz,
    MixLoRA,
    Poly,
    PrefixTuning,
    PromptTuning,
    ScaLearn,
    ScaLearnPP,
    ScaLearnUniform,
    ScaLearnUniformPP,
    SMoRA,
    route,
)
from pluribus.errors import BadInput

X = torch.randn(4, 5, 16, generator=torch.Generator().manual_seed(3))
IDS = torch.arange(24).view(4, 6)
ROWS = ["a", "b", "b", "a"]
FC2 = "encoder/layers/0/linear2"


def answers(model: nn.Module, rows: Any, x: Tensor = X) -> Tensor:
    with torch.no_grad(), route(rows):
        out = model(x)
    return out if isinstance(out, Tensor) else out.last_hidden_state


def linear(width: int = 16, out: int = 12) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, out))


def count(adapters: nn.Module) -> int:
    return sum(p.numel() for p in adapters.parameters() if p.requires_grad)


# -- bottleneck and its kin ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("placement", "where"), [("pfeiffer", ["linear2"]), ("houlsby", ["linear2", "self_attn.out_proj"])])
def test_bottleneck_by_hand(placement: str, where: list[str], encoder: Encoder) -> None:
    """h + s (U act(D h + b_D) + b_U) on a model whose maps are replaced by hand."""
    adapters = Bottleneck(encoder, ["a", "b"], placement=placement, reduction=4, scale=0.5, act="gelu")
    shake(adapters)
    got = answers(encoder, "b")
    adapters.detach()
    handles = []
    for i in range(2):
        for name in where:
            p: Any = adapters.sites[f"encoder/layers/{i}/{name}".replace(".", "/")]

            def add(module: Any, args: Any, y: Tensor, p: Any = p) -> Tensor:
                return y + 0.5 * (F.gelu(y @ p.D[1].T + p.b_D[1]) @ p.U[1].T + p.b_U[1])

            handles.append(encoder.get_submodule(f"encoder.layers.{i}.{name}").register_forward_hook(add))
    if placement == "houlsby":  # torch's attention does not call out_proj: let it
        keep = LoRA(encoder, ["x"], where="out_proj", rank=1)
        with torch.no_grad(), route("x"):
            torch.testing.assert_close(encoder(X), got, rtol=1e-4, atol=1e-5)
        keep.detach()
    else:
        with torch.no_grad():
            torch.testing.assert_close(encoder(X), got, rtol=1e-4, atol=1e-5)
    for handle in handles:
        handle.remove()


def test_parallel_reads_the_input_of_the_ffn(encoder: Encoder) -> None:
    """At layer 0, with the second layer's adapter silent: the output moves by LN of what D and U make of the FFN's input."""
    adapters = Bottleneck(encoder, ["a"], placement="parallel", reduction=4, scale=4.0)
    shake(adapters)
    layer: Any = encoder.encoder.layers[0]
    p: Any = adapters.sites[FC2]
    with torch.no_grad(), route("a"):
        got = layer(X)
        inside = layer.norm1(X + layer._sa_block(X, None, None))
        ffn = layer.linear2.weight @ F.relu(layer.linear1(inside)).transpose(1, 2) + layer.linear2.bias[:, None]
        more = 4 * (F.relu(inside @ p.D[0].T + p.b_D[0]) @ p.U[0].T + p.b_U[0])
        torch.testing.assert_close(got, layer.norm2(inside + ffn.transpose(1, 2) + more), rtol=1e-4, atol=1e-5)


def test_compacter_is_a_sum_of_kronecker_products() -> None:
    """Oracle: the matrix written out with torch.kron."""
    from pluribus.adapters.compacter import kronecker_product

    torch.manual_seed(0)
    x, K, s, t = torch.randn(2, 3, 8), torch.randn(2, 4, 4, 4), torch.randn(2, 4, 2), torch.randn(2, 4, 3)
    for b in range(2):
        matrix = sum(torch.kron(K[b, i], torch.outer(s[b, i], t[b, i])) for i in range(4))
        torch.testing.assert_close(kronecker_product(x, K, s, t)[b], x[b] @ matrix, rtol=1e-4, atol=1e-4)
    with pytest.raises(BadInput, match="does not divide"):
        Compacter(Encoder(), ["a"], n=3)


def test_hyperformer_emits_plain_adapters(encoder: Encoder) -> None:
    """Oracle: the emitted matrices, used by hand at one place; a task's own parameters are its embedding alone."""
    adapters = HyperFormer(encoder, ["a", "b"], placement="pfeiffer", reduction=4, embedding=6)
    shake(adapters)
    assert set(adapters.slices("a")) == {"sites.task.z"}
    path = "encoder.layers.1.linear2"
    D, U, gamma, beta = (t[0] for t in adapters.emitted(path, torch.tensor([1])))
    h = torch.randn(4, 5, 32)
    with torch.no_grad(), route("b"):
        got = encoder.get_submodule(path)(h)
        adapters.detach()
        y = encoder.get_submodule(path)(h)
        wanted = y + F.layer_norm(F.gelu(y @ D.T) @ U.T, (16,)) * gamma + beta
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


# -- compositions ----------------------------------------------------------------------------------------------------------


def sources(encoder: Encoder, names: list[str], **settings: Any) -> Bottleneck:
    made = Bottleneck(encoder, names, reduction=4, **settings)
    shake(made)
    return made


def set_all(adapters: Any, values: Tensor | float) -> None:
    with torch.no_grad():
        for site in adapters.sites.values():
            site.omega.copy_(torch.as_tensor(values).expand_as(site.omega))


@pytest.mark.parametrize("kind", [ScaLearn, ScaLearnUniform, ScaLearnPP, ScaLearnUniformPP])
def test_scalearn_with_one_source_and_omega_one_is_the_source(kind: Any, encoder: Encoder) -> None:
    made = sources(encoder, ["s"], scale=0.5)
    wanted = answers(encoder, "s")
    with torch.no_grad():
        made.detach()
        base = encoder(X)
        made.attach()
    target = kind(encoder, ["t"], sources=made, dropout=0.0)
    set_all(target, 1.0)
    torch.testing.assert_close(answers(encoder, "t"), wanted, rtol=1e-5, atol=1e-5)
    set_all(target, 0.0)
    torch.testing.assert_close(answers(encoder, "t"), base, rtol=1e-5, atol=1e-5)
    with route("t"):
        encoder(X).sum().backward()
    assert all(p.grad is None for p in target.sources.parameters())
    assert all(site.omega.grad is not None for site in target.sites.values())


def test_scalearn_sums_the_sources_outputs(encoder: Encoder) -> None:
    """Oracle: Σ_s ω_s ⊙ up_s(h) at one place; Uniform is ScaLearn with ω constant over d; ++ is ScaLearn with tied layers."""
    made = sources(encoder, ["s0", "s1", "s2"], scale=0.5)
    target = ScaLearn(encoder, ["t", "u"], sources=made)
    shake(target.sites)
    path, h = "encoder.layers.0.linear2", torch.randn(4, 5, 32)
    p: Any = made.sites[FC2]
    with torch.no_grad(), route("u"):
        got = encoder.get_submodule(path)(h)
        target.detach()
        y = encoder.get_submodule(path)(h)
    omega: Any = target.sites[FC2].omega[1]
    wanted = y + sum(omega[s] * 0.5 * (F.relu(y @ p.D[s].T + p.b_D[s]) @ p.U[s].T + p.b_U[s]) for s in range(3))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    outs = []
    for kind in (ScaLearn, ScaLearnUniform, ScaLearnPP, ScaLearnUniformPP):
        other = kind(encoder, ["t"], sources=made)
        set_all(other, torch.tensor([0.5, -1.0, 2.0])[:, None])
        outs.append(answers(encoder, "t"))
        other.detach()
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0])


def test_scalearn_counts_of_the_paper() -> None:
    """S = 8, L = 12, d = 768: 73,728, 96, 6,144 and 8 (here scaled: L = 2, d = 16, S = 8)."""
    for kind, wanted in ((ScaLearn, 2 * 8 * 16), (ScaLearnUniform, 2 * 8), (ScaLearnPP, 8 * 16), (ScaLearnUniformPP, 8)):
        encoder = Encoder().eval()
        target = kind(encoder, ["t"], sources=sources(encoder, [f"s{i}" for i in range(8)]))
        assert count(target) == wanted
        for site in target.sites.values():  # ω starts around c/S, so that the sources' sum is c times their mean
            torch.testing.assert_close(site.omega.mean().item(), 2 / 8, atol=2e-3, rtol=0.0)  # type: ignore[union-attr, operator]
    assert (12 * 8 * 768, 12 * 8, 8 * 768) == (73_728, 96, 6_144)


def test_scalearns_penalty_is_a_mean_over_sources(encoder: Encoder) -> None:
    """λ/S Σ_s (1 − mean ω_s)²: with every ω at 3 it is 4 λ a place, however many sources there are."""
    target = ScaLearn(encoder, ["t"], sources=sources(encoder, ["s", "u", "v"]), penalty=0.5)
    with torch.no_grad():
        for site in target.sites.values():
            site.omega.fill_(3.0)  # type: ignore[union-attr, operator]
    with route("t") as r:
        encoder(X)
    torch.testing.assert_close(float(torch.as_tensor(r.penalty()).detach()), 0.5 * 4.0 * len(target.sites))


def test_hyperformers_layer_embedding_is_that_of_its_layer(encoder: Encoder) -> None:
    """Both places of a block hear its layer's embedding, and no other's."""
    adapters = HyperFormer(encoder, ["a"])
    slot = torch.tensor([0])
    before = {path: adapters.emitted(path, slot)[0] for path in adapters.places}
    with torch.no_grad():
        adapters.place[0] += 1
    moved = [path for path, D in before.items() if not torch.equal(D, adapters.emitted(path, slot)[0])]
    assert len(moved) == 2
    assert all(".layers.0." in f".{path}" for path in moved)


def test_scalearn_uniform_reaches_least_squares() -> None:
    """Linear adapters on one layer with frozen inputs: training ω ends at the normal equations' solution."""
    torch.manual_seed(0)

    class Block(nn.Module):  # the FFN is what the block map needs; its output is all that is looked at
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=True)

        def forward(self, h: Tensor) -> Tensor:
            out: Tensor = self.encoder.linear2(h)
            return out

    model = Block().eval()
    made = Bottleneck(model, ["s0", "s1", "s2"], reduction=4, act="identity")
    shake(made)
    h, wanted = torch.randn(64, 1, 32), torch.randn(64, 1, 16)
    ups = []
    with torch.no_grad():
        for s in ("s0", "s1", "s2"):
            with route(s):
                ups.append(model(h))
        made.detach()
        y = model(h)
    columns = torch.stack([(up - y).flatten() for up in ups], 1)
    best = torch.linalg.lstsq(columns, (wanted - y).flatten()[:, None]).solution[:, 0]
    target = ScaLearnUniform(model, ["t"], sources=made, dropout=0.0)
    optimiser = torch.optim.LBFGS(target.sites.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        with route("t"):
            loss = (model(h) - wanted).square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    (site,) = target.sites.values()
    torch.testing.assert_close(site.omega[0, :, 0], best, rtol=1e-3, atol=1e-4)  # type: ignore[index]


def test_scalearn_drops_entries_of_omega_and_penalises(encoder: Encoder) -> None:
    """One mask for all rows and tokens, scaled by 1/(1-p); λ/S Σ_s (1 − mean_d ω_s)²."""
    made = sources(encoder, ["s0", "s1"])
    target = ScaLearn(encoder, ["t"], sources=made, dropout=0.5, penalty=0.1)
    encoder.train()
    x = X[:1].expand(4, -1, -1)
    with route("t") as r:
        out = encoder(x)
    torch.testing.assert_close(out, out[:1].expand_as(out))
    sites = [site.omega[0] for site in target.sites.values()]
    wanted = sum(0.1 / 2 * (1 - omega.mean(1)).square().sum() for omega in sites)
    torch.testing.assert_close(r.penalty(), wanted)


def test_adapterfusion_with_equal_keys_is_the_mean(encoder: Encoder) -> None:
    """K = 0 and V = I: the mean of the sources' outputs. V alone at its start: a small penalty, none at the identity."""
    made = sources(encoder, ["s0", "s1"])
    mean = ScaLearnUniform(encoder, ["t"], sources=made, dropout=0.0)
    set_all(mean, 0.5)
    wanted = answers(encoder, "t")
    mean.detach()
    fusion = AdapterFusion(encoder, ["t"], sources=made)
    with torch.no_grad():
        for site in fusion.sites.values():
            site.K.zero_(), site.V[0].copy_(torch.eye(16))  # type: ignore[operator, union-attr, index]
    with torch.no_grad(), route("t") as r:
        torch.testing.assert_close(encoder(X), wanted, rtol=1e-4, atol=1e-5)
    assert float(r.penalty()) == 0.0
    fusion.detach()
    torch.testing.assert_close(float(count(AdapterFusion(encoder, ["t"], sources=made))), float(2 * (3 * 16 * 16 + 2 * 16)))


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_adapterfusion_by_hand(encoder: Encoder, scale: float) -> None:
    """The scale of the sources holds for their whole output, bias and all."""
    made = sources(encoder, ["s0", "s1", "s2"])
    made.scale = scale
    fusion = AdapterFusion(encoder, ["t", "u"], sources=made, temperature=2.0)
    shake(fusion.sites)
    path, h = "encoder.layers.0.linear2", torch.randn(4, 5, 32)
    p: Any = made.sites[FC2]
    f: Any = fusion.sites[FC2]
    with torch.no_grad(), route("u"):
        got = encoder.get_submodule(path)(h)
        fusion.detach()
        y = encoder.get_submodule(path)(h)
    o = scale * torch.stack([F.relu(y @ p.D[s].T + p.b_D[s]) @ p.U[s].T + p.b_U[s] for s in range(3)], 2)
    q, k, v = y @ f.Q[1].T + f.b_q[1], o @ f.K[1].T + f.b_k[1], o @ f.V[1].T
    weights = ((q[:, :, None] * k).sum(-1) / 2).softmax(-1)
    torch.testing.assert_close(got, y + (weights[..., None] * v).sum(2), rtol=1e-4, atol=1e-4)


def test_compositions_say_what_they_need(encoder: Encoder) -> None:
    with pytest.raises(BadInput, match="are not bottleneck adapters of this model"):
        ScaLearn(encoder, ["t"], sources=sources(Encoder(), ["s"]))


# -- vectors ---------------------------------------------------------------------------------------------------------------


def test_ia3_equals_peft(bert: Callable[..., Any]) -> None:
    peft = pytest.importorskip("peft")
    config = peft.IA3Config(target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"])
    config.target_modules = r".*(key|value|layer\.\d+\.output\.dense)"
    config.feedforward_modules = r".*layer\.\d+\.output\.dense"
    theirs = peft.get_peft_model(bert(), config).eval()
    model = bert()
    ours = IA3(model, ["x", "a"])
    torch.manual_seed(2)
    modules = dict(theirs.base_model.model.named_modules())
    with torch.no_grad():
        for p in ours.parameters():
            p.copy_(1 + 0.3 * torch.randn_like(p))
        for path in ours.places:
            modules[path].ia3_l["default"].copy_(ours.site(path).l[1][:, None])
        for path in ours.inner:
            modules[path].ia3_l["default"].copy_(ours.sites[f"{path.replace('.', '/')} (input)"].l[1][None])  # type: ignore[index]
        assert sum("ia3_l" in n for n, _ in theirs.named_parameters()) == len(ours.sites) == 6
        torch.testing.assert_close(answers(model, "a", IDS), theirs(IDS).last_hidden_state, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [IA3, BitFit, Poly, MHR, MHRmu])
def test_weights_with_a_task_inside_answer_as_the_hooks_did(kind: Any, bert: Callable[..., Any]) -> None:
    """Every change of weights merges exactly, biases included, and comes out bit for bit."""
    model = bert(double=True)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    adapters = kind(model, ["a", "b"], **({"heads": 4} if kind is MHR else {}))
    shake(adapters)
    for task in "ab":
        wanted = answers(model, task, IDS)
        adapters.merge(task)
        with torch.no_grad():
            torch.testing.assert_close(model(IDS).last_hidden_state, wanted, rtol=1e-9, atol=1e-9)
        adapters.unmerge()
        assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_bitfit_knows_rows_behind_blocks_that_hold_them_second() -> None:
    """A norm after the blocks of a model with its batch in the second dimension: its rows are found there, too."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=False)
    model = nn.TransformerEncoder(layer, 1, norm=nn.LayerNorm(8), enable_nested_tensor=False).eval()
    adapters = BitFit(model, ["a", "b"])
    shake(adapters)
    x = torch.randn(3, 2, 8)  # as many tokens as no row count
    with torch.no_grad():
        with route(["a", "b"]):
            mixed = model(x)
        for i, task in enumerate("ab"):
            with route(task):
                torch.testing.assert_close(mixed[:, i], model(x)[:, i])


def test_bitfit_equals_copies_that_differ_in_biases(encoder: Encoder) -> None:
    """Oracle: a full copy of the model per task with the biases changed; all of them, attention's and norms' too."""
    adapters = BitFit(encoder, ["a", "b"])
    shake(adapters)
    mixed = answers(encoder, ROWS)
    for slot, task in enumerate("ab"):
        copy = Encoder().eval()
        copy.load_state_dict(encoder.state_dict())
        biases = {n for n, _ in copy.named_parameters() if n.endswith("bias")}
        with torch.no_grad():
            for path in adapters.places:
                own = adapters.site(path).l[slot]
                head, _, leaf = path.rpartition(".")
                if leaf in ("q", "k", "v"):
                    bias = copy.get_submodule(head).in_proj_bias
                    bias[16 * "qkv".index(leaf) :][:16] += own  # type: ignore[index]
                    biases.discard(f"{head}.in_proj_bias")
                else:
                    copy.get_parameter(f"{path}.bias").add_(own)
                    biases.discard(f"{path}.bias")
            assert not biases
            out = copy(X)
        for i, row in enumerate(ROWS):
            if row == task:
                torch.testing.assert_close(out[i], mixed[i], rtol=1e-4, atol=1e-5)
    with pytest.raises(BadInput, match="none of the maps has a bias"):
        BitFit(nn.Sequential(nn.Linear(2, 2, bias=False)), ["a"])


# -- prefixes and prompts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", ["sdpa", "eager"])
@pytest.mark.parametrize("padded", [False, True])
def test_prefix_equals_cached_keys_and_values(inside: str, padded: bool) -> None:
    """Oracle: a causal model with the prefix in its cache, which is how PEFT does it; with grouped keys and rotary positions."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        attn_implementation=inside,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = transformers.LlamaModel(config).eval()
    mask = torch.ones(4, 6, dtype=torch.int64)
    if padded:
        mask[1, 4:] = 0
    adapters = PrefixTuning(model, ["a", "b"], length=3)
    shake(adapters)
    with torch.no_grad(), route("b"):
        got = model(IDS, attention_mask=mask, position_ids=torch.arange(6)[None], use_cache=False).last_hidden_state
    adapters.detach()
    assert model.config._attn_implementation == inside
    cache = transformers.DynamicCache(config=config)
    for i, site in enumerate(adapters.sites.values()):
        k, v = site.P[1].detach().expand(4, -1, -1).view(4, 3, 2, 2, 4).transpose(1, 3).unbind(2)  # type: ignore[index, operator]
        cache.update(k, v, i)
    with torch.no_grad():
        wanted = model(
            IDS,
            attention_mask=torch.cat((torch.ones(4, 3, dtype=torch.int64), mask), 1),
            past_key_values=cache,
            position_ids=torch.arange(6)[None],
        ).last_hidden_state
    kept = mask.bool()
    torch.testing.assert_close(got[kept], wanted[kept], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inside", ["eager", "sdpa"])
def test_prefix_stands_before_t5s_position_biases(inside: str) -> None:
    """T5 adds a bias by distance to its scores: given keys keep theirs, the prefix has none. Oracle: one attention by hand."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=30, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=4, dropout_rate=0.0)
    model = transformers.T5EncoderModel._from_config(config, attn_implementation=inside).eval()
    attention = model.encoder.block[0].layer[0].SelfAttention
    torch.nn.init.normal_(attention.relative_attention_bias.weight)
    prefix = PrefixTuning(model, ["a", "b"], length=3)
    for p in prefix.parameters():
        torch.nn.init.normal_(p)
    seen: dict[str, Any] = {}
    attention.q.register_forward_pre_hook(lambda module, args: seen.update(x=args[0]))
    attention.o.register_forward_pre_hook(lambda module, args: seen.update(out=args[0]))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    with torch.no_grad(), route(["a", "b"]):
        model(input_ids=torch.randint(0, 30, (2, 5)), attention_mask=mask)
        x = seen["x"]
        extra = next(iter(prefix.parameters()))  # [E, M, 2 d]
        k = torch.cat((extra[..., :16], attention.k(x)), 1).view(2, 8, 4, 4).transpose(1, 2)
        v = torch.cat((extra[..., 16:], attention.v(x)), 1).view(2, 8, 4, 4).transpose(1, 2)
        q = attention.q(x).view(2, 5, 4, 4).transpose(1, 2)
        scores = q @ k.transpose(2, 3)
        scores[..., 3:] += attention.compute_bias(5, 5)
        scores[..., 3:] += (1 - mask[:, None, None].float()) * -1e9
        wanted = (scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 5, 16)
    torch.testing.assert_close(seen["out"], wanted, atol=1e-5, rtol=1e-5)


def test_prefix_mixes_tasks_in_transformers(bert: Callable[..., Any]) -> None:
    """With padding; and rows alone; the reparametrisation can be folded away; the model's attention comes back."""
    model = bert()
    mask = torch.ones(4, 6, dtype=torch.int64)
    mask[1, 3:] = 0
    base = model(IDS, attention_mask=mask).last_hidden_state
    adapters = PrefixTuning(model, ["a", "b"], length=3, hidden=5)
    shake(adapters)
    with torch.no_grad(), route(ROWS):
        mixed = model(IDS, attention_mask=mask).last_hidden_state
    for i, task in enumerate(ROWS):
        keep = mask[i].bool()
        with torch.no_grad(), route(task):
            torch.testing.assert_close(model(IDS[i : i + 1, keep]).last_hidden_state[0], mixed[i, keep], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(mixed, base, atol=1e-2)
    adapters.fold()
    with torch.no_grad(), route(ROWS):
        torch.testing.assert_close(model(IDS, attention_mask=mask).last_hidden_state, mixed, rtol=1e-4, atol=1e-5)
    adapters.detach()
    torch.testing.assert_close(model(IDS, attention_mask=mask).last_hidden_state, base)


@pytest.mark.parametrize("name", ["bert", "vit", "gpt2", "llama", "distilbert"])
def test_prompts_in_transformers(name: str) -> None:
    """M = 0 changes nothing; a mixed, padded batch is each row alone and unpadded; the length of the output stays."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    common = {"vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    hidden = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    config = {
        "bert": lambda: transformers.BertConfig(**common, **hidden),
        "vit": lambda: transformers.ViTConfig(image_size=8, patch_size=4, **hidden),
        "gpt2": lambda: transformers.GPT2Config(n_embd=16, n_layer=2, n_head=4, **common),
        "llama": lambda: transformers.LlamaConfig(num_key_value_heads=2, **common, **hidden),
        "distilbert": lambda: transformers.DistilBertConfig(dim=16, n_layers=2, n_heads=4, hidden_dim=32, **common),
    }[name]()
    model = transformers.AutoModel.from_config(config).eval()
    image = name == "vit"
    x = torch.randn(4, 3, 8, 8) if image else IDS + 1
    mask = torch.ones(4, 6, dtype=torch.int64)
    mask[1, 4:] = 0
    more = {} if image else {"attention_mask": mask}
    with torch.no_grad():
        base = model(x, **more).last_hidden_state
        none = PromptTuning(model, ["a"], length=0)
        with route("a"):
            torch.testing.assert_close(model(x, **more).last_hidden_state, base, rtol=1e-4, atol=1e-5)
        none.detach()
        adapters = PromptTuning(model, ["a", "b"], length=3)
        shake(adapters)
        with route(ROWS):
            mixed = model(x, **more).last_hidden_state
        assert mixed.shape == base.shape
        assert not torch.allclose(mixed, base, atol=1e-4)
        for i, task in enumerate(ROWS):
            keep = slice(None) if image else mask[i].bool()
            with route(task):
                alone = model(x[i : i + 1] if image else x[i : i + 1, keep]).last_hidden_state[0]
            torch.testing.assert_close(alone, mixed[i, keep], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("batch_first", [True, False])
def test_prompts_in_torch(batch_first: bool) -> None:
    """Oracle: the layers run by hand over the longer sequence; with a padding mask and a causal one."""
    torch.manual_seed(0)
    encoder = Encoder(batch_first=batch_first).eval()
    adapters = PromptTuning(encoder, ["a", "b"], length=2)
    shake(adapters)
    padding = torch.zeros(4, 5, dtype=torch.bool)
    padding[2, 3:] = True
    x = X if batch_first else X.transpose(0, 1)
    with torch.no_grad(), route(ROWS):
        got = encoder(x, padding)
    P: Any = adapters.sites["prompt"].P
    adapters.detach()
    longer = torch.cat((P[[0, 1, 1, 0]].detach(), X), 1)
    longer = longer if batch_first else longer.transpose(0, 1)
    with torch.no_grad():
        wanted = encoder(longer, F.pad(padding, (2, 0)))
    wanted = wanted[:, 2:] if batch_first else wanted[2:]
    seen = ~padding if batch_first else ~padding.T
    torch.testing.assert_close(got[seen], wanted[seen], rtol=1e-4, atol=1e-5)


# -- gates on the one bank -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [1, 2])
def test_poly_and_mhr_equal_peft(heads: int) -> None:
    """PEFT's Poly layer with the same weights, for one and two heads."""
    peft = pytest.importorskip("peft")
    theirs = peft.get_peft_model(
        linear(), peft.PolyConfig(target_modules=["0"], r=4, n_tasks=3, n_skills=5, n_splits=heads)
    ).eval()
    layer = theirs.base_model.model[0]
    model = linear()
    ours: Any = (
        Poly(model, ["a", "b", "c"], where="0", rank=4, skills=5)
        if heads == 1
        else MHR(model, ["a", "b", "c"], where="0", rank=4, skills=5, heads=heads)
    )
    shake(ours)
    site = ours.site("0")
    with torch.no_grad():
        h, d_in, d_out = heads, 16 // heads, 12 // heads
        layer.poly_lora_A["default"].copy_(site.A.view(5, 4, h, d_in).permute(2, 0, 3, 1))
        layer.poly_lora_B["default"].copy_(site.B.view(5, h, d_out, 4).permute(1, 0, 3, 2))
        layer.poly_router["default"].module_logits.copy_(site.Z.flatten(1))
        x = torch.randn(4, 3, 16)
        wanted = layer(x, task_ids=torch.tensor([2, 0, 0, 1]))
    torch.testing.assert_close(answers(model, ["c", "a", "a", "b"], x), wanted, rtol=1e-5, atol=1e-5)
    assert count(ours) == 5 * 4 * (16 + 12) + 3 * heads * 5


def test_a_tasks_routing_has_no_gradient_from_others() -> None:
    model = linear()
    ours = MHR(model, ["a", "b", "c"], where="0", rank=4, skills=5, heads=2)
    shake(ours)
    with route(["a", "c"]):
        model(torch.randn(2, 3, 16)).square().sum().backward()
    g = ours.site("0").Z.grad
    assert (g[1] == 0).all()
    assert (g[[0, 2]] != 0).any()
    with pytest.raises(BadInput, match="is 5, which does not divide"):
        MHR(linear(), ["a"], where="0", heads=5, rank=4)


def test_mhr_z_trains_the_routing_and_mhr_mu_the_average() -> None:
    model = linear()
    inventory = MHR(model, ["a", "b"], where="0", rank=4, skills=3, heads=2)
    shake(inventory)
    A, B = inventory.site("0").A.detach().clone(), inventory.site("0").B.detach().clone()
    z = MHRz(model, ["new"], inventory=inventory)
    assert [n for n, p in z.named_parameters() if p.requires_grad] == ["sites.0.Z"]
    assert count(z) == 2 * 3
    assert torch.equal(z.site("0").A, A)
    z.detach()
    mu = MHRmu(model, ["new"], inventory=inventory)
    x = torch.randn(2, 3, 16)
    got = answers(model, "new", x)
    mu.detach()
    with torch.no_grad():
        torch.testing.assert_close(got, model(x) + x @ A.mean(0).T @ B.mean(0).T / 4, rtol=1e-5, atol=1e-5)
    mu.add("other")  # a later task starts there, too
    assert torch.equal(mu.site("0").A[mu.slot("other")], A.mean(0))


def test_relaxed_gates_sample_in_training_only() -> None:
    model = linear()
    ours = Poly(model, ["a"], where="0", rank=4, skills=5, gate="relaxed")
    shake(ours)
    x = torch.randn(2, 3, 16)
    model.eval()
    assert torch.equal(answers(model, "a", x), answers(model, "a", x))
    model.train()
    assert not torch.allclose(answers(model, "a", x), answers(model, "a", x), atol=1e-3)


def test_smora_with_a_block_is_a_mixture_of_loras() -> None:
    """Oracle: E modules of rank c, mixed by a softmax over the chosen ones; block = c of the same weights."""
    model = linear()
    ours = SMoRA(model, ["a"], where="0", rank=8, active=4, block=2, alpha=4.0, gate="sum1")
    shake(ours)
    x = torch.randn(3, 5, 16)
    got = answers(model, "a", x)
    ours.detach()
    p = ours.site("0")
    with torch.no_grad():
        wanted = model(x)
        logits = x @ p.W_g.T
        best, chosen = logits.topk(2, -1)
        for j in range(2):
            A, B = p.A[chosen[..., j]], p.B[chosen[..., j]]
            update = torch.einsum("blor,blri,bli->blo", B, A, x)
            wanted = wanted + best.softmax(-1)[..., j, None] * update
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_smora_with_all_ranks_is_lora() -> None:
    """k = r and equal gates: LoRA; with `mean1` at LoRA's own scale."""
    model = linear()
    ours = SMoRA(model, ["a"], where="0", rank=8, active=8, alpha=16.0)
    with torch.no_grad():
        ours.site("0").W_g.zero_()
        ours.site("0").B.normal_()
    x = torch.randn(3, 5, 16)
    got = answers(model, "a", x)
    ours.detach()
    lora = LoRA(model, ["a"], where="0", rank=8, alpha=16.0)
    with torch.no_grad():
        lora.site("0").A[0].copy_(ours.site("0").A.flatten(0, 1))
        lora.site("0").B[0].copy_(ours.site("0").B.permute(1, 0, 2).flatten(1))
    torch.testing.assert_close(answers(model, "a", x), got, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reentrant", [False, True])
def test_smora_counts_a_token_once_where_it_is_computed_again(reentrant: bool) -> None:
    """Broken: with gradient checkpointing the load is twice what it was."""

    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 12)

        def forward(self, x: Tensor) -> Tensor:
            return torch.utils.checkpoint.checkpoint(self.layer, x, use_reentrant=reentrant)  # type: ignore[no-any-return]

    model = Again().train()
    ours = SMoRA(model, ["a"], where="layer", rank=8, active=2)
    with route("a"):
        out = model(torch.randn(2, 50, 16).requires_grad_())
    out.sum().backward()
    assert ours.site("layer").load.sum() == 2 * 100


def test_smora_leaves_unchosen_ranks_alone_and_balances() -> None:
    """Unchosen experts have zero gradient; adding a constant to b changes nothing; balancing evens out a skewed router."""
    model = linear().train()
    ours = SMoRA(model, ["a"], where="0", rank=8, active=2)
    p = ours.site("0")
    with torch.no_grad():
        p.W_g.zero_()
        p.B.normal_()
        p.W_g[:2] = 0.3 * torch.randn(2, 16).abs()
    x = torch.randn(2, 50, 16).abs()
    with route("a"):
        out = model(x)
    out.square().sum().backward()
    _, chosen = ours.gate("0", x)
    unused = [e for e in range(8) if e not in chosen.unique()]
    assert unused
    assert (p.A.grad[unused] == 0).all()
    assert (p.B.grad[unused] == 0).all()
    assert p.load.sum() == 2 * 100
    p.b += 3.0
    with torch.no_grad(), route("a"):
        torch.testing.assert_close(model(x), out)
    p.b -= 3.0
    with torch.no_grad():
        p.W_g.copy_(torch.randn(8, 16) * 0.02)
        p.W_g[0] += 0.2
    for u in (0.02, 0.002):
        for _ in range(300):
            with torch.no_grad(), route("a"):
                model(torch.randn(2, 50, 16).abs())
            ours.balance(u)
    with torch.no_grad(), route("a"):
        for _ in range(20):
            model(torch.randn(2, 50, 16).abs())
    assert p.load.max() / p.load.mean() < 1.3
    with pytest.raises(BadInput, match="do not fit"):
        SMoRA(linear(), ["a"], rank=8, active=3, block=2)


def test_mixlora_by_hand(encoder: Encoder) -> None:
    """Oracle: Σ_e g_e FFN_e(x) over whole FFNs with changed weights; the load loss; its minimum c at a uniform load."""
    ours = MixLoRA(encoder, ["a"], experts=4, top=2, rank=3, load=0.5)
    shake(ours)
    layer: Any = encoder.encoder.layers[0]
    one, two = ours.sites["encoder/layers/0/linear1"], ours.sites[FC2]
    router: Any = ours.sites["encoder/layers/0 (router)"]
    with torch.no_grad(), route("a") as r:
        x = torch.randn(4, 5, 16)
        got = layer._ff_block(x)
        penalty = next(iter(r.penalties.values()))
        logits = x @ router.W.T
        best, chosen = logits.topk(2, -1)
        wanted = torch.zeros_like(x)
        for e in range(4):
            W1 = layer.linear1.weight + 2.0 * one.B[e] @ one.A[e]  # type: ignore[index]
            W2 = layer.linear2.weight + 2.0 * two.B[e] @ two.A[e]  # type: ignore[index]
            ffn = F.relu(x @ W1.T + layer.linear1.bias) @ W2.T + layer.linear2.bias
            wanted += ((chosen == e) * best.softmax(-1)).sum(-1, keepdim=True) * ffn
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
        f = torch.stack([(chosen == e).float().mean() for e in range(4)])
        torch.testing.assert_close(penalty, 0.5 * 4 * (f * logits.softmax(-1).mean((0, 1))).sum())


def test_mixlora_with_one_expert_is_lora_on_the_ffn(bert: Callable[..., Any]) -> None:
    model = bert()
    ours = MixLoRA(model, ["a"], experts=1, top=1, rank=3)
    shake(ours)
    got = answers(model, "a", IDS)
    ours.detach()
    lora = LoRA(model, ["a"], where="ffn", rank=3)
    with torch.no_grad():
        for path in lora.places:
            bank: Any = ours.sites[path.replace(".", "/")]
            lora.site(path).A.copy_(bank.A)
            lora.site(path).B.copy_(bank.B)
    torch.testing.assert_close(answers(model, "a", IDS), got, rtol=1e-4, atol=1e-5)


def test_lorahub_mixes_parameters(encoder: Encoder) -> None:
    """A one-hot weight is that module; a half each is the product of the mean matrices; modules are frozen."""
    modules = LoRA(encoder, ["m0", "m1"], rank=3)
    shake(modules)
    wanted = answers(encoder, "m1")
    hub = LoRAHub(encoder, ["t", "u"], modules=modules)
    assert [n for n, p in hub.named_parameters() if p.requires_grad] == ["sites.all.w"]
    with torch.no_grad():
        hub.w[1] = torch.tensor([0.0, 1.0])
        hub.w[0] = 0.5
    torch.testing.assert_close(answers(encoder, "u"), wanted, rtol=1e-4, atol=1e-5)
    hub.merge("t")
    path = "encoder.layers.0.linear1"
    p = modules.site(path)
    got = encoder.get_submodule(path).weight.detach().clone()
    hub.unmerge()
    change = got - encoder.get_submodule(path).weight
    torch.testing.assert_close(change, 2.0 * p.B.mean(0) @ p.A.mean(0), rtol=1e-4, atol=1e-4)


def test_lorahub_searches_without_gradients(encoder: Encoder) -> None:
    """Data made by module 1: the search finds weights far better than none, within its evaluations; so do gradients."""
    modules = LoRA(encoder, ["m0", "m1", "m2"], rank=3)
    shake(modules)
    wanted = answers(encoder, "m1")
    hub = LoRAHub(encoder, ["t"], modules=modules)
    calls: list[float] = []

    def loss() -> float:
        calls.append(float((answers(encoder, "t") - wanted).square().mean()))
        return calls[-1]

    value = hub.search("t", loss, evaluations=80, penalty=0.0)
    assert len(calls) == 80
    assert value == min(calls) < 0.3 * calls[0]
    torch.testing.assert_close(loss(), value)
    assert hub.w.abs().max() <= 1.5
    torch.testing.assert_close(hub.penalty("t"), 0.05 * hub.w[0].abs().sum())


def test_cma_es_minimises_a_quadratic() -> None:
    from pluribus.adapters.lorahub import cma_es

    goal = torch.tensor([0.7, -0.4, 1.2, 0.0], dtype=torch.float64)
    scale = torch.tensor([1.0, 10.0, 3.0, 30.0], dtype=torch.float64)
    best, value = cma_es(lambda w: float((scale * (w - goal).square()).sum()), 4, 1500, 1.5, 0.5, 0)
    assert value < 1e-6
    torch.testing.assert_close(best, goal, atol=1e-3, rtol=0)
