"""Roads over text: what trains and what does not, cached features, batches of similar length, pairs, several columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pluribus import catalog
from pluribus.data.prepared import Prepared, prepare
from pluribus.data.splitting import split
from pluribus.data.table import Table
from pluribus.errors import BadInput
from pluribus.modeling import Budget, load
from pluribus.text.buckets import cut, waste
from pluribus.text.candidates import Ready, TextFrozen, TextFull, TextFullPerTask, cached
from pluribus.text.encoder import TOKENS
from pluribus.text.network import TextNetwork

SMALL = {"backbone": "small", "layers": 1, "width": 32, "heads": 2, "vocabulary": 800, "max_length": 32}


def ready(frame: pd.DataFrame, targets: list[str], **roles: Any) -> Prepared:
    table = Table(frame, targets, split="random", **roles)
    whole = prepare(table, split(table, 0))
    return whole.with_parts(train=whole.parts["train"], valid=whole.parts["valid"])


@pytest.fixture(scope="module")
def questions(trec: Any) -> Prepared:
    frame = trec.assign(count=[1.0 if "how many" in text.lower() else 0.0 for text in trec["body"]])
    frame.loc[::3, "count"] = np.nan
    return ready(frame, ["topic:multiclass", "count:binary"], text=["body"])


def test_learns_from_text(questions: Prepared) -> None:
    """A bag of nothing would stay at chance; "how many" is in the words."""
    fitted = TextFull(**SMALL, epochs=6).fit(questions, Budget(120.0), 0)
    cells = questions.labelled("count", "valid")
    p = fitted.scores(questions, cells.rows, ["count"])["count"]
    assert p[cells.values == 1].min() > p[cells.values == 0].mean()
    topics = questions.labelled("topic", "valid")
    right = fitted.scores(questions, topics.rows, ["topic"])["topic"].argmax(1) == topics.values
    assert right.mean() > 0.6


def test_cached_features_are_those_of_the_model(questions: Prepared) -> None:
    """Training on the cache must be training on what is served: the same numbers, and the backbone untouched."""
    torch.manual_seed(0)
    made = Ready.of(questions, TextFrozen(**SMALL).settings)
    model = made.model().eval()
    data = cached(model, made.data)
    rows = torch.tensor([7, 300, 11, 5])
    with torch.no_grad():
        slow = model.encoder(made.data.batch(rows).inputs, {}).main
        fast = model.encoder(data.batch(rows).inputs, {}).main
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-6)
    fitted = TextFrozen(**SMALL, epochs=3).fit(questions, Budget(60.0), 0)
    torch.manual_seed(0)
    before = Ready.of(questions, fitted.record["settings"]).model().encoder.state_dict()
    after = fitted.models[0].encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert fitted.record["trained"] == sum(p.numel() for p in fitted.models[0].heads.parameters())


def test_a_specialist_is_the_same_in_any_company(questions: Prepared) -> None:
    """Nothing is shared: dropping a task changes no bit of the other's predictions."""
    short = {**SMALL, "epochs": 1, "tokenizer": "bpe"}
    both = TextFullPerTask(**short).fit(questions, Budget(60.0), 0)
    alone = TextFullPerTask(**short).fit(questions.only(["topic"]), Budget(60.0), 0)
    rows = questions.parts["valid"]
    a, b = (fitted.scores(questions, rows, ["topic"])["topic"] for fitted in (both, alone))
    np.testing.assert_array_equal(a, b)
    assert len(both.models) == 2


