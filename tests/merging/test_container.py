"""The merge container: what it stores is what it serves, and a new task leaves the others' bits alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pluribus.errors import BadInput
from pluribus.files import safetensors
from pluribus.merging.bundle import bundle
from pluribus.merging.container import MergeContainer
from pluribus.merging.parts import FactorPart, MaskPart, pack, unpack
from pluribus.merging.router import train_router

State = dict[str, Tensor]


def net(classes: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, classes))


@pytest.fixture
def bed() -> tuple[State, dict[str, State]]:
    torch.manual_seed(0)
    base = {n: t.clone() for n, t in net().state_dict().items()}
    experts = {}
    for i, task in enumerate("abc"):
        experts[task] = {n: t + 0.3 * torch.randn_like(t) for n, t in base.items() if not n.startswith("4.")}
        experts[task] |= {"4.weight": torch.randn(i + 2, 16), "4.bias": torch.randn(i + 2)}
    return base, experts


def made(kind: str, base: State, experts: dict[str, State]) -> MergeContainer:
    if kind in ("emr", "tall_masks"):
        return MergeContainer.masked(base, experts, method=kind, keep=["4.*"])
    container = MergeContainer({n: t for n, t in base.items() if not n.startswith("4.")}, method="factors")
    for task, expert in experts.items():
        container.add_expert(task, expert, rank=3)
    return container


KINDS = ("emr", "tall_masks", "factors")


@given(st.integers(0, 70), st.integers(0, 2**30))
def test_packed_bits_come_back(n: int, seed: int) -> None:
    """Also where the number of entries is no multiple of 8."""
    mask = torch.rand(n, generator=torch.Generator().manual_seed(seed)) < 0.5
    bits = pack(mask)
    assert len(bits) == -(-n // 8)
    assert torch.equal(unpack(bits, (n,)), mask)


def test_packing_is_that_of_numpy() -> None:
    import numpy as np

    mask = torch.tensor([1, 0, 0, 0, 0, 0, 1, 1, 1, 0, 1], dtype=torch.bool)
    assert pack(mask).tolist() == np.packbits(mask.numpy()).tolist()


def test_emr_by_hand() -> None:
    """τ1 = (3, −1, 0), τ2 = (1, 2, −5): γ = (+, +, −), v = (3, 2, −5), masks, and the L1 norm of each update is kept."""
    base = {"w": torch.zeros(3)}
    c = MergeContainer.masked(base, {"a": {"w": torch.tensor([3.0, -1, 0])}, "b": {"w": torch.tensor([1.0, 2, -5])}})
    assert c.vector["w"].tolist() == [3, 2, -5]
    assert c.state("a")["w"].tolist() == [4.0, 0, 0]
    torch.testing.assert_close(c.state("b")["w"], torch.tensor([3.0, 2, -5]) * 0.8)


def test_one_expert_is_exact(bed: tuple[State, dict[str, State]]) -> None:
    """With T = 1 EMR and TALL masks give the expert back."""
    base, experts = bed
    for kind in ("emr", "tall_masks"):
        state = MergeContainer.masked(base, {"a": experts["a"]}, method=kind, keep=["4.*"]).state("a")
        for name, value in experts["a"].items():
            torch.testing.assert_close(state[name], value, rtol=1e-6, atol=1e-6)


def test_disjoint_supports_are_rebuilt_by_tall_masks() -> None:
    """Each expert moved its own entries: exact for every finite threshold."""
    base = {"w": torch.zeros(8)}
    experts = {t: {"w": torch.zeros(8)} for t in "ab"}
    experts["a"]["w"][:4], experts["b"]["w"][4:] = torch.randn(4), torch.randn(4)
    for threshold in (0.2, 0.6, 5.0, {"a": 0.1, "b": 3.0}):
        c = MergeContainer.masked(base, experts, method="tall_masks", threshold=threshold)
        assert all(torch.equal(c.state(t)["w"], experts[t]["w"]) for t in "ab")


@pytest.mark.parametrize("kind", KINDS)
def test_served_rows_are_the_tasks_own_models(kind: str, bed: tuple[State, dict[str, State]]) -> None:
    """A batch of rows of different tasks gives what each task's full model gives, heads of different sizes included."""
    base, experts = bed
    container = made(kind, base, experts)
    x = torch.randn(10, 6)
    served = container.serve(net(), example=x)
    assert served.plan == ("batched" if kind == "factors" else "grouped")
    routed = served(x, [("a", "b", "c")[i % 3] for i in range(10)])
    for i, task in enumerate("abc"):
        own = net(i + 2)
        own.load_state_dict(container.state(task))
        torch.testing.assert_close(routed.outputs[task], own(x[routed.rows[task]]).detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_and_bytes(kind: str, bed: tuple[State, dict[str, State]], tmp_path: Path) -> None:
    """What is loaded serves the same bits; no pickle in the folder; the byte count is the files' within their headers."""
    base, experts = bed
    container = made(kind, base, experts)
    container.router = train_router({t: torch.randn(30, 6) for t in experts}, epochs=1)
    again = MergeContainer.load(container.save(tmp_path / "c"))
    x, tasks = torch.randn(7, 6), list("abcabca")
    before, after = container.serve(net(), example=x)(x, tasks), again.serve(net(), example=x)(x, tasks)
    assert all(torch.equal(before.outputs[t], after.outputs[t]) for t in "abc")
    assert again.router is not None
    assert torch.equal(container.router(x), again.router(x))
    assert again.method == container.method
    files = sorted(p.suffix for p in (tmp_path / "c").iterdir())
    assert set(files) == {".json", ".safetensors"}
    about = json.loads((tmp_path / "c" / "pluribus.json").read_text())
    assert (about["schema_version"], about["kind"]) == (1, "merge-container")
    counted = container.bytes()
    for part, name in [("shared", "shared"), ("a", "task-0000"), ("router", "router")]:
        size = (tmp_path / "c" / f"{name}.safetensors").stat().st_size
        assert 0 <= size - counted[part] <= 4096
    if kind != "factors":  # 32 P + T P bits beside the base
        merged = sum(t.numel() for n, t in base.items() if not n.startswith("4."))
        assert counted["vector"] == 4 * merged
        assert counted["a"] - _head_bytes(container, "a") == sum(
            -(-t.numel() // 8) for n, t in base.items() if not n.startswith("4.")
        )


def _head_bytes(container: MergeContainer, task: str) -> int:
    return sum(t.numel() * t.element_size() for t in container.heads[task].values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_task_changes_nothing_for_the_others(kind: str, bed: tuple[State, dict[str, State]], tmp_path: Path) -> None:
    """Outputs by task id and the others' files keep every bit; a router goes on with the tasks it knows."""
    base, experts = bed
    container = made(kind, base, experts)
    container.router = train_router({t: torch.randn(40, 3) for t in experts}, epochs=1)
    container.router.width = 3
    x, tasks = torch.randn(9, 6), list("abcbcacab")
    before = container.serve(net(), example=x)(x, tasks)
    shares = container.serve(net(), features=lambda m, v: v[:, :3]).route(x)
    container.save(tmp_path / "before")
    new = {n: t + 0.3 * torch.randn_like(t) for n, t in experts["a"].items()}
    container.add_expert("new", new, rank=5)
    served = container.serve(net(), example=x)
    after = served(x, tasks)
    assert all(torch.equal(before.outputs[t], after.outputs[t]) for t in "abc")
    both = served(torch.cat([x, x]), tasks + ["new"] * 9)
    assert both.outputs["new"].shape == (9, 2)
    again = container.serve(net(), features=lambda m, v: v[:, :3]).route(x)
    assert torch.equal(again[:, :3], shares)
    assert bool((again[:, 3] == 0).all())
    container.save(tmp_path / "after")
    for file in (tmp_path / "before").iterdir():
        if file.suffix == ".safetensors":
            assert file.read_bytes() == (tmp_path / "after" / file.name).read_bytes()


def test_bfloat16_is_kept(bed: tuple[State, dict[str, State]], tmp_path: Path) -> None:
    base, experts = ({n: t.bfloat16() for n, t in s.items()} for s in (bed[0], bed[1]["a"]))
    container = MergeContainer({n: t for n, t in base.items() if n[0] != "4"}).add_expert("a", experts, rank=2)
    state = MergeContainer.load(container.save(tmp_path / "c")).state("a")
    assert {t.dtype for t in state.values()} == {torch.bfloat16}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beside", [False, True], ids=["head in the model", "head after the model"])
def test_heads_of_other_precisions_are_served(kind: str, beside: bool, bed: tuple[State, dict[str, State]]) -> None:
    """A head is stored as its expert holds it, in half precision too; it is applied in the model's precision."""
    base, experts = bed
    kinds = {"a": torch.bfloat16, "b": torch.float32, "c": torch.float16}
    rounded = {t: {n: v.to(kinds[t]) for n, v in e.items()} for t, e in experts.items()}
    container = made(kind, base, {t: {n: v.float() for n, v in e.items()} for t, e in rounded.items()})
    for task in kinds:
        container.heads[task] = {n.removeprefix("4." if beside else ""): rounded[task][n] for n in ("4.weight", "4.bias")}
    model = net()[:4] if beside else net()
    x, tasks = torch.randn(9, 6), list("abcabcabc")
    routed = container.serve(model, example=x)(x, tasks)
    for i, task in enumerate("abc"):
        own = net(i + 2)
        state = container.state(task)
        own.load_state_dict({n if n[0] in "024" else f"4.{n}": v for n, v in state.items()})
        torch.testing.assert_close(routed.outputs[task], own(x[routed.rows[task]]).detach(), atol=1e-5, rtol=1e-5)


def test_many_threads_keep_their_own_rows(bed: tuple[State, dict[str, State]]) -> None:
    """Two threads with different tasks do not see one another's route."""
    from concurrent.futures import ThreadPoolExecutor

    base, experts = bed
    container = made("factors", base, experts)
    x = torch.randn(16, 6)
    served = container.serve(net(), example=x)
    wanted = {t: served(x, t).outputs[t] for t in "abc"}
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda t: (t, served(x, t).outputs[t]), list("abc") * 30))
    assert all(torch.equal(out, wanted[t]) for t, out in found)


def test_a_served_container_learns_of_new_tasks(bed: tuple[State, dict[str, State]]) -> None:
    """A task added after `serve` is served at the next forward; a second server on the same model does not interfere."""
    base, experts = bed
    container = MergeContainer({n: t for n, t in base.items() if not n.startswith("4.")})
    container.add_expert("a", experts["a"], rank=3)
    x, model = torch.randn(6, 6), net()
    served = container.serve(model, example=x)
    before = served(x, "a").outputs["a"]
    container.add_expert("b", experts["b"], rank=3)
    routed = served(x, ["a", "b"] * 3)
    assert served.plan == "batched"
    own = net(3)
    own.load_state_dict(container.state("b"))
    torch.testing.assert_close(routed.outputs["b"], own(x[1::2]).detach(), atol=1e-5, rtol=1e-5)
    second = container.serve(model, example=x)
    assert torch.equal(second(x, "a").outputs["a"], before)
    assert torch.equal(served(x, "a").outputs["a"], before)


def test_hostile_folders(bed: tuple[State, dict[str, State]], tmp_path: Path) -> None:
    """A container that is missing parts, foreign, of a later schema or points outside is refused in one line."""
    base, experts = bed
    made("emr", base, experts).save(tmp_path / "c")
    file = tmp_path / "c" / "pluribus.json"
    good = json.loads(file.read_text())

    def refused(match: str, **changes: object) -> None:
        file.write_text(json.dumps({**good, **changes}))
        with pytest.raises(BadInput, match=match):
            MergeContainer.load(tmp_path / "c")

    refused("does not describe a merge container", kind="model")
    refused("schema version 2", schema_version=2)
    refused("not a list of named tasks", tasks={"a": 1})
    refused("only plain .safetensors names", tasks=[{**good["tasks"][0], "file": "../shared.safetensors"}])
    refused("only plain .safetensors names", tasks=[{**good["tasks"][0], "file": "x.pt"}])
    refused("unknown kind", tasks=[{**good["tasks"][0], "kind": "magic"}])
    refused("already in the container", tasks=[good["tasks"][0], good["tasks"][0]])
    refused("no such file", tasks=[{**good["tasks"][0], "file": "task-9999.safetensors"}])
    refused("router", router={"width": "wide", "tasks": []})
    safetensors.save(tmp_path / "c" / "task-0000.safetensors", {"mask:0.weight": torch.zeros(3, dtype=torch.uint8)})
    refused("has 3 bytes")
    safetensors.save(tmp_path / "c" / "task-0000.safetensors", {"gift:0.weight": torch.zeros(3)})
    refused("no known role")
    with pytest.raises(BadInput):
        MergeContainer.load(tmp_path / "nowhere")


def test_parts_must_fit(bed: tuple[State, dict[str, State]]) -> None:
    base, experts = bed
    container = MergeContainer(base, vector=base)
    with pytest.raises(BadInput, match="do not fit"):
        container.add("a", FactorPart({"0.weight": (torch.zeros(24, 2), torch.zeros(3, 6))}))
    with pytest.raises(BadInput, match=r"'1\.weight' is not in the shared weights"):
        container.add("a", FactorPart(whole={"1.weight": torch.zeros(2)}))
    with pytest.raises(BadInput, match=r"is \(2,\), shared \(24,\)"):
        container.add("a", FactorPart(whole={"0.bias": torch.zeros(2)}))
    with pytest.raises(BadInput, match="no vector"):
        MergeContainer(base).add("a", MaskPart({"0.bias": torch.zeros(3, dtype=torch.uint8)}))
    with pytest.raises(BadInput, match="missing in the expert"):
        container.add_expert("a", {"0.bias": base["0.bias"]})
    with pytest.raises(BadInput, match="empty name"):
        container.add("", FactorPart())
    with pytest.raises(BadInput, match="unknown task 'b'"):
        container.state("b")
    with pytest.raises(BadInput, match="unknown method 'tall_mask'; did you mean 'tall_masks'"):
        MergeContainer.masked(base, experts, method="tall_mask")


def test_extracted_adapters_leave_every_spelling_of_an_embedding_alone() -> None:
    """GPT-2 calls its embeddings wte and wpe: they are the base's in the adapter road, as `extract_lora` has it."""
    draw = torch.Generator().manual_seed(0)
    shapes = {"wte.weight": (12, 8), "wpe.weight": (6, 8), "h.0.attn.c_attn.weight": (8, 24), "embeddings.word.weight": (12, 8)}
    base = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    expert = {name: t + 0.1 * torch.randn(t.shape, generator=draw) for name, t in base.items()}
    found = bundle(base, {"a": expert}, "lora", rank=8)
    merged = found.state("a")
    torch.testing.assert_close(merged["h.0.attn.c_attn.weight"], expert["h.0.attn.c_attn.weight"])
    for name in ("wte.weight", "wpe.weight", "embeddings.word.weight"):
        assert torch.equal(merged[name], base[name]), name
