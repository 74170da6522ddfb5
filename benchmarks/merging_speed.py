"""Merging against the disk: CPU seconds (one thread) and peak anonymous memory, every run in a process of its own.

The yardstick is a plain read of the inputs and write of the output: `Path.read_bytes` of each, one `write` and an fsync. A
stricter one, the same bytes through one reused megabyte, stands beside it. mergekit runs on the same files where
PLURIBUS_MERGEKIT names a Python that has it. Writes docs/results/merging_speed.md.
"""

from __future__ import annotations

import json
import math
import os
import random
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.ratio import RESULTS, machine

TARGETS = {
    "average": (1.0, 32),
    "task_arithmetic": (1.0, 32),
    "slerp": (1.2, None),
    "dare": (3.0, None),
    "breadcrumbs": (3.0, None),
    "ties": (5.0, 300),
}
CHILD = """
import json, os, resource, sys, time
job = json.loads(sys.argv[1])
home, mode, out = job["home"], job["mode"], job["out"]
models = [os.path.join(home, m, "model.safetensors") for m in ("base", "a", "b")]
if mode in ("plain", "strict"):
    from pathlib import Path
elif mode == "mergekit":
    import yaml, torch
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge
    torch.set_num_threads(1)
else:
    import torch
    from pluribus.merging import merge
    import pluribus.merging.folder
    torch.set_num_threads(1)
print("ready", flush=True)
sys.stdin.readline()
begin = time.process_time()
if mode == "plain":
    for path in job["reads"]:
        data = Path(path).read_bytes()
    with open(out, "wb") as handle:
        handle.write(data); handle.flush(); os.fsync(handle.fileno())
elif mode == "strict":
    buffer = bytearray(1 << 20)
    for path in job["reads"]:
        with open(path, "rb", buffering=0) as handle:
            while handle.readinto(buffer): pass
    with open(out, "wb", buffering=0) as handle:
        for _ in range(os.path.getsize(job["reads"][0]) >> 20): handle.write(buffer)
        os.fsync(handle.fileno())
elif mode == "mergekit":
    config = MergeConfiguration.model_validate(yaml.safe_load(job["config"]))
    run_merge(config, out, MergeOptions(copy_tokenizer=False, quiet=True))
else:
    merge(os.path.join(home, "base"), {t: os.path.join(home, t) for t in "ab"}, mode, out=out, hashes=job["hashes"],
          threads=1, **job["settings"])
print(json.dumps({"cpu": time.process_time() - begin}), flush=True)
sys.stdin.readline()
"""


def checkpoints(home: Path, megabytes: int) -> None:
    """base, a and b: the shapes of a transformer's layers, float32, about `megabytes` each."""
    import torch

    from pluribus.files import safetensors

    layer = {
        **{f"self_attn.{p}_proj": (768, 768) for p in "qkvo"},
        "mlp.gate_proj": (3072, 768),
        "mlp.up_proj": (3072, 768),
        "mlp.down_proj": (768, 3072),
        "input_layernorm": (768,),
        "post_attention_layernorm": (768,),
    }
    ends = {"model.embed_tokens.weight": (32000, 768), "model.norm.weight": (768,), "lm_head.weight": (32000, 768)}
    room = megabytes * 1e6 / 4 - 2 * 32000 * 768
    if room <= 0:
        ends["model.embed_tokens.weight"] = ends["lm_head.weight"] = (320, 768)
        room = megabytes * 1e6 / 4
    count = max(1, round(room / sum(math.prod(s) for s in layer.values())))
    shapes = {**ends, **{f"model.layers.{i}.{n}.weight": s for i in range(count) for n, s in layer.items()}}
    for i, name in enumerate(("base", "a", "b")):
        (home / name).mkdir(parents=True)
        layout = {n: (s, torch.float32) for n, s in shapes.items()}
        writer = safetensors.Writer(home / name / "model.safetensors", layout, {"format": "pt"})
        for j, (n, s) in enumerate(shapes.items()):
            base = torch.randn(s, generator=torch.Generator().manual_seed(j))
            step = torch.randn(s, generator=torch.Generator().manual_seed(10**6 * i + j)) if i else 0
            writer.write(n, base + 0.05 * step)
        writer.close()
        (home / name / "config.json").write_text(
            json.dumps(
                {
                    "architectures": ["LlamaForCausalLM"],
                    "model_type": "llama",
                    "hidden_size": 768,
                    "num_hidden_layers": count,
                    "num_attention_heads": 12,
                    "intermediate_size": 3072,
                    "vocab_size": ends["lm_head.weight"][0],
                    "tie_word_embeddings": False,
                }
            )
        )


