"""Strangers' checkpoints: what merges, what is a head, what is refused, and what comes out on disk."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pluribus.errors import BadInput, NonFinite
from pluribus.files import safetensors
from pluribus.merging import merge
from pluribus.merging.folder import export_task
from pluribus.merging.source import open_source


def trunk(seed: int = 0, **changes: Tensor | None) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor | None] = {
        "embed_tokens.weight": torch.randn(6, 4, generator=g),
        "layer.0.weight": torch.randn(4, 4, generator=g),
        "layer.1.weight": torch.randn(4, 4, generator=g),
        "norm.bias": torch.randn(4, generator=g),
        "position_ids": torch.arange(6),
    }
    state.update({k.replace("__", "."): v for k, v in changes.items()})
    return {k: v for k, v in state.items() if v is not None}


def save(folder: Path, state: dict[str, Tensor], **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.save(folder / "model.safetensors", state)
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_heads_are_kept_per_task_and_never_merged(tmp_path: Path) -> None:
    """Absent from the base, or a classifier with another number of classes: each task's own."""
    base = save(tmp_path / "b", trunk(classifier__weight=torch.zeros(7, 4)))
    experts = {
        t: save(tmp_path / t, trunk(i + 1, classifier__weight=torch.full((c, 4), float(i)), extra_head__bias=torch.ones(c)))
        for i, (t, c) in enumerate([("x", 3), ("y", 7)])
    }
    done = merge(base, experts, "average", out=tmp_path / "out")
    assert set(done.heads["x"]) == set(done.heads["y"]) == {"classifier.weight", "extra_head.bias"}
    out = safetensors.load(tmp_path / "out")
    assert set(out) == set(trunk())
    head = safetensors.load(tmp_path / "out" / "heads" / "y.safetensors")
    assert torch.equal(head["classifier.weight"], torch.ones(7, 4))
    assert torch.equal(out["position_ids"], torch.arange(6))


def test_equal_sized_heads_with_other_labels_are_heads(tmp_path: Path) -> None:
    """Two binary classifiers have the same shape; their labels tell them apart."""
    base = save(tmp_path / "b", trunk(classifier__weight=torch.zeros(2, 4)), model_type="m")
    experts = {
        t: save(tmp_path / t, trunk(i, classifier__weight=torch.full((2, 4), float(i))), id2label={"0": t, "1": "no"})
        for i, t in enumerate("xy")
    }
    done = merge(base, experts, "average", out=tmp_path / "out")
    assert done.heads == {"x": ("classifier.weight",), "y": ("classifier.weight",)}
    assert any("labels differ" in note for note in done.notes)


