"""Merges behind the server: small transformers checkpoints, random but different, told apart bit by bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pluribus import load
from pluribus.errors import BadInput
from pluribus.merging import merge
from pluribus.merging.bundle import bundle, homes_of
from pluribus.merging.folder import export_task

transformers = pytest.importorskip("transformers", reason="the extra 'text' is not installed")

SIZES = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(25))]
LABELS = {"cars": ["slow", "fast"], "birds": ["owl", "tit", "crow"], "price": ["value"]}


def fine_tunes(folder: Path, *, tokenizer: bool = True, tasks: Any = LABELS) -> tuple[Path, dict[str, Path]]:
    """A headless BERT and a classifier of it for each task, moved a little."""
    torch.manual_seed(0)
    base = transformers.BertModel(transformers.BertConfig(**SIZES))
    base.save_pretrained(folder / "base")
    experts = {}
    for task, labels in tasks.items():
        named = dict(enumerate(labels))
        config = transformers.BertConfig(**SIZES, id2label=named, label2id={v: k for k, v in named.items()})
        model = transformers.BertForSequenceClassification(config)
        with torch.no_grad():
            for own, shared in zip(model.bert.parameters(), base.parameters()):
                own.copy_(shared + 0.02 * torch.randn_like(shared))
            model.classifier.weight.normal_()
        model.save_pretrained(folder / task)
        if tokenizer:
            _tokenizer(folder / task)
        experts[task] = folder / task
    if tokenizer:
        _tokenizer(folder / "base")
    return folder / "base", experts


def _tokenizer(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", "utf-8")
    about = {"tokenizer_class": "BertTokenizer", "model_max_length": 20, "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(about), "utf-8")


@pytest.fixture(scope="module", name="checkpoints")
def _checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    return fine_tunes(tmp_path_factory.mktemp("checkpoints"))


TEXTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10", "w11 unknown", None]


def _own(folder: Path) -> np.ndarray:
    """What transformers itself says of the texts."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        rows = [model(**tokenizer([text or ""], return_tensors="pt")).logits[0] for text in TEXTS]
    logits = torch.stack(rows).double()
    return (logits if logits.shape[1] == 1 else logits.softmax(-1)).numpy()


def _same(found: pd.DataFrame, experts: dict[str, Path]) -> None:
    np.testing.assert_allclose(found["cars__p"], _own(experts["cars"])[:, 1], atol=1e-5)
    np.testing.assert_allclose(found[[f"birds__p_{c}" for c in LABELS["birds"]]], _own(experts["birds"]), atol=1e-5)
    np.testing.assert_allclose(found["price"], _own(experts["price"])[:, 0], atol=1e-5)
    assert found["birds"].tolist() == [LABELS["birds"][i] for i in _own(experts["birds"]).argmax(1)]


def test_experts_answer_as_themselves(checkpoints: Any, tmp_path: Path) -> None:
    """The container that adds each expert in full says what the experts say, labels and units included."""
    base, experts = checkpoints
    bundle(base, experts, "experts").save(tmp_path / "c", homes_of(experts))
    model = load(tmp_path / "c")
    assert {t.name: t.kind for t in model.tasks} == {"cars": "binary", "birds": "multiclass", "price": "regression"}
    _same(model.predict(pd.DataFrame({"text": TEXTS})), experts)


@pytest.mark.parametrize("method", ["emr", "tall_masks", "twin", "lora"])
def test_whole_parts_answer_as_themselves(method: str, checkpoints: Any, tmp_path: Path) -> None:
    """One expert alone is stored exactly by every road (LoRA at full rank: but for what is no matrix)."""
    base, experts = checkpoints
    alone = {"birds": experts["birds"]}
    more: dict[str, Any] = {"twin": {"rank": None}, "lora": {"rank": 16}}.get(method, {})
    bundle(base, alone, method, **more).save(tmp_path / "c", homes_of(alone))
    found = load(tmp_path / "c").predict(pd.DataFrame({"text": TEXTS}))
    wanted = _own(experts["birds"])
    tolerance = 1e-4 if method in ("emr", "twin") else 0.2  # TALL masks drop entries, LoRA leaves embeddings and norms
    np.testing.assert_allclose(found[[f"birds__p_{c}" for c in LABELS["birds"]]], wanted, atol=tolerance)


