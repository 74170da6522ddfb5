"""A study of checkpoints on real images: the seven experts of the merging bed, every road, the choice on valid, one look at test.

The experts are the fine-tuned networks of `merging_claims` (seed 0; their frozen heads go along as heads of the files). The
evaluator scores each image 1 or 0. Writes docs/results/checkpoint_study.md.
"""

from __future__ import annotations

import json
import os
import shutil
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks.merging_claims import TASKS, SmallCNN, bed, load
from benchmarks.ratio import RESULTS, machine
from pluribus.files import safetensors
from pluribus.study.checkpoints import CheckpointsStudy, parse

METHODS: list[Any] = [
    "average",
    "task_arithmetic",
    "ties",
    "tsv_m",
    "emr",
    "tall_masks",
    {"method": "twin", "settings": {"rank": 16}},
    {"method": "lora", "settings": {"rank": 16}},
]


def run(full: bool) -> None:
    import pandas as pd

    data = load(0)
    made = bed(0, data)
    network = SmallCNN().eval()

    def evaluate(state: dict[str, Tensor], task: str, split: str) -> pd.DataFrame:
        network.load_state_dict({n: t for n, t in state.items() if not n.startswith("head.")})
        x, y = data[task][split]
        with torch.no_grad():
            features = torch.cat([network(part) for part in x.split(500)])
        found = (features @ state["head.weight"].T + state["head.bias"]).argmax(-1)
        return pd.DataFrame({"id": range(len(y)), "score": (found == y).double().numpy()})

    with TemporaryDirectory() as folder:
        home = Path(folder)
        safetensors.save(home / "base.safetensors", made.base)
        experts = {}
        for task in TASKS:
            head = {f"head.{n}": t.detach() for n, t in made.heads[task].state_dict().items()}
            safetensors.save(home / f"{task}.safetensors", {**made.experts[task], **head})
            experts[task] = {
                "path": str(home / f"{task}.safetensors"),
                "metric": "accuracy",
                "direction": "max",
                "valid": "valid",
                "test": "test",
            }
        row = {"kind": "checkpoints", "base": str(home / "base.safetensors"), "experts": experts, "methods": METHODS}
        done = CheckpointsStudy(parse(row, where="benchmark"), evaluate, folder=home / "runs", say=print).run()
        summary = json.loads((done.folder / "report.json").read_text("utf-8"))
        assert done.verdict is not None
        words = done.verdict.against("experts")
        shutil.rmtree(home / "runs")
    rows = sorted(summary["candidates"].items(), key=lambda pair: -pair[1]["delta"])
    lines = [
        "# A study of checkpoints",
        "",
        (__doc__ or "").split("\n\n")[1].replace("\n", " "),
        "",
        f"One seed; {len(TASKS)} tasks, {summary['parts']['valid']} valid and {summary['parts']['test']} test images; "
        f"{date.today()}, {machine()}, load {os.getloadavg()[0]:.1f}; `make bench ONLY=checkpoint_study`. "
        f"{summary['seconds']:.0f} core-seconds in all.",
        "",
        "| road | Δm over the experts on test, % | stored, MB | worst loss on valid, % |",
        "|---|---|---|---|",
    ]
    for name, about in rows:
        lost = "" if name == "experts" else f"{100 * max(summary['choice']['lost'][name].values()):.1f}"
        lines.append(f"| {name} | {about['delta'] + 0.0:+.1f} | {about['bytes'] / 1e6:.2f} | {lost} |")
    lines += [
        "",
        f"Chosen on valid: {summary['choice']['reason']}; deployed: {summary['choice']['deployed']}.",
        "",
        f"The verdict on test ({done.verdict.challenger} against the experts): {done.verdict.headline}",
        "",
        "| task | expert | " + done.verdict.challenger + " | gain, 95 % | word |",
        "|---|---|---|---|---|",
    ]
    for t in words.tasks:
        gain = t.gain.file
        lines.append(
            f"| {t.task} | {t.reference.file.value:.3f} | {t.challenger.file.value:.3f} "
            f"| {gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f}) | {t.word} |"
        )
    print("\n".join(lines[6:]), flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "checkpoint_study.md").write_text("\n".join([*lines, ""]), "utf-8")
