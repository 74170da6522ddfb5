"""LoRA folders as experts and as results, against PEFT itself and against the dense product B·A."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pluribus.errors import BadInput
from pluribus.files import safetensors
from pluribus.merging import merge
from pluribus.merging.extract_lora import extract_lora
from pluribus.merging.lora import Factors, Lora, combine, read_adapter, squeeze, write_adapter
from pluribus.merging.source import open_source

peft = pytest.importorskip("peft")


class Net(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.up, self.down, self.embed = nn.Linear(6, 10), nn.Linear(10, 6), nn.Embedding(7, 6)
        self.conv = nn.Conv2d(2, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(self.embed(x))))


def adapter(folder: Path, seed: int = 1, **config: Any) -> tuple[dict[str, torch.Tensor], Path]:
    """PEFT's own adapter with random A and B, saved; and what PEFT merges it into."""
    settings = {"r": 3, "lora_alpha": 5, "target_modules": ["up", "down"], **config}
    model = peft.get_peft_model(Net(), peft.LoraConfig(**settings))
    torch.manual_seed(seed)
    for name, p in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(p, std=0.3)
            if "magnitude" in name:
                p.data.abs_().add_(0.5)
    model.save_pretrained(folder)
    return model.merge_and_unload().state_dict(), folder


CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"up": 2}, "alpha_pattern": {"down": 11}},
    "conv": {"target_modules": ["conv", "up"]},
    "embedding": {"target_modules": ["embed", "down"]},
    "dora": {"use_dora": True},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapter_is_read_as_peft_merges_it(name: str, tmp_path: Path) -> None:
    """The product B·A with PEFT's scale, for ranks and alphas by pattern, rsLoRA, kernels, embeddings and DoRA."""
    wanted, folder = adapter(tmp_path / "a", **CONFIGS[name])
    found = Lora(open_source(Net().state_dict()), folder)
    for n, v in wanted.items():
        assert torch.allclose(found.tensor(n), v, atol=1e-5), n


def test_adapters_and_full_checkpoints_mix(tmp_path: Path) -> None:
    wanted, folder = adapter(tmp_path / "a")
    full = Net(5).state_dict()
    safetensors.save(tmp_path / "base" / "model.safetensors", Net().state_dict())
    safetensors.save(tmp_path / "full" / "model.safetensors", full)
    found = merge(tmp_path / "base", [folder, tmp_path / "full"], "average")
    for n in full:
        assert torch.allclose(found[n], (wanted[n] + full[n]) / 2, atol=1e-5)
    for chunk in (1, 1 << 20):  # rows asked for in other ways
        merge(tmp_path / "base", {"a": folder}, "task_arithmetic", out=tmp_path / str(chunk), chunk=chunk, hashes=False)
    assert (tmp_path / "1" / "model.safetensors").read_bytes() == (tmp_path / str(1 << 20) / "model.safetensors").read_bytes()


def test_rows_do_not_depend_on_who_asks() -> None:
    """A wide adapter read in odd stretches has the same bits as read whole."""
    base = {"w": torch.randn(700, 33)}
    source = object.__new__(Lora)
    source.base, source.where, source.whole, source.files = open_source(base), "x", {}, []
    source.updates = {"w": Factors(torch.randn(700, 4), torch.randn(4, 33), 0.5)}
    whole = source.read("w", 0, 700 * 33)
    for start, stop in ((0, 1), (33, 8000), (8447, 8449), (256 * 33, 256 * 33 + 5), (23000, 700 * 33)):
        assert torch.equal(source.read("w", start, stop), whole[start:stop])


def test_bad_adapters(tmp_path: Path) -> None:
    _, folder = adapter(tmp_path / "a")
    with pytest.raises(BadInput, match="no base is named"):
        merge(None, [folder], "average")
    with pytest.raises(BadInput, match=r"updates 'up.weight' by 10 × 6, in the base it is \(10, 7\)"):
        merge({**Net().state_dict(), "up.weight": torch.ones(10, 7)}, [folder], "average")
    with pytest.raises(BadInput, match="which the base does not have"):
        merge({"other.weight": torch.ones(3)}, [folder], "average")
    about = json.loads((folder / "adapter_config.json").read_text())
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"peft_type": "IA3"}, "only LORA"),
        ({"r": 4}, "has rank 3, its configuration says 4"),
        ({"lora_bias": True}, "uses a bias on B"),
        ({"use_new_thing": True}, "a variant of LoRA unknown"),
    ]
    for change, message in wrong:
        (folder / "adapter_config.json").write_text(json.dumps({**about, **change}))
        with pytest.raises(BadInput, match=message):
            merge(Net(), [folder], "average")