def test_a_merged_folder_answers_as_its_exports(checkpoints: Any, tmp_path: Path) -> None:
    """`pluribus merge -o OUT` is an artefact: each task answers as its exported Hugging Face folder does."""
    base, experts = checkpoints
    merge(base, experts, "ties", out=tmp_path / "merged")
    exported = {task: export_task(tmp_path / "merged", task, tmp_path / f"hf-{task}") for task in experts}
    model = load(tmp_path / "merged")
    assert model.artefact == "merge" or model.container.method == "ties"
    _same(model.predict(pd.DataFrame({"text": TEXTS})), exported)


@pytest.mark.parametrize("method", ["average", "twin", "emr"])
def test_mixed_tasks_equal_per_task_ones(method: str, checkpoints: Any, tmp_path: Path) -> None:
    """Rows of different tasks in one batch give what a batch a task gives, to 1e-6."""
    base, experts = checkpoints
    bundle(base, experts, method).save(tmp_path / "c", homes_of(experts))
    model = load(tmp_path / "c")
    data = model.columns.prepare(pd.DataFrame({"text": TEXTS * 3}), model.tasks)
    wanted = {"cars": np.array([0, 3, 7]), "birds": np.array([1, 2, 3]), "price": np.array([0, 14])}
    together = model.answer(data, wanted)
    for task, rows in wanted.items():
        np.testing.assert_allclose(together[task], model.scores(data, rows, [task])[task], atol=1e-6)


@pytest.mark.parametrize("method", ["twin", "lora", "experts"])
def test_adding_a_task_changes_no_bit_of_the_others(method: str, checkpoints: Any, tmp_path: Path) -> None:
    """A container with one task more answers the others' rows with the same bits, also in one batch with the newcomer's."""
    base, experts = checkpoints
    two = {t: experts[t] for t in ("cars", "price")}
    more = {"shared": {}} if method == "twin" else {}
    if method == "twin":
        more = {"shared": bundle(base, two, "average").shared}
    small, large = (bundle(base, each, method, **more) for each in (two, experts))
    frame = pd.DataFrame({"text": TEXTS})
    answers = []
    for name, container, each in (("small", small, two), ("large", large, experts)):
        container.save(tmp_path / name, homes_of(each))
        answers.append(load(tmp_path / name).predict(frame, ["cars", "price"]))
    pd.testing.assert_frame_equal(*answers, check_exact=True)
    model = load(tmp_path / "large")
    data = model.columns.prepare(frame, model.tasks)
    rows = np.arange(len(frame))
    mixed = model.answer(data, {"cars": rows, "birds": rows[:2], "price": rows})
    np.testing.assert_array_equal(mixed["cars"], answers[0]["cars__p"])


def test_save_and_load(checkpoints: Any, tmp_path: Path) -> None:
    """As any artefact: saved again under a manifest with hashes, it predicts the same; damage is named."""
    base, experts = checkpoints
    bundle(base, experts, "twin", rank=2).save(tmp_path / "c", homes_of(experts))
    model = load(tmp_path / "c")
    model.thresholds = {"cars": 0.9}
    model.save(tmp_path / "again")
    again = load(tmp_path / "again")
    frame = pd.DataFrame({"text": TEXTS})
    pd.testing.assert_frame_equal(model.predict(frame), again.predict(frame))
    assert again.costs() == model.costs()
    assert model.costs().bytes == sum(model.container.bytes().values())
    file = tmp_path / "again" / "container" / "shared.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(BadInput, match="hash differs"):
        load(tmp_path / "again")


