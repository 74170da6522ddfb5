"""A study killed with SIGKILL 20 times at random moments: nothing finished is lost, and it ends like an unkilled one.

Writes docs/results/kill.md.
"""

from __future__ import annotations

import datetime
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.ratio import RESULTS, machine

SCRIPT = """
import sys
from pluribus.data.flights import flights
from pluribus.study import Study
if __name__ == "__main__":
    Study(flights(6000), folder=sys.argv[1], jobs=2, budget="600s", seeds=3, configurations=1, repeats=200, name="k").run()
"""


def run(full: bool) -> None:
    kills = 60 if full else 20
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as place:
        script = Path(place) / "go.py"
        script.write_text(SCRIPT)
        trials = Path(place) / "killed" / "k" / "work" / "trials"
        kept: set[str] = set()
        lost = ended = 0
        for _ in range(kills):
            process = subprocess.Popen([sys.executable, str(script), f"{place}/killed"], stderr=subprocess.DEVNULL)
            time.sleep(rng.uniform(0.5, 14))
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
            else:
                ended += 1
            process.wait()
            there = {path.name for path in trials.glob("final-*")} if trials.exists() else set()
            lost += len(kept - there)
            kept = there
        for name in ("killed", "whole"):
            subprocess.run([sys.executable, str(script), f"{place}/{name}"], check=True, stderr=subprocess.DEVNULL)
        choices = [json.loads((Path(place) / name / "k" / "choice.json").read_text()) for name in ("killed", "whole")]
        same = choices[0] == choices[1]
    line = (
        f"{kills} kills ({ended} came after the end): {lost} finished trials lost; "
        f"choice.json {'equals' if same else 'DIFFERS FROM'} that of an unkilled run"
    )
    print(line)
    text = f"# Killed studies\n\n{line}.\n\n{machine()}; {datetime.date.today()}; `make bench ONLY=kill`.\n"
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "kill.md").write_text(text, "utf-8")