def test_concatenation_is_exact_and_svd_is_the_best_of_its_rank(tmp_path: Path) -> None:
    folders = [adapter(tmp_path / f"{i}", seed=i)[1] for i in range(3)]
    weights = [1.0, -0.5, 2.0]
    dense = {m: sum(w * read_adapter(f)[1][m].product() for w, f in zip(weights, folders)) for m in ("up", "down")}
    cat = combine(folders, weights=weights, how="cat")
    best = combine(folders, weights=weights, how="svd", rank=2)
    for m, d in dense.items():
        assert isinstance(d, torch.Tensor)
        assert cat[m].left.shape[1] == 9
        assert torch.allclose(cat[m].product(), d, atol=1e-5)
        u, s, v = torch.linalg.svd(d)
        assert torch.allclose(best[m].product(), (u[:, :2] * s[:2]) @ v[:2], atol=1e-5)
    # "linear" adds A's and B's, so cross terms appear: it is not the weighted update, as PEFT's is not
    linear = combine(folders, how="linear")
    assert not torch.allclose(linear["up"].product(), sum(read_adapter(f)[1]["up"].product() for f in folders), atol=1e-3)
    with pytest.raises(BadInput, match="rank is None"):
        combine(folders, how="svd")


def test_combined_adapters_agree_with_peft(tmp_path: Path) -> None:
    """PEFT's own weighted adapters: cat, linear, and svd up to its signs."""
    folders = [adapter(tmp_path / f"{i}", seed=i)[1] for i in range(2)]
    model = peft.PeftModel.from_pretrained(Net(), folders[0], adapter_name="a")
    model.load_adapter(folders[1], adapter_name="b")
    for how in ("cat", "linear", "svd"):
        model.add_weighted_adapter(["a", "b"], [0.7, 0.4], how, combination_type=how, svd_rank=2)
        ours = combine(folders, weights=[0.7, 0.4], how=how, rank=2)
        for m in ("up", "down"):
            theirs = model.base_model.model.get_submodule(m).get_delta_weight(how)
            assert torch.allclose(ours[m].product(), theirs, atol=1e-5), how


def test_a_combined_folder_loads_in_peft(tmp_path: Path) -> None:
    folders = {f"t{i}": adapter(tmp_path / f"{i}", seed=i)[1] for i in range(2)}
    merge(None, folders, "lora_cat", out=tmp_path / "cat")
    merge(None, folders, "lora_svd", rank=2, weights={"t0": 2.0}, out=tmp_path / "svd")
    model = peft.PeftModel.from_pretrained(Net(), tmp_path / "cat").merge_and_unload().state_dict()
    dense = Net().state_dict()["up.weight"] + sum(read_adapter(f)[1]["up"].product() for f in folders.values())
    assert torch.allclose(model["up.weight"], dense, atol=1e-5)
    assert read_adapter(tmp_path / "svd")[1]["up"].left.shape[1] == 2
    with pytest.raises(BadInput, match="unknown setting of lora_cat 'rank'"):
        merge(None, folders, "lora_cat", rank=2, out=tmp_path / "x")


@pytest.mark.parametrize("how", [{"method": "lora_cat"}, {"method": "lora_svd", "rank": 6}])
def test_combined_kernels_and_embeddings_load_in_peft(how: dict[str, Any], tmp_path: Path) -> None:
    """What PEFT stores in a layout of its own comes out in that layout."""
    targets = {"target_modules": ["conv", "embed", "up"]}
    folders = {f"t{i}": adapter(tmp_path / f"{i}", seed=i, **targets)[1] for i in range(2)}
    merge(None, folders, out=tmp_path / "one", **how)
    model = peft.PeftModel.from_pretrained(Net(), tmp_path / "one").merge_and_unload().state_dict()
    for name in ("conv.weight", "embed.weight", "up.weight"):
        updates = [read_adapter(f)[1][name.removesuffix(".weight")].product() for f in folders.values()]
        dense = Net().state_dict()[name] + sum(updates).view_as(Net().state_dict()[name])
        assert torch.allclose(model[name], dense, atol=1e-5), name