def test_served_with_selected_tasks(checkpoints: Any, tmp_path: Path, client_of: Any) -> None:
    """Over HTTP: text rows, selected tasks, each row's own error; the schema says what the model reads."""
    base, experts = checkpoints
    bundle(base, experts, "tsv_m").save(tmp_path / "c", homes_of(experts))
    model = load(tmp_path / "c")
    client = client_of(model)
    rows = [{"text": text} for text in TEXTS] + [{"text": 5}, {}]
    answer = client.post("/predict?tasks=cars,price", json={"rows": rows}).json()["rows"]
    expected = model.predict(pd.DataFrame({"text": TEXTS}), ["cars", "price"])
    assert [set(slot["values"]) for slot in answer[:5]] == [{"cars", "cars__p", "price"}] * 5
    np.testing.assert_allclose([slot["values"]["price"] for slot in answer[:5]], expected["price"], atol=1e-5)
    assert "takes text, not int 5" in answer[5]["error"]
    assert "lacks the column 'text'" in answer[6]["error"]
    document = client.get("/openapi.json").json()
    assert document["components"]["schemas"]["Row"]["properties"]["text"]["type"][0] == "string"


def test_token_ids_where_there_is_no_tokenizer(tmp_path: Path, client_of: Any) -> None:
    """Without a tokenizer rows are lists of ids; an id beyond the vocabulary fails its row alone."""
    base, experts = fine_tunes(tmp_path, tokenizer=False)
    bundle(base, experts, "emr").save(tmp_path / "c", homes_of(experts))
    model = load(tmp_path / "c")
    good = [2, 7, 8, 3]
    rows = [
        {"input_ids": good},
        {"input_ids": [2, 99]},
        {"input_ids": []},
        {"input_ids": [2, 1.5]},
        {"input_ids": good * 6},
        {"input_ids": "2 3"},
        {"input_ids": [2, "a"]},
    ]
    answer = client_of(model).post("/predict?tasks=birds", json={"rows": rows}).json()["rows"]
    own = transformers.AutoModelForSequenceClassification.from_pretrained(experts["birds"]).eval()
    state = bundle(base, experts, "emr").state("birds")
    own.load_state_dict(state)
    with torch.no_grad():
        wanted = own(torch.tensor([good])).logits.softmax(-1)[0]
    np.testing.assert_allclose([answer[0]["values"][f"birds__p_{c}"] for c in LABELS["birds"]], wanted, atol=1e-5)
    assert all(slot["failed"] == {"birds": "the prediction is not finite"} for slot in answer[1:5])
    assert "takes a list" in answer[5]["error"]
    assert "takes a number" in answer[6]["error"]