@pytest.mark.parametrize(
    ("expert", "message"),
    [
        (trunk(layer__1__weight=None), r"tensor 'layer.1.weight' \(4, 4\) of the base is missing"),
        (trunk(layer__2__weight=torch.ones(4, 4)), r"extra tensor 'layer.2.weight' \(4, 4\), one more of a kind"),
        (trunk(layer__1__weight=torch.ones(4, 5)), r"'layer.1.weight' has the shape \(4, 5\), in the base \(4, 4\)"),
        (
            trunk(embed_tokens__weight=torch.ones(9, 4)),
            r"has the shape \(9, 4\), in the base \(6, 4\); its vocabulary is another",
        ),
        ({"conv.weight": torch.ones(3, 3), "fc.bias": torch.ones(3)}, "another architecture"),
        (trunk(norm__bias=torch.ones(4, dtype=torch.int8)), "is torch.int8, in the base torch.float32"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, expert: dict[str, Tensor], message: str) -> None:
    """Before any tensor data is read: tensor, model and both shapes in one line, nothing written."""
    good = save(tmp_path / "good", trunk(1))
    bad = save(tmp_path / "bad", expert)
    with pytest.raises(BadInput, match=message) as caught:
        merge(save(tmp_path / "b", trunk()), [good, bad], "ties", out=tmp_path / "out")
    assert "'bad'" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_another_model_type_is_another_base(tmp_path: Path) -> None:
    base, expert = save(tmp_path / "b", trunk(), model_type="bert"), save(tmp_path / "e", trunk(1), model_type="vit")
    with pytest.raises(BadInput, match="is a 'vit', the base a 'bert'"):
        merge(base, [expert], "average")


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_and_infinity_name_expert_and_tensor(tmp_path: Path, poison: float, dtype: torch.dtype) -> None:
    sick = {n: v.to(dtype) if v.is_floating_point() else v for n, v in trunk(2).items()}
    sick["layer.0.weight"][1, 2] = poison
    for method in ("average", "task_arithmetic", "ties", "tsv_m"):
        with pytest.raises(NonFinite, match=r"expert 'sick'.*'layer.0.weight' holds .* at flat index 6"):
            merge(trunk(), {"well": trunk(1), "sick": sick}, method, out=tmp_path / "out")
    assert not list(tmp_path.iterdir())
    kept = merge(trunk(), {"well": trunk(1), "sick": sick}, "ties", keep=["layer.0.*"])
    assert torch.equal(kept["layer.0.weight"], trunk()["layer.0.weight"])
    with pytest.raises(NonFinite, match="base"):
        merge({n: v.float() if v.is_floating_point() else v for n, v in sick.items()}, [trunk(1)], "ties")


def test_huge_finite_values_are_not_taken_for_infinity() -> None:
    base = {"x": torch.zeros(4)}
    found = merge(base, [{"x": torch.full((4,), 3e38)}], "task_arithmetic", scale=1.0)
    assert torch.equal(found["x"], torch.full((4,), 3e38))


def test_dtypes_may_differ_and_the_bases_comes_out() -> None:
    base = {n: v.bfloat16() if v.is_floating_point() else v for n, v in trunk().items()}
    experts = [trunk(1), {n: v.half() if v.is_floating_point() else v for n, v in trunk(2).items()}]
    found = merge(base, experts, "average")
    assert found["norm.bias"].dtype == torch.bfloat16
    wanted = ((experts[0]["norm.bias"] + experts[1]["norm.bias"].float()) / 2).bfloat16()
    assert torch.equal(found["norm.bias"], wanted)
    assert merge(base, experts, "average", dtype="float32")["norm.bias"].dtype == torch.float32
    wide = merge({n: v.double() for n, v in trunk().items() if n != "position_ids"}, [trunk(1)], "task_arithmetic", scale=0.1)
    exact = trunk()["norm.bias"].double() + 0.1 * (trunk(1)["norm.bias"].double() - trunk()["norm.bias"].double())
    assert torch.equal(wide["norm.bias"], exact)


def test_prefixes_are_looked_through(tmp_path: Path) -> None:
    """A headless base and experts that carry the trunk under a name; exported, a task has its own spelling again."""
    base = save(tmp_path / "b", trunk())
    named = {f"model.{n}": v for n, v in trunk(1).items()} | {"score.weight": torch.ones(3, 4)}
    expert = save(tmp_path / "e", named)
    done = merge(base, {"t": expert}, "average", out=tmp_path / "out")
    assert done.heads == {"t": ("score.weight",)}
    assert any("'model.'" in note for note in done.notes)
    spelling = json.loads((tmp_path / "out" / "pluribus.json").read_text())["tasks"]["t"]["rename"]
    names = [n for n in open_source(base).names() if n in spelling]
    assert list(spelling) == names, "two merges of the same files must write the same bytes"
    export_task(tmp_path / "out", "t", tmp_path / "hf")
    again = safetensors.load(tmp_path / "hf")
    assert set(again) == set(named)
    assert all(torch.equal(again[n], v) for n, v in named.items())


def test_tied_tensors_merge_once_and_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.embed, self.out = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.out.weight = self.embed.weight

    found = merge(Tied(0), {"a": Tied(1), "b": Tied(2)}, "average")
    assert found["out.weight"].data_ptr() == found["embed.weight"].data_ptr()
    assert torch.allclose(found["embed.weight"], (Tied(1).embed.weight + Tied(2).embed.weight).detach() / 2)


def test_modules_merge_and_load_back() -> None:
    models = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)) for _ in range(3)]
    found = merge(models[0], models[1:], "ties")
    models[0].load_state_dict(found)
    assert found["1.num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize("kind", ["vocab.txt", "vocab.json", "tokenizer.json"])
def test_reordered_vocabularies_are_moved_to_the_bases_rows(tmp_path: Path, kind: str) -> None:
    """The same tokens at other rows: moved by token string. A token the base lacks: refused, not dropped."""
    words = ["a", "b", "c", "d", "e", "f"]

    def write(folder: Path, order: list[str]) -> None:
        if kind == "vocab.txt":
            (folder / kind).write_text("\n".join(order))
        else:
            table = {w: i for i, w in enumerate(order)}
            body = table if kind == "vocab.json" else {"model": {"type": "BPE", "vocab": table}, "added_tokens": []}
            (folder / kind).write_text(json.dumps(body))

    base, state = save(tmp_path / "b", trunk(), model_type="m"), trunk(1)
    order = [3, 0, 5, 1, 4, 2]
    moved = {**state, "embed_tokens.weight": state["embed_tokens.weight"][order]}
    expert = save(tmp_path / "e", moved, model_type="m")
    write(base, words)
    write(expert, [words[i] for i in order])
    found = merge(base, {"e": expert}, "average")
    assert torch.equal(found["embed_tokens.weight"], state["embed_tokens.weight"])
    done = merge(base, {"e": expert}, "average", out=tmp_path / "out")
    assert any("orders its tokens in another way" in note for note in done.notes)
    write(expert, ["a", "b", "c", "d", "e", "new"])
    with pytest.raises(BadInput, match=r"1 tokens that the base does not have \('new'\)"):
        merge(base, {"e": expert}, "average")


def test_the_way_back_to_tokens_moves_with_the_vocabulary(tmp_path: Path) -> None:
    """A masked-language head scores tokens: its rows and its bias follow the tokenizer, or they would be merged crosswise."""
    words, order = ["a", "b", "c", "d", "e", "f"], [3, 0, 5, 1, 4, 2]
    names = {"cls.predictions.bias": torch.arange(6.0), "cls.predictions.decoder.weight": torch.randn(6, 3)}
    state = {**trunk(), **names}
    of_words = {"embed_tokens.weight", *names}
    base = save(tmp_path / "b", state, model_type="m")
    expert = save(tmp_path / "e", {n: t[order] if n in of_words else t for n, t in state.items()}, model_type="m")
    (base / "vocab.txt").write_text("\n".join(words))
    (expert / "vocab.txt").write_text("\n".join(words[i] for i in order))
    found = merge(base, {"e": expert}, "average")
    assert all(torch.equal(found[name], state[name]) for name in of_words)


def test_an_embedding_that_is_not_found_is_not_merged_crosswise(tmp_path: Path) -> None:
    odd = {("odd.table" if n.startswith("embed_tokens") else n): t for n, t in trunk().items()}
    base, expert = save(tmp_path / "b", odd, model_type="m"), save(tmp_path / "e", odd, model_type="m")
    (base / "vocab.txt").write_text("a\nb\nc\nd\ne\nf")
    (expert / "vocab.txt").write_text("b\na\nc\nd\ne\nf")
    with pytest.raises(BadInput, match="its embedding was not found"):
        merge(base, {"e": expert}, "average")


@pytest.mark.parametrize("change", [{"num_attention_heads": 8}, {"hidden_act": "relu"}])
def test_equal_shapes_of_another_architecture_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    """Another number of attention heads, or another activation, changes no shape and makes an average meaningless."""
    about = {"model_type": "bert", "num_attention_heads": 4, "hidden_act": "gelu"}
    base, expert = save(tmp_path / "b", trunk(), **about), save(tmp_path / "e", trunk(1), **{**about, **change})
    with pytest.raises(BadInput, match=f"has {next(iter(change))} .*equal shapes, another architecture"):
        merge(base, [expert], "average")


def test_pickles_are_opened_only_without_code(tmp_path: Path) -> None:
    """A foreign .bin of tensors works; one that carries code is refused and does not run."""
    torch.save(trunk(1), tmp_path / "ok.bin")
    assert torch.equal(merge(trunk(), [tmp_path / "ok.bin"], "average")["norm.bias"], trunk(1)["norm.bias"])
    folder = tmp_path / "hf"
    folder.mkdir()
    torch.save(trunk(2), folder / "pytorch_model.bin")
    assert torch.equal(merge(trunk(), [folder], "average")["norm.bias"], trunk(2)["norm.bias"])

    class Bomb:
        def __reduce__(self) -> Any:
            return (open, (str(tmp_path / "boom"), "w"))

    (tmp_path / "bad.bin").write_bytes(pickle.dumps({"x": Bomb()}))
    torch.save({"x": Bomb()}, tmp_path / "worse.pt")
    for name in ("bad.bin", "worse.pt"):
        with pytest.raises(BadInput, match="weights-only loader"):
            merge(trunk(), [tmp_path / name], "average")
    assert not (tmp_path / "boom").exists()
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(BadInput, match="not a state dict"):
        merge(trunk(), [tmp_path / "list.pt"], "average")


def test_too_little_disk_is_said_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 0, 10))
    with pytest.raises(BadInput, match=r"needs .* GB and .* has 0.00 GB free"):
        merge(trunk(), [trunk(1)], "average", out=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import os

    real, calls = os.pwrite, [0]

    def full(*args: Any) -> int:
        calls[0] += 1
        if calls[0] > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(BadInput, match="No space left on device"):
        merge(trunk(), [trunk(1)], "average", out=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_input_that_changes_meanwhile_is_an_error(tmp_path: Path) -> None:
    base, expert = save(tmp_path / "b", trunk()), save(tmp_path / "e", trunk(1))

    def touch(done: int, whole: int) -> None:
        import os

        os.utime(expert / "model.safetensors", ns=(1, 1))

    with pytest.raises(BadInput, match="changed while it was merged"):
        merge(base, [expert], "average", out=tmp_path / "out", progress=touch)
    assert {p.name for p in tmp_path.iterdir()} == {"b", "e"}


def test_output_shards_load_and_hold_the_same(tmp_path: Path) -> None:
    base, expert = save(tmp_path / "b", trunk()), save(tmp_path / "e", trunk(1))
    merge(base, [expert], "ties", out=tmp_path / "one")
    merge(base, [expert], "ties", out=tmp_path / "many", shard_bytes=100)
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 2
    a, b = safetensors.load(tmp_path / "one"), safetensors.load(tmp_path / "many")
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert set(a) == set(b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"experts": {}}, "there is no expert"),
        ({"experts": []}, "there is no expert"),
        ({"experts": trunk(1)}, "is one state dict"),
        ({"weights": [1, 2]}, "2 weights for 1 experts"),
        ({"weights": {"z": 1}}, "unknown task 'z'"),
        ({"weights": [float("nan")]}, "not finite"),
        ({"weights": [0]}, "needs weights above 0"),
        ({"method": "averge"}, "did you mean 'average'"),
        ({"method": "fisher"}, "fisher needs fishers"),
        ({"method": "dare", "density": -0.1}, "density is -0.1"),
        ({"method": "dare", "density": True}, "density is True"),
        ({"method": "ties", "scope": "globl"}, "did you mean 'global'"),
        ({"method": "emr", "task": "z"}, "unknown task 'z'"),
        ({"method": "tall_masks"}, "no task is named"),
        ({"method": "della", "density": 0.1}, "leaves the interval"),
        ({"method": "tsv_m", "scale": float("inf")}, "scale is inf"),
        ({"method": "consensus", "k": "two"}, "k is 'two'; give a whole number"),
        ({"method": "consensus", "k": 1.5}, "k is 1.5; give a whole number"),
        ({"method": "emr", "task": 1}, "task is 1; give text or null"),
        ({"method": "nuslerp", "by_rows": 3}, "by_rows is 3; give true or false"),
        ({"method": "doge", "skip": "embed"}, "skip is 'embed'; give a list"),
        ({"method": "task_arithmetic", "scale": "x"}, "scale is 'x'; give a number"),
        ({"method": "logits_fusion"}, "does not merge weights"),
        ({"dtype": "float31"}, "did you mean 'float32'"),
        ({"base": None, "method": "ties"}, "needs the base"),
        ({"experts": [3]}, "cannot read tensors from int"),
        ({"heads": ["*"]}, "nothing is left to merge"),
        ({"heads": ["zz*"]}, "heads: unknown tensor or pattern of tensors 'zz"),
        ({"keep": ["embeddings.wieght"]}, "keep: unknown tensor or pattern"),
    ],
)
def test_bad_arguments_are_one_line(arguments: dict[str, Any], message: str) -> None:
    given = {"base": trunk(), "experts": {"a": trunk(1)}, "method": "average", **arguments}
    with pytest.raises(BadInput, match=message) as caught:
        merge(**given)
    assert "\n" not in str(caught.value)