def test_maps_stored_input_first_are_written_as_peft_reads_them(tmp_path: Path) -> None:
    """GPT-2 stores [in, out]: combined and extracted adapters load in PEFT, and the embeddings are no maps."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 20, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 6, "bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(0)
    base = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
    base.save_pretrained(tmp_path / "base")

    def fresh() -> Any:
        return transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base")

    config = {"r": 2, "task_type": "CAUSAL_LM", "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
    for i in range(2):
        model = peft.get_peft_model(fresh(), peft.LoraConfig(**config))
        for name, p in model.named_parameters():
            if "lora_" in name:
                nn.init.normal_(p, std=0.3)
        model.save_pretrained(tmp_path / f"l{i}")
    folders = [tmp_path / "l0", tmp_path / "l1"]
    merge(None, folders, "lora_cat", out=tmp_path / "cat")
    wanted = merge(base, folders, "task_arithmetic", scale=1.0)
    found = peft.PeftModel.from_pretrained(fresh(), tmp_path / "cat").merge_and_unload().state_dict()
    name = "transformer.h.0.attn.c_attn.weight"
    assert torch.allclose(found[name], wanted[name], atol=1e-5)

    expert = fresh()
    with torch.no_grad():
        for p in expert.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    expert.save_pretrained(tmp_path / "expert")
    done = extract_lora(tmp_path / "base", tmp_path / "expert", tmp_path / "x", rank=8)
    assert not any("wte" in row[0] or "wpe" in row[0] for row in done.rows)
    found = peft.PeftModel.from_pretrained(fresh(), tmp_path / "x").merge_and_unload().state_dict()
    assert torch.allclose(found[name], expert.state_dict()[name], atol=1e-5)


def test_heads_of_combined_adapters_are_kept_per_task(tmp_path: Path) -> None:
    """What an adapter holds whole is its task's own: beside the combination, not lost in it."""
    folders = {f"t{i}": adapter(tmp_path / f"{i}", seed=i, modules_to_save=["conv"])[1] for i in range(2)}
    merge(None, folders, "lora_cat", out=tmp_path / "cat")
    for task, folder in folders.items():
        kept = safetensors.load(tmp_path / "cat" / "heads" / f"{task}.safetensors")
        assert set(kept) == {"conv.weight", "conv.bias"}
        assert torch.equal(kept["conv.weight"], read_adapter(folder)[2]["conv.weight"])
    assert set(read_adapter(tmp_path / "cat")[2]) == {"conv.weight", "conv.bias"}  # equal in both: in the combination too
    trained = safetensors.load(folders["t1"] / "adapter_model.safetensors")
    trained = {n: t + 1 if n.endswith("conv.weight") else t for n, t in trained.items()}
    safetensors.save(folders["t1"] / "adapter_model.safetensors", trained)
    merge(None, folders, "lora_cat", out=tmp_path / "other")
    assert set(read_adapter(tmp_path / "other")[2]) == {"conv.bias"}
    assert "heads/t1.safetensors: conv.weight" in (tmp_path / "other" / "README.md").read_text()


def test_updates_of_different_weights_are_not_added(tmp_path: Path) -> None:
    """Broken: embeddings that two adapters hold beside their updates are one silently."""
    folders = {f"t{i}": adapter(tmp_path / f"{i}", seed=i, target_modules=["embed"])[1] for i in range(2)}
    for i, folder in enumerate(folders.values()):
        tensors = safetensors.load(folder / "adapter_model.safetensors")
        tensors["base_model.model.embed.base_layer.weight"] = torch.ones(7, 6) * i
        safetensors.save(folder / "adapter_model.safetensors", tensors)
    with pytest.raises(BadInput, match="'embed' is held whole by t0, t1"):
        merge(None, folders, "lora_cat", out=tmp_path / "x")


def test_squeeze_agrees_with_the_dense_svd() -> None:
    left, right = torch.randn(40, 6, dtype=torch.float64), torch.randn(6, 30, dtype=torch.float64)
    a, b = squeeze(left, right, 3)
    u, s, v = torch.linalg.svd(left @ right)
    assert torch.allclose(a @ b, (u[:, :3] * s[:3]) @ v[:3], atol=1e-9)


