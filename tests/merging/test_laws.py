"""Laws of every merger of the catalog that is a function of the weights: if one breaks, results depend on accidents."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conformance.entries import entries_for
from torch import Tensor

from pluribus import catalog
from pluribus.files import safetensors
from pluribus.merging import merge, select

NEED_DATA = {"fisher", "regmean"}
STATIC = [e.name for e in entries_for(__name__, "merger", "checkpoints")]
TWO = {"slerp", "nuslerp", "arcee_fusion"}
ONE = {"nearswap"}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in STATIC if name not in NEED_DATA | {"tall_masks", "doge"}),
    ("ties", {"scope": "global"}),
    ("ties", {"reduce": "sum", "density": 0.5}),
    ("dare", {"combine": "ties", "rescale": "l1"}),
    ("della", {"rescale": "l1", "combine": "linear"}),
    ("slerp", {"space": "task_vectors"}),
    ("nuslerp", {"by_rows": True}),
    ("model_stock", {"by_rows": True}),
    ("sce", {"density": 0.4}),
    ("pcb", {"scope": "per_tensor"}),
    ("emr", {"task": "b"}),
    ("tall_masks", {"task": "b"}),
    ("consensus", {"source": "ties"}),
    ("wudi", {"solver": "adam", "steps": 40}),
    ("knots", {"combine": "mean"}),
    ("doge", {"steps": 30}),
    ("doge", {"optimiser": "sgd", "steps": 20}),
    ("karcher", {"space": "task_vectors"}),
    ("fisher", {}),
    ("regmean", {}),
]
IDS = [f"{name}-{'-'.join(map(str, s.values()))}" if s else name for name, s in VARIANTS]

# What one expert, coefficient 1, density 1 and nothing dropped means in each method's own settings; None: documented exceptions.
ALONE: dict[str, dict[str, Any] | None] = {
    "task_arithmetic": {"scale": 1.0},
    "ties": {"density": 1.0},
    "dare": {"density": 1.0},
    "della": {"density": 1.0, "epsilon": 0.0},
    "breadcrumbs": {"density": 1.0, "gamma": 0.0, "scale": 1.0},
    "sce": {"density": 1.0},
    "consensus": {"k": 1, "scale": 1.0},
    "emr": {"task": "a"},
    "tall_masks": {"task": "a"},
    "nearswap": {"t": 1e9},
    "slerp": None,
    "nuslerp": None,
    "arcee_fusion": None,
    "model_stock": None,  # need two
    "iso_c": None,
    "iso_cts": None,  # flatten the spectrum
    "pcb": None,  # min-max makes the smallest kept entry 0
    "doge": None,  # λ = η/‖τ‖
}


def world(seed: int, tasks: str = "abc", size: float = 0.1, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """A base and experts: matrices, a kernel, vectors, a tensor of one entry, statistics, an integer, a long tensor."""
    g = torch.Generator().manual_seed(seed)
    shapes = {
        "enc.0.weight": (12, 20),
        "enc.0.bias": (12,),
        "conv.weight": (4, 3, 3, 3),
        "norm.weight": (7,),
        "one": (1,),
        "tall.weight": (9, 1),
        "norm.running_var": (7,),
        "norm.running_mean": (7,),
        "long.weight": (40, 1800),
    }
    base: dict[str, Tensor] = {n: torch.randn(s, generator=g).to(dtype) for n, s in shapes.items()}
    base["norm.running_var"].abs_()
    base["steps"] = torch.tensor(5)
    experts = {}
    for t in tasks:
        experts[t] = {
            n: (v + size * torch.randn(v.shape, generator=g)).to(dtype) if v.is_floating_point() else v + 1
            for n, v in base.items()
        }
        experts[t]["norm.running_var"].abs_()
    return base, experts


def extra(name: str, experts: dict[str, Any]) -> dict[str, Any]:
    """What `fisher` and `regmean` need besides, by task."""
    g = torch.Generator().manual_seed(7)
    if name == "fisher":
        first = next(iter(experts.values()))
        shared = {n: torch.rand(v.shape, generator=g) for n, v in first.items() if v.is_floating_point()}
        return {"fishers": {t: {n: f * (1 + i) for n, f in shared.items()} for i, t in enumerate(sorted(experts))}}
    if name == "regmean":
        x = torch.randn(50, 20, generator=g)
        return {"grams": {t: {"enc.0.weight": (1 + i) * x.T @ x} for i, t in enumerate(sorted(experts))}}
    return {}


def chosen(name: str, experts: dict[str, Any]) -> dict[str, Any]:
    count = 2 if name in TWO else 1 if name in ONE else len(experts)
    return dict(list(experts.items())[:count])


def test_the_table_covers_every_static_merger() -> None:
    """A merger that is listed but not tested here would escape all laws."""
    assert {name for name, _ in VARIANTS} == set(STATIC)


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=IDS)
def test_experts_equal_to_the_base_give_the_base(name: str, options: dict[str, Any]) -> None:
    base, experts = world(1)
    experts = chosen(name, dict.fromkeys(experts, base))
    found = merge(base, experts, name, **options, **extra(name, experts))
    for n, v in base.items():
        assert torch.equal(found[n], v), n


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", [n for n in STATIC if ALONE.get(n, {}) is not None])
def test_one_expert_comes_back_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    base, experts = world(2, "a", dtype=dtype)
    found = merge(base, experts, name, **(ALONE.get(name) or {}), **extra(name, experts))
    for n, v in experts["a"].items():
        if v.is_floating_point():
            assert torch.equal(found[n], v), n


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=IDS)
def test_order_of_experts_does_not_matter(name: str, options: dict[str, Any]) -> None:
    """Includes the methods that draw: their bits belong to the task, not to its place. Weights travel with the experts."""
    if name == "arcee_fusion":
        pytest.skip("its two models play different parts")
    base, experts = world(3)
    experts = chosen(name, experts)
    from pluribus.merging.run import method_of

    weighted = method_of(name, {**options, **extra(name, experts)}).weighted
    weights = {t: 1.0 + i for i, t in enumerate(experts)} if weighted else None
    if weighted and name == "fisher":
        weights = None
    backwards = dict(reversed(experts.items()))
    a = merge(base, experts, name, weights=weights, seed=5, **options, **extra(name, experts))
    b = merge(base, backwards, name, weights=weights, seed=5, **options, **extra(name, backwards))
    for n, v in a.items():
        assert torch.allclose(v, b[n], rtol=1e-4, atol=2e-5), n


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=IDS)
def test_names_shapes_and_dtypes_are_the_bases(name: str, options: dict[str, Any]) -> None:
    base, experts = world(4, dtype=torch.bfloat16)
    experts = {t: {n: v.float() if v.is_floating_point() else v for n, v in e.items()} for t, e in chosen(name, experts).items()}
    found = merge(base, experts, name, **options, **extra(name, experts))
    assert list(found) == list(base)
    for n, v in base.items():
        assert (found[n].shape, found[n].dtype) == (v.shape, v.dtype), n
        assert torch.isfinite(found[n].float()).all()
    assert torch.equal(found["steps"], base["steps"])
    assert (found["norm.running_var"] >= 0).all()


def _write(folder: Path, tensors: dict[str, Tensor], shards: int, backwards: bool) -> Path:
    import json

    folder.mkdir()
    names = list(reversed(tensors)) if backwards else list(tensors)
    if shards == 1:
        safetensors.save(folder / "model.safetensors", {n: tensors[n] for n in names})
        return folder
    files = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    place = {n: files[i % shards] for i, n in enumerate(names)}
    for file in files:
        safetensors.save(folder / file, {n: tensors[n] for n in names if place[n] == file})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))
    return folder


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=IDS)
def test_chunks_threads_and_shards_change_no_byte(
    name: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is the same bytes for every chunk, thread count and shard layout of the inputs, and whether a tensor that is
    looked at twice is held or read again."""
    base, experts = world(6)
    experts = chosen(name, experts)
    more = extra(name, experts)
    files = []
    layouts = [(1 << 20, 1, 1, False, 1 << 30), (1, 3, 3, True, 1 << 30), (1, 1, 2, False, 0)]
    for i, (chunk, threads, shards, backwards, held) in enumerate(layouts):
        monkeypatch.setattr("pluribus.merging.stream.HELD", held)
        home = tmp_path / str(i)
        home.mkdir()
        ours = _write(home / "base", base, shards, backwards)
        theirs = {t: _write(home / t, e, shards + j, backwards) for j, (t, e) in enumerate(experts.items())}
        before = torch.get_num_threads()
        torch.set_num_threads(1 + i)
        merge(ours, theirs, name, seed=3, out=home / "out", chunk=chunk, threads=threads, hashes=False, **options, **more)
        torch.set_num_threads(before)
        files.append((home / "out" / "model.safetensors").read_bytes())
    assert files[0] == files[1] == files[2]
    in_memory = merge(base, experts, name, seed=3, **options, **more)
    on_disk = safetensors.load(tmp_path / "0" / "out")
    assert all(torch.equal(in_memory[n], on_disk[n]) for n in in_memory)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    shape=st.sampled_from(["normal", "ties", "sparse", "equal", "sorted", "rows", "double"]),
    chunk=st.sampled_from([1999, 15000, 1 << 20]),
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=3),
)
def test_the_bracket_of_a_sample_finds_the_very_border(seed: int, shape: str, chunk: int, shares: list[float]) -> None:
    """The k largest of tensors large enough for a sample are those of a stable sort: normal entries, many ties, mostly zeros, one
    value, a sorted tensor, rows of different size; `keep` is the same set as `mask`."""
    n, g = 40000, torch.Generator().manual_seed(seed)
    x = torch.randn(2, n, generator=g, dtype=torch.float64 if shape == "double" else torch.float32)
    if shape == "ties":
        x = (x * 4).round()
    elif shape == "sparse":
        x = x * (torch.rand(2, n, generator=g) < 0.05)
    elif shape == "equal":
        x = torch.ones(2, n)
    elif shape == "sorted":
        x = x.sort(1).values
    elif shape == "rows":
        x = x * (torch.arange(n) % 50 + 1)
    ks = [round(share * n) for share in shares]

    def chunks() -> Iterator[tuple[int, Tensor]]:
        for start in range(0, n, chunk):
            yield start, x[:, start : start + chunk].abs()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(select, "SAMPLE", 2048)
        found = select.top(chunks, 2, ks, n)
        inside = [k for k in ks if 0 < k < n]
        if shape == "normal" and inside:
            held = select.bracketed(chunks, 2, inside, n)
            assert len(held) >= 0.9 * 2 * len(set(inside))  # the bracket itself is what is tested here
    for row, cuts in enumerate(found):
        order = torch.sort(x[row].abs(), descending=True, stable=True).indices
        for k, cut in zip(ks, cuts):
            wanted = torch.zeros(n, dtype=torch.bool)
            wanted[order[:k]] = True
            assert torch.equal(cut.mask(x[row].abs(), 0), wanted)
            both = [cut.keep(x[row, :1000], 0), cut.keep(x[row, 1000:], 1000)]
            assert torch.equal(torch.cat(both), torch.where(wanted, x[row], 0.0))


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    tasks=st.integers(1, 4),
    density=st.sampled_from([0.0, 0.01, 0.2, 0.5, 1.0]),
    ties_in_magnitude=st.booleans(),
)
def test_trim_keeps_exactly_its_share(seed: int, tasks: int, density: float, ties_in_magnitude: bool) -> None:
    """Against a stable sort: the kept set is exact, ties in magnitude go to the lower index, per tensor and over all tensors."""
    g = torch.Generator().manual_seed(seed)
    base = {"x": torch.zeros(37), "y": torch.zeros(3, 5), "w": torch.zeros(1)}

    def draw(shape: Any) -> Tensor:
        return torch.randint(-2, 3, shape, generator=g).float() if ties_in_magnitude else torch.randn(shape, generator=g)

    expert = {n: draw(v.shape) for n, v in base.items()}
    from pluribus.merging.algebra import Method, WeightedSum, keep_count
    from pluribus.merging.source import State
    from pluribus.merging.stream import Engine
    from pluribus.merging.trim import Trim

    for scope in ("per_tensor", "global"):
        engine = Engine(State(base), {"t": State(expert)}, list(base), Method(WeightedSum(), (Trim(density, scope=scope),)))
        found = {n: engine.tensor(n).reshape(-1) for n in base}
        groups = [[n] for n in base] if scope == "per_tensor" else [sorted(base)]
        for group in groups:
            flat = torch.cat([expert[n].reshape(-1) for n in group])
            order = flat.abs().sort(descending=True, stable=True).indices[: keep_count(density, len(flat))]
            wanted = torch.zeros_like(flat)
            wanted[order] = flat[order]
            assert torch.equal(torch.cat([found[n] for n in group]), wanted)


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), name=st.sampled_from([n for n in STATIC if n not in NEED_DATA | {"tall_masks"}]))
def test_scaling_all_task_vectors_keeps_signs_finite(seed: int, name: str) -> None:
    """Very small and very large updates neither overflow nor vanish into NaN."""
    base, experts = world(seed, size=1e-12 if seed % 2 else 1e6)
    found = merge(base, chosen(name, experts), name, **({"steps": 5} if name == "doge" else {}))
    assert all(torch.isfinite(v).all() for v in found.values())


def test_every_setting_of_every_static_merger_has_a_default_or_is_asked_for() -> None:
    for name in STATIC:
        for parameter in inspect.signature(catalog.get("merger", name).resolve()).parameters.values():
            assert parameter.kind == parameter.KEYWORD_ONLY, name


@pytest.mark.parametrize("n", [0, 1, 2, 50, 99, 101])
def test_breadcrumbs_on_tiny_tensors(n: int) -> None:
    """A tensor too small for an outlier must not lose its whole update."""
    from pluribus.merging.algebra import keep_count

    tau = torch.arange(1.0, n + 1)
    found = merge({"x": torch.zeros(n)}, [{"x": tau}], "breadcrumbs", density=0.5, gamma=0.01, scale=1.0)
    assert int((found["x"] != 0).sum()) == keep_count(0.5, n)
