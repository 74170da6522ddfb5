"""`make bench`: the default set of benchmarks, one of them (ONLY=name), or everything (FULL=1)."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
import time

import benchmarks

SHARED = ("__main__", "merging_methods", "ratio", "tables")
NAMES = sorted(m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name not in SHARED)
ASKED = ("against", "study_claims")  # need another checkout, other packages: only ONLY=name runs them


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", metavar="NAME", choices=NAMES, help="one of: " + ", ".join(NAMES))
    parser.add_argument("--full", action="store_true", help="all sets, all seeds")
    chosen = parser.parse_args()
    for name in [chosen.only] if chosen.only else [name for name in NAMES if name not in ASKED]:
        start = time.perf_counter()
        print(f"== {name}", flush=True)
        importlib.import_module(f"benchmarks.{name}").run(full=chosen.full)
        print(f"== {name}: {time.perf_counter() - start:.0f} s", flush=True)
    return 0


sys.exit(main())