def test_bad_merged_folders_are_refused(tmp_path: Path) -> None:
    done = merge(trunk(), {"t": trunk(1, score__weight=torch.ones(2, 4))}, "average", out=tmp_path / "out")
    about = json.loads((done.path / "pluribus.json").read_text())
    for change, message in (
        ({"schema_version": 2}, "schema version 2"),
        ({"kind": "boosted"}, "not a merge"),
        ({"tasks": {"t": {"head": "../../x.safetensors"}}}, "names the head"),
    ):
        (done.path / "pluribus.json").write_text(json.dumps({**about, **change}))
        with pytest.raises(BadInput, match=message):
            export_task(done.path, "t", tmp_path / "hf")
    (done.path / "pluribus.json").write_text(json.dumps(about))
    with pytest.raises(BadInput, match="unknown task 'tt'; did you mean 't'"):
        export_task(done.path, "tt", tmp_path / "hf")


def test_the_base_among_the_experts_is_said(tmp_path: Path) -> None:
    """Broken: a glob that takes the base along halves every task vector's share, and nobody hears of it."""
    for name in ("base", "a", "b"):
        safetensors.save(tmp_path / f"{name}.safetensors", {"w": torch.randn(3, 3)})
    file = {name: tmp_path / f"{name}.safetensors" for name in ("base", "a", "b")}
    again = tmp_path / ".." / tmp_path.name / "base.safetensors"  # written in another way
    done = merge(file["base"], {"base": again, "a": file["a"], "b": file["b"]}, out=tmp_path / "o")
    assert any("expert 'base' is the base itself" in note for note in done.notes)
    done = merge(file["base"], {t: file[t] for t in "ab"}, out=tmp_path / "p")
    assert not any("itself" in note for note in done.notes)