def test_images_as_flat_lists(tmp_path: Path) -> None:
    """A vision transformer reads channels × height × width numbers a row; another count is not predicted."""
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 8,
        "patch_size": 4,
        "num_channels": 1,
    }
    torch.manual_seed(0)
    base = transformers.ViTModel(transformers.ViTConfig(**sizes), add_pooling_layer=False)
    base.save_pretrained(tmp_path / "base")
    experts = {}
    for task, classes in (("a", 2), ("b", 3)):
        model = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, num_labels=classes)).eval()
        with torch.no_grad():
            for own, shared in zip(model.vit.parameters(), base.parameters()):
                own.copy_(shared + 0.05 * torch.randn_like(shared))
        model.save_pretrained(tmp_path / task)
        experts[task] = tmp_path / task
    bundle(tmp_path / "base", experts, "experts").save(tmp_path / "c", homes_of(experts))
    model = load(tmp_path / "c")
    pixels = torch.rand(3, 1, 8, 8)
    frame = pd.DataFrame({"pixel_values": [p.flatten().tolist() for p in pixels]})
    found = model.predict(frame)
    for task, columns in (("a", ["a__p"]), ("b", [f"b__p_LABEL_{i}" for i in range(3)])):
        own = transformers.AutoModelForImageClassification.from_pretrained(experts[task]).eval()
        with torch.no_grad():
            wanted = own(pixels).logits.softmax(-1)
        np.testing.assert_allclose(found[columns], wanted[:, 1:] if task == "a" else wanted, atol=1e-5)
    frame.loc[1, "pixel_values"] = [0.5] * 70
    assert model.predict(frame)["a__p"].isna().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda about: about.update(architectures=["os"]), "no classifier of transformers"),
        (lambda about: about.update(architectures=["BertModel"]), "no classifier of transformers"),
        (lambda about: about.pop("architectures"), "no configuration that names its architecture"),
        (lambda about: about.update(model_type="berd"), "model type"),
        (lambda about: about.update(problem_type="multi_label_classification"), "several labels"),
    ],
)
def test_what_cannot_be_served_is_named(change: Any, words: str, checkpoints: Any, tmp_path: Path) -> None:
    """A folder that names no classifier, or something that is none, is refused in one line; nothing named there is run."""
    base, experts = checkpoints
    alone = {"birds": experts["birds"]}
    bundle(base, alone, "average").save(tmp_path / "c", homes_of(alone))
    about = json.loads((tmp_path / "c" / "pluribus.json").read_text())
    change(about["tasks"][0]["config"])
    (tmp_path / "c" / "pluribus.json").write_text(json.dumps(about))
    with pytest.raises(BadInput, match=words):
        load(tmp_path / "c")


def test_a_container_without_a_configuration_says_how_it_is_served(tmp_path: Path) -> None:
    """Weights of an unknown module: Python serves them."""
    base = {"w.weight": torch.randn(3, 3)}
    bundle(base, {"a": {"w.weight": torch.randn(3, 3)}}, "average").save(tmp_path / "c")
    with pytest.raises(BadInput, match=r"MergeContainer\.serve\(model\)"):
        load(tmp_path / "c")


@pytest.mark.parametrize(("method", "times"), [("average", 1), ("twin", 3)])
def test_a_row_asked_for_several_tasks_runs_as_rarely_as_it_can(
    method: str, times: int, checkpoints: Any, tmp_path: Path
) -> None:
    """The trunk of a plain merge sees a row once for all its tasks, a container's once for each; answers are those of single
    asks, also where rows are asked for some tasks, or twice."""
    base, experts = checkpoints
    bundle(base, experts, method).save(tmp_path / "c", homes_of(experts))
    model: Any = load(tmp_path / "c")
    assert model.served.plan == "batched"
    assert model.served.plain == (method == "average")
    data = model.columns.prepare(pd.DataFrame({"text": TEXTS * 2}), model.tasks)
    seen = []
    layer = next(m for n, m in model.served.model.named_modules() if n.endswith("encoder.layer.0"))
    handle = layer.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    every = np.arange(len(TEXTS) * 2)
    model.answer(data, dict.fromkeys(LABELS, every))
    assert sum(seen) == times * len(every)
    handle.remove()
    wanted = {"price": np.array([3, 0, 0]), "cars": np.array([0, 7]), "birds": np.array([7, 3, 1])}
    together = model.answer(data, wanted)
    for task, rows in wanted.items():
        alone = np.stack([model.answer(data, {task: rows[i : i + 1]})[task][0] for i in range(len(rows))])
        np.testing.assert_allclose(together[task], alone, atol=1e-6)