def test_extracted_lora_is_the_best_approximation_and_loads(tmp_path: Path) -> None:
    """Eckart and Young: its error is the discarded singular values; full rank gives the expert; PEFT loads the folder."""
    base, expert = Net(0).state_dict(), Net(1).state_dict()
    for n in ("embed.weight", "conv.weight", "conv.bias", "up.bias", "down.bias"):
        expert[n] = base[n]
    found = extract_lora(base, expert, tmp_path / "r2", rank=2)
    for name, rank, error in found.rows:
        s = torch.linalg.svdvals((expert[name] - base[name]).double())
        assert rank == 2
        assert abs(error - float((s[2:].square().sum() / s.square().sum()).sqrt())) < 1e-6
    assert found.left_out == 0
    whole = extract_lora(base, expert, tmp_path / "all", error=0.0)
    assert whole.error < 1e-6
    loaded = peft.PeftModel.from_pretrained(Net(0), tmp_path / "all").merge_and_unload().state_dict()
    assert torch.allclose(loaded["up.weight"], expert["up.weight"], atol=1e-5)
    some = extract_lora(base, expert, tmp_path / "some", energy=0.9)
    assert all(error**2 <= 0.1 + 1e-9 for _, _, error in some.rows)
    assert len({rank for _, rank, _ in some.rows} | {6}) > 1
    odd = peft.PeftModel.from_pretrained(Net(0), tmp_path / "some").merge_and_unload().state_dict()
    dense = merge(base, [tmp_path / "some"], "average")
    assert torch.allclose(odd["down.weight"], dense["down.weight"], atol=1e-5)
    with pytest.raises(BadInput, match="give one of rank, energy and error"):
        extract_lora(base, expert, tmp_path / "x", rank=2, energy=0.5)
    with pytest.raises(BadInput, match="exists already"):
        extract_lora(base, expert, tmp_path / "all", rank=2)


def test_write_adapter_round_trip(tmp_path: Path) -> None:
    factors = {
        "up": Factors(torch.randn(10, 2), torch.randn(2, 6), 0.5),
        "down": Factors(torch.randn(6, 4), torch.randn(4, 10), 2.0),
    }
    write_adapter(tmp_path / "a", factors, base="net")
    _, again, whole = read_adapter(tmp_path / "a")
    assert not whole
    for m, f in factors.items():
        assert torch.allclose(again[m].product(), f.product(), atol=1e-6)


def test_extraction_as_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`pluribus merge extract-lora` writes what the function writes and prints each matrix's error."""
    from pluribus.cli import run

    for seed, name in ((0, "base"), (1, "expert")):
        safetensors.save(tmp_path / f"{name}.safetensors", Net(seed).state_dict())
    files = {name: str(tmp_path / f"{name}.safetensors") for name in ("base", "expert")}
    words = ["merge", "extract-lora", "--base", files["base"], "--expert", files["expert"]]
    assert run([*words, "--rank", "2", "-o", str(tmp_path / "lora")]) == 0
    said = capsys.readouterr().out
    wanted = extract_lora(tmp_path / "base.safetensors", tmp_path / "expert.safetensors", tmp_path / "same", rank=2)
    assert all(f"{name}  rank 2  error {error:.4f}" in said for name, _, error in wanted.rows)
    a, b = (read_adapter(tmp_path / name)[1] for name in ("lora", "same"))
    assert all(torch.equal(a[module].product(), b[module].product()) for module in b)
    assert run([*words, "--rank", "2", "-o", str(tmp_path / "lora")]) == 2
    assert "exists" in capsys.readouterr().err
    assert run([*words, "--rank", "2", "--energy", "0.5", "-o", str(tmp_path / "x")]) == 2
    assert "one of rank, energy and error" in capsys.readouterr().err
    assert run([*words, "--energy", "0.9", "--json", "-o", str(tmp_path / "e")]) == 0
    assert json.loads(capsys.readouterr().out)["error"] <= 0.1**0.5 + 1e-9


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("r", "x", "r has 'x'; give a whole number"),
        ("r", True, "r has True; give a whole number"),
        ("lora_alpha", "a", "lora_alpha has 'a'; give a number"),
        ("rank_pattern", [1], "rank_pattern is [1]; give a table"),
        ("rank_pattern", {"up": 2.5}, "rank_pattern has 2.5; give a whole number"),
        ("alpha_pattern", {"(": 4}, "alpha_pattern has '('"),
    ],
)
def test_a_configuration_that_is_none_is_one_line(field: str, value: object, line: str, tmp_path: Path) -> None:
    """Broken: a stranger's adapter_config.json ends a merge with a traceback of the regular expressions'."""
    factors = {"up": Factors(torch.ones(6, 2), torch.ones(2, 4), 1.0)}
    write_adapter(tmp_path / "a", factors)
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(BadInput, match=re.escape(line)) as caught:
        read_adapter(tmp_path / "a")
    assert "adapter_config.json" in str(caught.value)


def test_matrices_of_no_rank_are_one_line(tmp_path: Path) -> None:
    """Broken: an adapter without a rank divides α by nought."""
    write_adapter(tmp_path / "a", {"up": Factors(torch.ones(6, 1), torch.ones(1, 4), 1.0)})
    name = "base_model.model.up.lora_{}.weight"
    tensors = {name.format("A"): torch.ones(0, 4), name.format("B"): torch.ones(6, 0)}
    safetensors.save(tmp_path / "a" / "adapter_model.safetensors", tensors)
    with pytest.raises(BadInput, match="no matching A and B"):
        read_adapter(tmp_path / "a")