def test_the_doctor_knows_its_figures() -> None:
    """Against a direct computation on all entries at once."""
    from pluribus.merging.doctor import examine
    from pluribus.merging.run import prepare

    base = {"layer.0.w": torch.randn(30, 20), "layer.0.b": torch.randn(30)}
    experts = {t: {n: v + 0.1 * torch.randn_like(v) for n, v in base.items()} for t in "ab"}
    found = examine(prepare(base, experts, "task_arithmetic")[0])
    flat = torch.cat([v.reshape(-1) for v in base.values()]).double()
    taus = [torch.cat([v.reshape(-1) for v in e.values()]).double() - flat for e in experts.values()]
    assert abs(found.whole.distance["a"] - float(taus[0].norm() / flat.norm())) < 1e-6
    assert abs((found.whole.cosine or 0) - float(taus[0] @ taus[1] / taus[0].norm() / taus[1].norm())) < 1e-5
    assert abs((found.whole.conflict or 0) - float((taus[0] * taus[1] < 0).double().mean())) < 1e-9
    assert [row.name for row in found.layers] == ["layer.0"]
    stranger = examine(prepare(base, {"s": {n: torch.randn_like(v) for n, v in base.items()}}, "task_arithmetic")[0])
    assert any("hardly started from this base" in w for w in stranger.warnings)
    assert stranger.whole.cosine is None
