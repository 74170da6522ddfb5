"""Metrics, weighted by rows: one record each, listed in the catalog (family "metric").

| file         | metrics                                                                                          |
|--------------|--------------------------------------------------------------------------------------------------|
| `ranking`    | auc, gini, ks, pr_auc, gauc, uauc, macro_auc                                                     |
| `binary`     | ne, ece, pcoc                                                                                    |
| `classes`    | logloss, brier, accuracy, balanced_accuracy, f1, f1_micro, f1_macro, mcc, qwk                    |
| `numbers`    | rmse, mae, mape, r2, explained_variance, pearson, spearman, poisson_deviance                     |
| `quantiles`  | pinball, coverage                                                                                |
| `tags`       | token_accuracy, span_f1                                                                          |
| `items`      | recall@10, recall@20, recall@50, mrr                                                             |

`checks` holds what they take, `parts` what they are made of, `scores` the functions below.
"""

from pluribus.evaluation.metrics.binary import BINS
from pluribus.evaluation.metrics.classes import EPS
from pluribus.evaluation.metrics.scores import compute, constant, judged, of_constant, resampled
from pluribus.tasks.weightings import Array, Ints, Weightings

__all__ = ["BINS", "EPS", "Array", "Ints", "Weightings", "compute", "constant", "judged", "of_constant", "resampled"]