def _trained(model: nn.Module, seed: int = 1) -> None:
    """Move A and B as training would, from where their start put them."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.add_(0.1 * torch.randn_like(p))


@pytest.mark.parametrize("start", ["pissa", "olora", "gaussian", "orthogonal", "mica", False])
def test_how_an_adapter_began_is_read_as_peft_reloads_it(start: Any, tmp_path: Path) -> None:
    """Broken: an adapter that stands over a residual of the base is added to the base itself."""
    settings = {"r": 2, "lora_alpha": 5, "target_modules": ["up", "down"], "init_lora_weights": start}
    model = peft.get_peft_model(Net(), peft.LoraConfig(**settings))
    _trained(model)
    model.save_pretrained(tmp_path / "a")
    wanted = peft.PeftModel.from_pretrained(Net(), tmp_path / "a").merge_and_unload().state_dict()
    trained = model.merge_and_unload().state_dict()
    found = merge(Net(), [tmp_path / "a"], "average")
    for n, v in wanted.items():
        assert torch.allclose(trained[n], v, atol=1e-5), n
        assert torch.allclose(found[n], v, atol=1e-5), n


@pytest.mark.parametrize("start", ["pissa_niter_4", "corda", "loftq", "lora_ga", "new_thing"])
def test_a_start_that_cannot_be_made_again_is_refused_by_name(start: str, tmp_path: Path) -> None:
    """Broken: the base that training changed at random, from data or by rounding is taken for the base."""
    _, folder = adapter(tmp_path / "a")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "init_lora_weights": start}))
    with pytest.raises(BadInput, match=f"init_lora_weights='{start}'"):
        merge(Net(), [folder], "average")
    assert not (tmp_path / "out").exists()


def test_a_combination_of_adapters_over_a_residual_is_refused(tmp_path: Path) -> None:
    """Broken: B A of PiSSA is combined as if it were the whole update."""
    _, folder = adapter(tmp_path / "a", init_lora_weights="pissa")
    with pytest.raises(BadInput, match="init_lora_weights='pissa'"):
        merge(None, {"a": folder}, "lora_cat", out=tmp_path / "x")


@pytest.mark.parametrize(("targets", "tied"), [("embed_tokens", False), ("lm_head", False), ("embed_tokens", True)])
def test_an_adapted_embedding_saved_beside_its_update_keeps_it(targets: str, tied: bool, tmp_path: Path) -> None:
    """PEFT saves the embedding's own weight beside A and B by default. Broken: it is taken for the result."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 24, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(**sizes, max_position_embeddings=16, tie_word_embeddings=tied)
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "base")

    def fresh() -> Any:
        return transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base").eval()

    model = peft.get_peft_model(fresh(), peft.LoraConfig(r=2, lora_alpha=3, target_modules=[targets, "q_proj"]))
    _trained(model)
    model.save_pretrained(tmp_path / "a")
    assert any(".base_layer." in n for n in safetensors.load(tmp_path / "a" / "adapter_model.safetensors"))
    ids = torch.arange(10)[None]
    wanted = peft.PeftModel.from_pretrained(fresh(), tmp_path / "a").eval()
    state = merge(tmp_path / "base", {"a": tmp_path / "a"}, "task_arithmetic", scale=1.0)
    ours = fresh()
    ours.load_state_dict(state, strict=False)
    theirs = wanted.merge_and_unload() if tied else wanted  # unmerged, the two ends of a tied model differ
    with torch.no_grad():
        assert torch.allclose(ours(ids).logits, theirs(ids).logits, atol=1e-5)


@pytest.mark.parametrize("how", [{"method": "lora_cat"}, {"method": "lora_svd", "rank": 8}, {"method": "lora_linear"}])
def test_one_adapter_of_weight_one_is_itself(how: dict[str, Any], tmp_path: Path) -> None:
    """The identity law with modules saved whole. Broken: they are left out of the combination without a word."""
    config = {"target_modules": ["up", "embed"], "modules_to_save": ["conv"]}
    model = peft.get_peft_model(Net(), peft.LoraConfig(r=3, lora_alpha=5, **config))
    _trained(model)
    with torch.no_grad():
        for p in model.base_model.model.conv.modules_to_save.default.parameters():
            p.add_(1.0)
    model.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    merge(None, {"a": tmp_path / "a"}, out=tmp_path / "one", **how)
    wanted, found = (peft.PeftModel.from_pretrained(Net(), tmp_path / n).merge_and_unload().state_dict() for n in ("a", "one"))
    for n, v in wanted.items():
        assert torch.allclose(found[n], v, atol=1e-5), n