FAMILIES = {
    "RoBERTa": ("Roberta", {**SIZES, "max_position_embeddings": 22, "pad_token_id": 1}, "layer.0"),
    "DistilBERT": (
        "DistilBert",
        {"vocab_size": 30, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 20},
        "layer.0",
    ),
    "GPT-2": ("GPT2", {"vocab_size": 30, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 20, "pad_token_id": 0}, "h.0"),
    "LLaMA": ("Llama", {**SIZES, "pad_token_id": 0}, "layers.0"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_of_two_maps_and_decoders_share_the_trunk(family: str, tmp_path: Path) -> None:
    """RoBERTa and DistilBERT have heads of two maps, decoders pick a token behind the head: a merge of them answers a row's tasks
    in one pass of the trunk all the same, as the exported tasks answer; a text may fill all positions."""
    kind, sizes, first = FAMILIES[family]
    torch.manual_seed(0)
    made = getattr(transformers, f"{kind}Config")
    base = getattr(transformers, f"{kind}Model")(made(**sizes))
    base.save_pretrained(tmp_path / "base")
    experts = {}
    for task, labels in LABELS.items():
        named = dict(enumerate(labels))
        config = made(**sizes, id2label=named, label2id={v: k for k, v in named.items()})
        model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.02 * torch.randn_like(p))
        model.save_pretrained(tmp_path / task)
        experts[task] = tmp_path / task
    merge(tmp_path / "base", experts, "average", out=tmp_path / "merged")
    model: Any = load(tmp_path / "merged")
    assert (model.served.plan, model.served.plain, model.longest) == ("batched", True, 20)
    random = np.random.default_rng(0)
    ids = [random.integers(2, 30, n).tolist() for n in (3, 20, 1, 7)]
    data = model.columns.prepare(pd.DataFrame({"input_ids": ids}), model.tasks)
    seen: list[int] = []
    layer = next(m for n, m in model.served.model.named_modules() if n.endswith(first))
    layer.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    found = model.answer(data, {"price": np.arange(4), "cars": np.array([0, 3, 3]), "birds": np.array([2, 1, 0])})
    assert sum(seen) == 4
    for task, rows in (("price", [0, 1, 2, 3]), ("cars", [0, 3, 3]), ("birds", [2, 1, 0])):
        export_task(tmp_path / "merged", task, tmp_path / f"hf-{task}")
        own = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / f"hf-{task}").eval()
        with torch.no_grad():
            logits = torch.cat([own(torch.tensor([ids[row]])).logits for row in rows]).double()
        wanted = logits[:, 0] if task == "price" else logits.softmax(-1)
        np.testing.assert_allclose(found[task], wanted[:, 1] if task == "cars" else wanted, atol=1e-5)


def test_two_text_columns_are_read_as_a_pair(tmp_path: Path) -> None:
    """A task whose configuration names two columns gets them as transformers' pair, token types included; a missing second text
    is none; a task with one column stands beside it."""
    base, experts = fine_tunes(tmp_path)
    path = experts["birds"] / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "text_columns": ["claim", "proof"]}))
    merge(base, experts, "average", out=tmp_path / "merged")
    model: Any = load(tmp_path / "merged")
    assert [i.name for i in model.columns.inputs] == ["text", "claim", "proof"]
    frame = pd.DataFrame({"text": ["w1", "w2"], "claim": ["w3 w4 w5", "w6"], "proof": ["w7 w8", None]})
    found = model.predict(frame)
    own = export_task(tmp_path / "merged", "birds", tmp_path / "own")
    single = transformers.AutoModelForSequenceClassification.from_pretrained(own).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(own)
    with torch.no_grad():
        pair = single(**tokenizer("w3 w4 w5", "w7 w8", return_tensors="pt")).logits.softmax(-1)
        swapped = single(**tokenizer("w7 w8", "w3 w4 w5", return_tensors="pt")).logits.softmax(-1)
        alone = single(**tokenizer("w6", return_tensors="pt")).logits.softmax(-1)
    names = [f"birds__p_{c}" for c in LABELS["birds"]]
    np.testing.assert_allclose(found[names], torch.cat([pair, alone]).numpy(), atol=1e-5)
    assert not np.allclose(swapped, pair, atol=1e-4)  # the order matters to this model
    path.write_text(json.dumps({**json.loads(path.read_text()), "text_columns": ["a", "b", "c"]}))
    merge(base, experts, "average", out=tmp_path / "three")
    with pytest.raises(BadInput, match=r"birds.*text_columns|text_columns"):
        load(tmp_path / "three")
