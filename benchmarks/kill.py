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
    wanted = 60 if full else 20
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as place:
        script = Path(place) / "go.py"
        script.write_text(SCRIPT)
        kills = lost = runs = 0
        kept: set[str] = set()
        while kills < wanted:
            run_folder = Path(place) / f"run{runs}"
            process = subprocess.Popen([sys.executable, str(script), str(run_folder)], stderr=subprocess.DEVNULL)
            time.sleep(rng.uniform(0.5, 9))
            alive = process.poll() is None
            if alive:
                os.kill(process.pid, signal.SIGKILL)
            process.wait()
            trials = run_folder / "k" / "work" / "trials"
            there = {path.name for path in trials.glob("final-*")} if trials.exists() else set()
            lost += len(kept - there)
            kills, kept = kills + alive, there
            if not alive:  # it came to its end between two kills: the next kills strike a fresh run
                runs, kept = runs + 1, set()
        folders = [*(Path(place) / f"run{i}" for i in range(runs + 1)), Path(place) / "whole"]
        for folder in folders:
            subprocess.run([sys.executable, str(script), str(folder)], check=True, stderr=subprocess.DEVNULL)
        choices = [json.loads((folder / "k" / "choice.json").read_text()) for folder in folders]
        same = all(choice == choices[-1] for choice in choices)
    line = (
        f"{kills} kills over {runs + 1} runs: {lost} finished trials lost; every run came to its end, and its choice.json "
        f"{'equals' if same else 'DIFFERS FROM'} that of a run that was never killed"
    )
    print(line)
    text = f"# Killed studies\n\n{line}.\n\n{machine()}; {datetime.date.today()}; `make bench ONLY=kill`.\n"
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "kill.md").write_text(text, "utf-8")
