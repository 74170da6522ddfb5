"""With the library that made the checkpoints: folders saved by it merge, and what is written loads in it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pluribus.errors import BadInput
from pluribus.merging import merge
from pluribus.merging.bundle import bundle, export_container, homes_of
from pluribus.merging.folder import export_task

transformers = pytest.importorskip("transformers")


def _saved(folder: Path, family: str, sizes: dict[str, int]) -> dict[str, Any]:
    """A headless base and two classifiers with other labels, in folders of their names; the classifiers."""
    config_of = getattr(transformers, f"{family}Config")
    torch.manual_seed(0)
    getattr(transformers, f"{family}Model")(config_of(**sizes)).save_pretrained(folder / "base")
    models = {}
    for task, classes in (("cars", 3), ("birds", 5)):
        config = config_of(**sizes, id2label={i: f"{task} {i}" for i in range(classes)})
        models[task] = getattr(transformers, f"{family}ForSequenceClassification")(config).eval()
        models[task].save_pretrained(folder / task)
    return models


def test_saved_classifiers_merge_and_load_again(tmp_path: Path) -> None:
    """A headless base, classifiers with other class counts and a prefix: AutoModel reads the trunk, a task its own folder."""
    sizes = {
        "vocab_size": 20,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 12,
    }
    models = _saved(tmp_path, "Bert", sizes)
    experts = {task: tmp_path / task for task in models}
    done = merge(tmp_path / "base", experts, "average", out=tmp_path / "out")
    assert {t: set(h) for t, h in done.heads.items()} == {t: {"classifier.weight", "classifier.bias"} for t in models}
    trunk, info = transformers.AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    wanted = sum(m.bert.encoder.layer[1].output.dense.weight for m in models.values()) / 2
    assert torch.allclose(trunk.encoder.layer[1].output.dense.weight, wanted, atol=1e-6)
    export_task(tmp_path / "out", "birds", tmp_path / "hf")
    again, info = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert again.config.num_labels == 5
    assert torch.equal(again.classifier.weight, models["birds"].classifier.weight)
    # one expert, merged and exported, is the expert
    merge(tmp_path / "base", {"cars": experts["cars"]}, "tsv_m", out=tmp_path / "alone")
    export_task(tmp_path / "alone", "cars", tmp_path / "c")
    same = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "c")
    ids = torch.randint(0, 20, (2, 6))
    assert torch.equal(same.eval()(ids).logits, models["cars"](ids).logits)


def test_an_adapters_task_and_another_dtype_export_to_what_loads(tmp_path: Path) -> None:
    """An adapter brings no configuration: its head's classes are counted. A bf16 expert does not round the merged trunk."""
    peft = pytest.importorskip("peft")
    sizes = {
        "vocab_size": 20,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 12,
    }
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(**sizes)).save_pretrained(tmp_path / "base")
    half = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, num_labels=4)).bfloat16()
    half.save_pretrained(tmp_path / "half")
    model = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    adapted.save_pretrained(tmp_path / "lora")
    merge(tmp_path / "base", [tmp_path / "half", tmp_path / "lora"], "average", out=tmp_path / "out")
    for task, classes in (("half", 4), ("lora", 3)):
        export_task(tmp_path / "out", task, tmp_path / f"x{task}")
        found, info = transformers.AutoModelForSequenceClassification.from_pretrained(
            tmp_path / f"x{task}", output_loading_info=True
        )
        assert not info["missing_keys"], task
        assert found.config.num_labels == classes
        assert found.dtype == torch.float32


@pytest.mark.parametrize("road", ["experts", "emr", "tall_masks", "twin", "lora"])
def test_a_containers_task_exports_to_what_it_serves(tmp_path: Path, road: str) -> None:
    """What other programs load must be the weights that the container answers with, under the expert's own labels."""
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    models = _saved(tmp_path, "Bert", sizes)
    experts = {task: tmp_path / task for task in models}
    container = bundle(tmp_path / "base", experts, road)
    container.save(tmp_path / "model", homes_of(experts))
    export_container(tmp_path / "model", "birds", tmp_path / "hf")
    again, info = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert again.config.id2label[4] == "birds 4"
    held = again.state_dict()
    assert all(torch.equal(held[name], value) for name, value in container.state("birds").items() if name in held)
    assert torch.equal(held["classifier.weight"], models["birds"].classifier.weight)
    if road == "experts":
        ids = torch.randint(0, 20, (2, 6))
        assert torch.equal(again.eval()(ids).logits, models["birds"](ids).logits)
    with pytest.raises(BadInput, match="exists already"):
        export_container(tmp_path / "model", "cars", tmp_path / "hf")
    with pytest.raises(BadInput, match="unknown task 'trees'"):
        export_container(tmp_path / "model", "trees", tmp_path / "trees")


def test_feed_forward_maps_called_fc_are_no_heads(tmp_path: Path) -> None:
    """GPT-2 calls a map of its blocks `c_fc`, as classifiers are called elsewhere: experts with other labels still merge it."""
    sizes = {"vocab_size": 20, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 12, "pad_token_id": 0}
    models = _saved(tmp_path, "GPT2", sizes)
    done = merge(tmp_path / "base", {task: tmp_path / task for task in models}, "average", out=tmp_path / "out")
    assert done.heads == dict.fromkeys(models, ("score.weight",))
    trunk, info = transformers.AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    wanted = sum(m.transformer.h[0].mlp.c_fc.weight for m in models.values()) / 2
    assert torch.allclose(trunk.h[0].mlp.c_fc.weight, wanted, atol=1e-6)
    # an adapter brings no configuration: its classes are counted at the head, not at what is called like one
    peft = pytest.importorskip("peft")
    model = transformers.GPT2ForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=4)
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    peft.get_peft_model(model, lora).save_pretrained(tmp_path / "lora")
    merge(tmp_path / "base", {"moths": tmp_path / "lora"}, "average", out=tmp_path / "from_lora")
    export_task(tmp_path / "from_lora", "moths", tmp_path / "moths")
    moths = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "moths")
    assert moths.config.num_labels == 4
    assert torch.equal(moths.score.weight, model.score.modules_to_save["default"].weight)