def measure(
    home: Path,
    mode: str,
    *,
    reads: list[str] | None = None,
    hashes: bool = False,
    settings: dict[str, Any] | None = None,
    python: str = sys.executable,
    config: str = "",
) -> tuple[float, float]:
    """CPU seconds and peak anonymous memory above what the imports took, in MB, of one run."""
    out = home / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.unlink(missing_ok=True)
    job = {
        "home": str(home),
        "mode": mode,
        "out": str(out),
        "hashes": hashes,
        "settings": settings or {},
        "config": config,
        "reads": [str(home / m / "model.safetensors") for m in (reads or ("base", "a", "b"))],
    }
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with subprocess.Popen(
        [python, "-c", CHILD, json.dumps(job)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        if child.stdout.readline().strip() != "ready":
            raise RuntimeError((child.communicate()[1] or "").strip().splitlines()[-1:])
        start = peak = _anonymous(child.pid)
        child.stdin.write("go\n")
        child.stdin.flush()
        while not select.select([child.stdout], [], [], 0.002)[0]:
            peak = max(peak, _anonymous(child.pid))
        line = child.stdout.readline()
        while line and not line.startswith("{"):  # what the peer prints
            line = child.stdout.readline()
        if not line:
            raise RuntimeError((child.stderr.read() if child.stderr else "").strip().splitlines()[-1:])
        child.stdin.write("bye\n")
        child.stdin.close()
        child.wait()
    cpu = json.loads(line)["cpu"]
    shutil.rmtree(out, ignore_errors=True)
    out.unlink(missing_ok=True)
    return cpu, (peak - start) / 1e6


def _anonymous(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


CONFIGS = {
    "average": "merge_method: linear\ndtype: float32\nmodels:\n"
    + "".join("  - {{model: {home}/%s, parameters: {{weight: 0.5}}}}\n" % m for m in "ab"),  # noqa: UP031
    "ties": "merge_method: ties\ndtype: float32\nbase_model: {home}/base\nmodels:\n"
    + "".join("  - {{model: {home}/%s, parameters: {{weight: 1.0, density: 0.2}}}}\n" % m for m in "ab"),  # noqa: UP031
}


def run(full: bool, pairs: int | None = None) -> None:
    """pairs: runs of each line (default 5, in full 9). Every round has an order of its own, since a run pays for the pages that
    the one before it left to the kernel."""
    pairs, size, orders = pairs or (9 if full else 5), 500, random.Random(0)
    lines = [
        "# Merging speed",
        "",
        f"Two experts and a base of about {size} MB each, float32, one thread; CPU seconds are medians of "
        f"{pairs} run{'s' if pairs > 1 else ''} in rounds of shuffled order, memory is the peak of anonymous pages above the "
        "imports. "
        "The files lie in the page cache. "
        f"Measured {date.today()} on {machine()}.",
        "",
    ]
    home = Path(tempfile.mkdtemp(prefix="merging-speed-"))
    try:
        checkpoints(home, size)
        plan: list[tuple[str, dict[str, Any]]] = [
            ("plain, 3 inputs", {"mode": "plain"}),
            ("plain, 2 inputs", {"mode": "plain", "reads": ["a", "b"]}),
            ("one reused megabyte, 3 inputs", {"mode": "strict"}),
            ("one reused megabyte, 2 inputs", {"mode": "strict", "reads": ["a", "b"]}),
        ]
        plan += [(name, {"mode": name}) for name in TARGETS]
        plan += [(f"{name}, hashes on", {"mode": name, "hashes": True}) for name in TARGETS]
        peer = os.environ.get("PLURIBUS_MERGEKIT")
        if peer:
            plan += [
                (f"mergekit {n}", {"mode": "mergekit", "python": peer, "config": c.format(home=home)}) for n, c in CONFIGS.items()
            ]
        rows: dict[str, list[tuple[float, float]]] = {name: [] for name, _ in plan}
        for _ in range(pairs):
            for name, how in orders.sample(plan, len(plan)):
                try:
                    rows[name].append(measure(home, **how))
                except RuntimeError as error:
                    print(f"{name}: {error}", flush=True)
        median = {n: (statistics.median(x[0] for x in r), max(x[1] for x in r)) for n, r in rows.items() if r}
        lines += [
            "| what | CPU s | against plain | against one reused megabyte | peak MB | target |",
            "|---|---|---|---|---|---|",
        ]
        for name, (cpu, peak) in median.items():
            inputs = 2 if name.split(",")[0] in ("average", "slerp", "mergekit average") or "2 inputs" in name else 3
            plain, strict = median[f"plain, {inputs} inputs"][0], median[f"one reused megabyte, {inputs} inputs"][0]
            goal = TARGETS.get(name.removesuffix(", hashes on"))
            wanted = "" if goal is None else f"≤ {goal[0]}×" + (f", ≤ {goal[1]} MB" if goal[1] else "")
            lines.append(f"| {name} | {cpu:.2f} | {cpu / plain:.2f}× | {cpu / strict:.2f}× | {peak:.0f} | {wanted} |")
            print(lines[-1], flush=True)
        lines.append("")
        for name, least in (("average", 2), ("ties", 6)):
            theirs = median.get(f"mergekit {name}")
            if theirs:
                ours = median[name]
                lines.append(
                    f"mergekit needs {theirs[0] / ours[0]:.1f} times our CPU for {name} (target ≥ {least}) and "
                    f"{theirs[1] / max(ours[1], 1e-9):.1f} times our memory (target ≥ 5)."
                )
        if not peer:
            lines.append("mergekit was not measured: PLURIBUS_MERGEKIT names no Python that has it.")
        shutil.rmtree(home)
        lines += [
            "",
            "## Memory against model size",
            "",
            "| MB a model | task_arithmetic, peak MB | ties, peak MB |",
            "|---|---|---|",
        ]
        for megabytes in (100, 500, 2000):
            checkpoints(home, megabytes)
            peaks = [measure(home, name)[1] for name in ("task_arithmetic", "ties")]
            lines.append(f"| {megabytes} | {peaks[0]:.0f} | {peaks[1]:.0f} |")
            print(lines[-1], flush=True)
            shutil.rmtree(home)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "merging_speed.md").write_text("\n".join(lines) + "\n", "utf-8")