def test_pairs_see_both_texts(tmp_path: Path) -> None:
    """Two text columns are one pair: equality of the halves can be learnt, and the order matters."""
    r = np.random.default_rng(0)
    words = np.array(["red", "green", "blue", "grey"])
    first, second = r.integers(0, 4, 900), r.integers(0, 4, 900)
    frame = pd.DataFrame({"a": words[first], "b": words[second], "same": (first == second) * 1.0, "gap": first - second * 1.0})
    data = ready(frame, ["same:binary", "gap:regression"], text=["a", "b"])
    fitted = TextFull(**{**SMALL, "epochs": 20, "patience": 20, "dropout": 0.0}).fit(data, Budget(120.0), 0)
    rows = data.labelled("gap", "valid").rows
    gap = fitted.scores(data, rows, ["gap"])["gap"]
    assert np.abs(gap - data.labelled("gap", "valid").values).mean() < 0.7
    fitted.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert isinstance(again, TextNetwork)
    assert again.config["text"] == ["a", "b"]
    table = frame.head(4)
    swapped = table.rename(columns={"a": "b", "b": "a"})
    assert (again.predict(table)["gap"] - again.predict(swapped)["gap"]).abs().max() > 0.1


def test_numbers_beside_a_text_are_read(trec: Any) -> None:
    """A target that only the number column knows."""
    r = np.random.default_rng(0)
    x = r.normal(size=len(trec))
    data = ready(trec.assign(x=x, y=3 * x, z=(x > 0) * 1.0), ["y:regression", "z:binary"], text=["body"], ignore=["topic"])
    cells = data.labelled("y", "valid")
    with_x, without = (
        TextFull(**SMALL, epochs=4, beside=beside).fit(data, Budget(60.0), 0).scores(data, cells.rows, ["y"])["y"]
        for beside in (True, False)
    )
    assert np.abs(with_x - cells.values).mean() < 0.5 * np.abs(without - cells.values).mean()


def test_a_whole_folder_without_its_origin(questions: Prepared, tmp_path: Path) -> None:
    """The artefact answers after the backbone's folder is gone, and says so where its own files are damaged."""
    from transformers import AutoConfig, AutoModel

    from pluribus.text import backbones
    from pluribus.text.tokens import Tokenizer

    origin = tmp_path / "origin"
    tokenizer = Tokenizer.train(["what is how many the of"] * 3, size=100)
    config = backbones.small(vocabulary=120, layers=1, width=16, heads=2, max_length=9, pad=0, dropout=0.0)
    torch.manual_seed(1)
    AutoModel.from_config(AutoConfig.for_model(**config)).save_pretrained(origin)
    tokenizer.write(origin)
    fitted = TextFrozen(**{**SMALL, "backbone": str(origin), "epochs": 2}).fit(questions, Budget(60.0), 0)
    assert fitted.record["max_length"] == 9  # not the 32 asked for: the backbone has no more positions
    before = fitted.scores(questions, np.arange(9), ["topic"])["topic"]
    fitted.save(tmp_path / "model")
    for path in sorted(origin.iterdir()):
        path.unlink()
    np.testing.assert_array_equal(load(tmp_path / "model").scores(questions, np.arange(9), ["topic"])["topic"], before)
    (tmp_path / "model" / "tokenizer.json").write_text("{}", "utf-8")
    with pytest.raises(BadInput, match=r"tokenizer.json.*is not what was saved"):
        load(tmp_path / "model")


def test_frozen_models_of_a_study_store_one_backbone(questions: Prepared, tmp_path: Path) -> None:
    """Trials of one seed share the backbone's file and answer as before; a model whose backbone file is gone says so; folders
    in which everything is one file are read."""
    from safetensors.torch import load_file, save_file

    from pluribus.study.journal import Journal
    from pluribus.study.plan import Trial
    from pluribus.study.trial import run_trial

    questions.save(tmp_path / "prepared")
    with Journal(tmp_path / "trials") as journal:
        for epochs in (1, 2):
            trial = Trial("final", "text_frozen", {**SMALL, "epochs": epochs}, 0, 60.0, epochs)
            assert run_trial(str(tmp_path / "prepared"), str(journal.scratch), trial, 0)["status"] == "done"
            journal.keep(trial)
    one, two = (tmp_path / "trials" / f"final-text_frozen-{i}-s0" / "model" for i in (1, 2))
    assert (one / "backbone.safetensors").samefile(two / "backbone.safetensors")
    assert not (one / "network.safetensors").samefile(two / "network.safetensors")
    rows = np.arange(5)
    found = load(two).scores(questions, rows, ["topic"])["topic"]
    (one / "backbone.safetensors").unlink()
    with pytest.raises(BadInput, match=r"backbone\.safetensors"):
        load(one)
    held = {**load_file(two / "network.safetensors"), **load_file(two / "backbone.safetensors")}
    models = [TextNetwork.read(two, {"config": load(two).config}, questions.tasks, questions.columns)]  # type: ignore[attr-defined]
    save_file(held, two / "network.safetensors")
    (two / "backbone.safetensors").unlink()
    models.append(TextNetwork.read(two, {"config": models[0].config}, questions.tasks, questions.columns))
    for model in models:
        np.testing.assert_array_equal(model.scores(questions, rows, ["topic"])["topic"], found)


