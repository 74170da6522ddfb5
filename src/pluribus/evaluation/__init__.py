"""Measuring: metrics, Δm, intervals, calibration, the verdict, the comparison of files, and the ledger.

- `metrics.compute`: every metric, weighted by rows, for one weighting or many; `delta_m`: the named conventions, mean rank,
  hypervolume; `intervals`: unit bootstrap, Satterthwaite, Holm, sign flips; `calibration`: Platt, isotonic, prior;
- `judge` → `Verdict`: better, as good, worse or undecided, task by task; `compare`: the same from prediction files;
- `Ledger`, `ledger.table`: figures of any training loop and honest tables of them.
"""

from pluribus.evaluation.compare import compare
from pluribus.evaluation.ledger import Ledger
from pluribus.evaluation.verdict import Comparison, Overall, TaskTruth, TaskVerdict, Verdict, judge

__all__ = ["Comparison", "Ledger", "Overall", "TaskTruth", "TaskVerdict", "Verdict", "compare", "judge"]
