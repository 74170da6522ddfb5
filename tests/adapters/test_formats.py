"""PEFT's folders both ways, against PEFT itself. If these fail, adapters change on the way in or out, or silently do not load."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.adapters.conftest import shake

from pluribus.adapters import LoRA, Pool, from_peft, read_peft, route, write_peft
from pluribus.errors import BadInput

peft = pytest.importorskip("peft")
IDS = torch.arange(24).view(4, 6)


def draw(model: torch.nn.Module, seed: int = 1) -> None:
    torch.manual_seed(seed)
    for name, p in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(p, std=0.3)


def peft_model(bert: Any, folder: Path, seed: int = 1, **config: Any) -> Any:
    settings = {"r": 3, "lora_alpha": 5, "target_modules": ["query", "value", "intermediate.dense"], **config}
    model = peft.get_peft_model(bert(), peft.LoraConfig(**settings)).eval()
    draw(model, seed)
    model.save_pretrained(folder)
    return model


CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"query": 2}, "alpha_pattern": {"value": 11}},
    "other sites": {"target_modules": ["key", "output.dense"], "r": 5},
}


def test_a_bank_of_peft_folders_answers_as_peft(bert: Callable[..., Any], tmp_path: Path) -> None:
    """Four adapters of different ranks, scales and sites in one batch; each row as PEFT answers with its adapter alone."""
    models = {name: peft_model(bert, tmp_path / name, seed=i, **c) for i, (name, c) in enumerate(CONFIGS.items())}
    base = bert()
    from_peft(base, {name: tmp_path / name for name in CONFIGS})
    with torch.no_grad(), route(list(CONFIGS)):
        got = base(IDS).last_hidden_state
        for i, model in enumerate(models.values()):
            torch.testing.assert_close(got[i], model(IDS[i : i + 1]).last_hidden_state[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_round_trip_keeps_every_bit(name: str, bert: Callable[..., Any], tmp_path: Path) -> None:
    """PEFT → bank → folder → PEFT: the matrices are the same bits, the outputs the same numbers (patterns: rounded scales)."""
    theirs = peft_model(bert, tmp_path / "in", **CONFIGS[name])
    lora = from_peft(bert(), {"a": tmp_path / "in"})
    write_peft(lora, "a", tmp_path / "out")
    again = peft.PeftModel.from_pretrained(bert(), tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(IDS).last_hidden_state, theirs(IDS).last_hidden_state, rtol=1e-4, atol=1e-5)
    if name != "patterns":
        mine = {n: p for n, p in again.named_parameters() if "lora_" in n}
        for n, p in theirs.named_parameters():
            if "lora_" in n:
                assert torch.equal(mine[n], p), n


def test_writing_is_minimal(bert: Callable[..., Any], tmp_path: Path) -> None:
    """Older readers refuse fields they do not know: nothing is said that is the default."""
    lora = LoRA(bert(), ["a"], where="q", rank=2, alpha=4)
    shake(lora)
    write_peft(lora, "a", tmp_path / "a", heads={"classifier.weight": torch.zeros(2, 16), "classifier.bias": torch.zeros(2)})
    said = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert set(said) == {"peft_type", "r", "lora_alpha", "target_modules", "inference_mode", "modules_to_save"}
    assert (said["r"], said["lora_alpha"], said["modules_to_save"]) == (2, 4, ["classifier"])
    with pytest.raises(BadInput, match="exists already"):
        write_peft(lora, "a", tmp_path / "a")


def test_heads_come_along(tmp_path: Path) -> None:
    """modules_to_save of a sequence classifier, whose encoder sits below another name."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    whole = transformers.BertForSequenceClassification(config)
    wrapped = peft.get_peft_model(whole, peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    draw(wrapped)
    wrapped.eval().save_pretrained(tmp_path / "a")
    encoder = transformers.BertModel(config).eval()
    encoder.load_state_dict(
        {
            n.removeprefix("base_model.model.bert.").replace(".base_layer", ""): p
            for n, p in wrapped.state_dict().items()
            if n.startswith("base_model.model.bert.") and "lora_" not in n
        }
    )
    lora = LoRA(encoder, ["other"], where="query", rank=4)
    heads = read_peft(lora, "a", tmp_path / "a")
    with torch.no_grad(), route("a"):
        pooled = encoder(IDS).pooler_output
        logits = pooled @ heads["classifier.weight"].T + heads["classifier.bias"]
        torch.testing.assert_close(logits, wrapped(IDS).logits, rtol=1e-4, atol=1e-5)


def test_conv1d_is_stored_the_other_way(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2)

    def gpt2() -> Any:
        torch.manual_seed(0)
        return transformers.GPT2Model(config).eval()

    theirs = peft.get_peft_model(gpt2(), peft.LoraConfig(r=2, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)).eval()
    draw(theirs)
    theirs.save_pretrained(tmp_path / "in")
    model = gpt2()
    lora = from_peft(model, {"a": tmp_path / "in"})
    base = {n: p.clone() for n, p in model.state_dict().items()}
    with torch.no_grad():
        wanted = theirs(IDS).last_hidden_state
        with route("a"):
            torch.testing.assert_close(model(IDS).last_hidden_state, wanted, rtol=1e-4, atol=1e-5)
        lora.merge("a")
        torch.testing.assert_close(model(IDS).last_hidden_state, wanted, rtol=1e-4, atol=1e-5)
        lora.unmerge()
        write_peft(lora, "a", tmp_path / "out")
        again = peft.PeftModel.from_pretrained(gpt2(), tmp_path / "out").eval()
        torch.testing.assert_close(again(IDS).last_hidden_state, wanted, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(p, base[n]) for n, p in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "uses DoRA"),
        ({"lora_bias": True}, "a bias on B"),
        ({"bias": "all"}, "trains biases"),
        ({"use_future": True}, r"unknown here \(use_future=True\)"),
        ({"peft_type": "VERA"}, "is a VERA adapter"),
        ({"r": 4}, "its configuration says 4"),
    ],
)
def test_unsupported_variants_are_named(change: dict[str, Any], message: str, bert: Callable[..., Any], tmp_path: Path) -> None:
    peft_model(bert, tmp_path / "a")
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BadInput, match=message):
        from_peft(bert(), {"a": tmp_path / "a"})