def test_what_does_not_fit(questions: Prepared, mixed: Prepared, tmp_path: Path) -> None:
    assert TextFull().unfit(mixed) == "the table has no text column"
    for entry in catalog.entries(family="candidate"):
        if entry.extra == "text":
            assert entry.resolve()().unfit(mixed) is not None
    with pytest.raises(BadInput, match="epochs must be a whole number of at least 1, not 0"):
        TextFull(epochs=0).fit(questions, Budget(10.0), 0)
    with pytest.raises(BadInput, match="no such folder"):
        TextFull(backbone=str(tmp_path / "no")).fit(questions, Budget(10.0), 0)
    origin = tmp_path / "origin"
    origin.mkdir()
    config = '{"model_type": "bert", "max_position_embeddings": 16, "vocab_size": 9, "hidden_size": 8, "num_attention_heads": 2}'
    (origin / "config.json").write_text(config, "utf-8")
    with pytest.raises(BadInput, match="has no tokenizer"):
        TextFull(**{**SMALL, "backbone": str(origin)}).fit(questions, Budget(10.0), 0)
    with pytest.raises(BadInput, match=r"the tokenizer has .* tokens, the backbone .* knows 9"):
        TextFull(**{**SMALL, "backbone": str(origin), "tokenizer": "bpe"}).fit(questions, Budget(10.0), 0)


def test_hostile_cells_are_answered(questions: Prepared) -> None:
    """Missing, empty, a megabyte, broken Unicode: each gets a finite answer, whatever it stands beside."""
    fitted = TextFrozen(**SMALL, epochs=1).fit(questions, Budget(60.0), 0)
    bodies = [None, float("nan"), "", "x" * 1_000_000, "how many \ud800 people", "\x00", "how many people"]
    found = fitted.predict(pd.DataFrame({"body": bodies}, dtype=object))  # pandas' own strings refuse the surrogate
    assert np.isfinite(found["count__p"]).all()
    assert found["count__p"].iloc[0] == pytest.approx(found["count__p"].iloc[2], abs=1e-6)
    with pytest.raises(BadInput, match="body"):
        fitted.predict(pd.DataFrame({"other": ["x"]}))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=300), st.integers(1, 40), st.integers(1, 9))
def test_every_row_once(lengths: list[int], size: int, window: int) -> None:
    """An epoch is every row once, in batches no larger than asked."""
    held = np.array(lengths, np.int64)
    rows = np.arange(len(held), dtype=np.int64)
    batches = cut(held, rows, size, window, torch.Generator().manual_seed(0))
    assert sorted(np.concatenate(batches).tolist()) == rows.tolist()
    assert max(map(len, batches)) <= size
    assert 0 <= waste(held, batches) < 1


def test_bucketing_saves_padding(questions: Prepared) -> None:
    """On real questions, less than half of what plain shuffling wastes; the record says both."""
    made = Ready.of(questions, TextFull(**SMALL).settings)
    measured = made.waste(32, 0)
    assert measured["bucketed"] < 0.5 * measured["shuffled"]
    held = np.array([4, 2, 2])
    assert waste(held, [np.array([0, 1]), np.array([2])]) == pytest.approx(1 - 8 / 10)
    assert made.mean_length == int(np.ceil(made.data.ragged[TOKENS].lengths[questions.parts["train"]].mean()))
