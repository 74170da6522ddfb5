"""The hub: the same answers as the model it comes from, under any budget, while tasks come and go; and what leaves as PEFT."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pluribus.data.prepared import Prepared, prepare
from pluribus.data.splitting import split
from pluribus.data.table import Table
from pluribus.errors import BadInput
from pluribus.modeling import Budget, load
from pluribus.tasks import Task
from pluribus.text.adapted import TextLoRAPerTask, TextLoRAShared
from pluribus.text.export import export_peft
from pluribus.text.hub import TextHub
from pluribus.text.network import TextNetwork

SMALL = {"backbone": "small", "layers": 1, "width": 32, "heads": 2, "vocabulary": 300, "max_length": 24, "epochs": 2}
NAMES = ("good", "size", "kind")


@pytest.fixture(scope="module")
def data() -> Prepared:
    r = np.random.default_rng(0)
    nouns, words = np.array(["cat", "dog", "fox"]), np.array(["good", "bad", "grand", "poor"])
    noun, word, count = r.integers(0, 3, 300), r.integers(0, 4, 300), r.integers(1, 6, 300)
    body = [f"a {words[w]} {nouns[n]} " + "very " * c for n, w, c in zip(noun, word, count)]
    frame = pd.DataFrame({"body": body, "good": (word % 2 == 0) * 1.0, "size": 10.0 + count, "kind": nouns[noun]})
    table = Table(frame, ["good:binary", "size:regression", "kind:multiclass"], split="random", text=["body"])
    whole = prepare(table, split(table, 0))
    return whole.with_parts(train=whole.parts["train"], valid=whole.parts["valid"])


@pytest.fixture(scope="module")
def fitted(data: Prepared) -> TextNetwork:
    made = TextLoRAPerTask(**SMALL).fit(data, Budget(60.0), 0)
    for p in made.models[0].adapters.parameters():  # far from zero, so that a wrong adapter shows
        p.data += 0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    return made


def _each(hub: TextHub) -> int:
    return hub.pool.each + 4 * 3 * 33


def test_answers_as_the_model_it_comes_from(fitted: TextNetwork, data: Prepared, tmp_path: Path) -> None:
    """Rows of different tasks in one batch, and all rows of all tasks; before and after the folder."""
    hub = TextHub.of(fitted)
    rows = np.arange(60)
    expected = fitted.scores(data, rows, NAMES)
    hub.save(tmp_path / "hub")
    again = load(tmp_path / "hub")
    assert isinstance(again, TextHub)
    for one in (hub, again):
        found = one.scores(data, rows, NAMES)
        for name in NAMES:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)
        wanted = {"kind": np.array([3, 9]), "good": np.array([4, 9, 30]), "size": np.empty(0, np.int64)}
        mixed = one.answer(data, wanted)
        for name, where in wanted.items():
            np.testing.assert_allclose(mixed[name], expected[name][where], rtol=1e-4, atol=1e-5)
    table = pd.DataFrame({"body": ["a good cat", None]})
    pd.testing.assert_frame_equal(again.predict(table), hub.predict(table))


def test_a_small_budget_changes_no_answer(fitted: TextNetwork, data: Prepared) -> None:
    """Room for one task at a time: adapters come and go, the numbers stay, the budget is kept."""
    whole, tight = TextHub.of(fitted), TextHub.of(fitted)
    tight = TextHub.of(fitted, budget=_each(tight))
    rows = np.arange(40)
    a, b = whole.scores(data, rows, NAMES), tight.scores(data, rows, NAMES)
    for name in NAMES:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-5)
    assert tight.pool.evictions >= 2
    assert tight.pool.used <= tight.pool.budget
    assert len(tight.pool.resident) == 1


def test_tasks_come_and_go(fitted: TextNetwork, data: Prepared, tmp_path: Path) -> None:
    """A task added at run time answers at once beside the others, travels with the folder, and is forgotten on demand."""
    hub = TextHub.of(fitted)
    state, head = hub._load("good")
    for i in range(40):
        hub.add(Task(f"copy{i}", "binary", classes=("no", "yes")), state, head)
    rows = np.arange(20)
    found = hub.answer(data, {"copy7": rows, "good": rows, "size": rows})
    np.testing.assert_allclose(found["copy7"], found["good"], rtol=1e-5, atol=1e-6)
    hub.remove("good")
    assert "good" not in [task.name for task in hub.tasks]
    with pytest.raises(BadInput, match="unknown task 'good'"):
        hub.predict(pd.DataFrame({"body": ["x"]}), ["good"])
    hub.save(tmp_path / "hub")
    again = load(tmp_path / "hub")
    np.testing.assert_allclose(again.scores(data, rows, ["copy7"])["copy7"], found["copy7"], rtol=1e-5, atol=1e-6)


def test_threads_ask_for_different_tasks(fitted: TextNetwork, data: Prepared) -> None:
    """Under a budget for two tasks, four threads: nobody gets another's adapter."""
    hub = TextHub.of(fitted, budget=3 * _each(TextHub.of(fitted)))
    rows = np.arange(30)
    expected = fitted.scores(data, rows, NAMES)
    wrong: list[str] = []

    def ask(name: str) -> None:
        for _ in range(5):
            if not np.allclose(hub.scores(data, rows, [name])[name], expected[name], rtol=1e-3, atol=1e-4):
                wrong.append(name)

    threads = [threading.Thread(target=ask, args=(NAMES[i % 3],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_embeddings_are_the_task_s_features(fitted: TextNetwork) -> None:
    hub = TextHub.of(fitted)
    texts = ["a good cat", "a poor fox very very", ""]
    found = hub.embed(texts, "good")
    weight, bias = hub.pool.heads["good"]
    p = torch.sigmoid(torch.from_numpy(found) @ weight[0] + bias[0])
    said = hub.predict(pd.DataFrame({"body": texts}), ["good"])["good__p"]
    if "good" not in hub.calibration:
        np.testing.assert_allclose(said, p.numpy(), rtol=1e-4, atol=1e-5)
    assert np.abs(found - hub.embed(texts, "kind")).max() > 1e-3


def test_serves_json(fitted: TextNetwork) -> None:
    """`pluribus serve` takes it: rows with text, some tasks of one request."""
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from pluribus.serving.server import application

    hub = TextHub.of(fitted)
    with TestClient(application(hub)) as client:
        reply = client.post("/predict?tasks=good&tasks=kind", json={"rows": [{"body": "a good cat"}, {"body": None}]})
        assert reply.status_code == 200, reply.text
        first = reply.json()["rows"][0]["values"]
    expected = hub.predict(pd.DataFrame({"body": ["a good cat", None]}), ["good", "kind"])
    assert first["kind"] == expected["kind"].iloc[0]
    assert first["good__p"] == pytest.approx(expected["good__p"].iloc[0], rel=1e-4)


def test_tasks_come_and_go_while_the_server_runs(fitted: TextNetwork) -> None:
    """Three hundred adapters in a budget of eight, added to a hub that is being served; an earlier one is forgotten."""
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from pluribus.serving.server import application

    hub = TextHub.of(fitted)
    hub = TextHub.of(fitted, budget=8 * _each(hub))
    state, head = hub._load("good")
    with TestClient(application(hub)) as client:

        def ask(*names: str) -> Any:
            return client.post("/predict", json={"rows": [{"body": "a good cat"}], "tasks": list(names)})

        before = ask("good").json()["rows"][0]["values"]
        assert ask("n7").status_code == 422
        for i in range(300):
            hub.add(Task(f"n{i}", "binary", classes=("no", "yes")), state, head)
        reply = ask(*(f"n{i}" for i in range(300)), "good")
        assert reply.status_code == 200, reply.text
        found = reply.json()["rows"][0]["values"]
        assert len(found) == 2 * 301
        assert all(found[f"n{i}__p"] == pytest.approx(before["good__p"], rel=1e-4) for i in range(300))
        assert hub.pool.evictions > 280
        assert hub.pool.used <= hub.pool.budget
        hub.remove("n7")
        assert "n7" in ask("n7").text
        assert ask("n7").status_code == 422
        assert ask("n8").status_code == 200


def test_tags_of_a_hub(tmp_path: Path) -> None:
    """Rows of any length, some beyond the longest that was fitted, through a hub: one list a row, as the model's own."""
    words = [["ada", "came"], ["bo", "left", "ada"], ["who"]] * 40
    tags = [["B-PER" if word in ("ada", "bo") else "O" for word in row] for row in words]
    table = Table(pd.DataFrame({"words": words, "tags": tags}), ["tags"], split="random")
    whole = prepare(table, split(table, 0))
    parts = {name: whole.parts[name] for name in ("train", "valid")}
    fitted = TextLoRAPerTask(**SMALL).fit(whole.with_parts(**parts), Budget(60.0), 0)
    hub = TextHub.of(fitted)
    hub.save(tmp_path / "hub")
    asked = pd.DataFrame({"words": [["ada"] * 900, ["ada"], "who left", None, *(["bo left"] * 400)]})
    found = load(tmp_path / "hub").predict(asked)["tags"]
    assert [len(each) for each in found[:4]] == [900, 1, 2, 0]
    assert found.tolist() == fitted.predict(asked)["tags"].tolist()


@pytest.mark.peer
def test_exported_folder_is_peft_s(fitted: TextNetwork, data: Prepared, tmp_path: Path) -> None:
    """PEFT on the same backbone answers as the task does; what has no LoRA is refused."""
    peft = pytest.importorskip("peft")
    folder = export_peft(fitted, "kind", tmp_path / "peft")
    hub = TextHub.of(fitted)
    backbone: Any = TextHub.of(fitted).encoder.backbone
    plain = dict(backbone.state_dict())
    from pluribus.text import backbones

    base: Any = backbones.empty(hub.config["backbone"])
    base.load_state_dict(plain)
    theirs = peft.PeftModel.from_pretrained(base, str(folder)).eval()
    ids = hub.tokenizer.encode(["a good cat very"]).ids
    with torch.no_grad():
        states = theirs(input_ids=torch.from_numpy(ids).long()[None]).last_hidden_state.mean(1)
    np.testing.assert_allclose(states[0], hub.embed(["a good cat very"], "kind")[0], rtol=1e-3, atol=1e-4)
    with pytest.raises(BadInput, match="exists already"):
        export_peft(fitted, "kind", tmp_path / "peft")
    with pytest.raises(BadInput, match="none is named"):
        export_peft(fitted, None, tmp_path / "other")


def test_what_does_not_fit(fitted: TextNetwork, data: Prepared) -> None:
    shared = TextLoRAShared(**{**SMALL, "epochs": 1}).fit(data, Budget(60.0), 0)
    with pytest.raises(BadInput, match="train text_lora_per_task"):
        TextHub.of(shared)
    hub = TextHub.of(fitted)
    state, head = hub._load("good")
    with pytest.raises(BadInput, match="'good' is there already"):
        hub.add(Task("good", "binary", classes=("n", "y")), state, head)
    with pytest.raises(BadInput, match="head of 'new'"):
        hub.add(Task("new", "multiclass", classes=("a", "b", "c")), state, head)
    name = next(key for key in state if key.endswith("A"))
    with pytest.raises(BadInput, match="another backbone, rank or place"):
        hub.add(Task("new", "binary", classes=("n", "y")), {**state, name: state[name][:, :3]}, head)
    with pytest.raises(BadInput, match="budget"):
        TextHub.of(fitted, budget=100)