def test_another_base_is_refused(bert: Callable[..., Any], tmp_path: Path) -> None:
    """Sites that are missing, shapes that differ, a bank of a smaller rank; and the model is left as it was."""
    peft_model(bert, tmp_path / "a")
    wide = bert(attn_implementation="eager")
    wide.encoder.layer[0].attention.self.query = torch.nn.Linear(20, 16)
    with pytest.raises(BadInput, match="16 → 16, the model has 20 → 16"):
        from_peft(wide, {"a": tmp_path / "a"})
    with pytest.raises(BadInput, match="no linear map of the model"):
        from_peft(torch.nn.Sequential(torch.nn.Linear(2, 2)), {"a": tmp_path / "a"})
    small = LoRA(bert(), ["x"], where=["query", "value", "intermediate.dense"], rank=2)
    with pytest.raises(BadInput, match=r"rank 3 at .* make the bank with rank=3"):
        read_peft(small, "a", tmp_path / "a")
    assert small.tasks == ("x",)
    with pytest.raises(BadInput, match="the bank does not"):
        read_peft(LoRA(bert(), ["x"], where="query", rank=3), "a", tmp_path / "a")


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_adapters_over_a_residual_answer_as_peft_reloads_them(start: str, bert: Callable[..., Any], tmp_path: Path) -> None:
    """Broken: B A of an adapter that stands over a residual base is added to the base itself."""
    config = {"r": 3, "lora_alpha": 5, "target_modules": ["query", "intermediate.dense"], "init_lora_weights": start}
    model = peft.get_peft_model(bert(), peft.LoraConfig(**config))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.add_(0.1 * torch.randn_like(p))
    model.save_pretrained(tmp_path / "a")
    theirs = peft.PeftModel.from_pretrained(bert(), tmp_path / "a").eval()
    ours = bert()
    from_peft(ours, {"a": tmp_path / "a"})
    with torch.no_grad(), route("a"):
        torch.testing.assert_close(ours(IDS).last_hidden_state, theirs(IDS).last_hidden_state, rtol=1e-4, atol=1e-5)


def test_a_module_that_is_no_head_is_refused_where_it_was_trained(bert: Callable[..., Any], tmp_path: Path) -> None:
    """Broken: `modules_to_save` of the trunk are dropped without a word, or taken for the classifier of a pool."""
    model = peft.get_peft_model(bert(), peft.LoraConfig(r=2, target_modules=["query"], modules_to_save=["word_embeddings"]))
    draw(model)
    model.save_pretrained(tmp_path / "same")
    read_peft(LoRA(bert(), ["x"], where="query", rank=2), "a", tmp_path / "same")  # what did not change may stay away
    for name, p in model.named_parameters():
        if "modules_to_save" in name:
            p.data.add_(1.0)
    model.save_pretrained(tmp_path / "a")
    with pytest.raises(BadInput, match=r"word_embeddings\.weight' whole, which is no head"):
        from_peft(bert(), {"a": tmp_path / "a"})
    lora = LoRA(bert(), ["x"], where="query", rank=2)
    pool = Pool.of_peft(lora, {"a": tmp_path / "a"}, budget=1 << 20)
    with pytest.raises(BadInput, match="is no head"), pool.route("a"):
        pass
