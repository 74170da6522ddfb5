"""Measuring: metrics, Δm, intervals, calibration, costs, the verdict, comparisons of files, and the ledger."""

from pluribus.evaluation.verdict import Comparison, TaskTruth, TaskVerdict, Verdict, judge

__all__ = ["Comparison", "TaskTruth", "TaskVerdict", "Verdict", "judge"]
