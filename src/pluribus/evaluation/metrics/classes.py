"""Metrics of classes: P(positive) [n] with labels 0 and 1, or P(class) [n, C] with class indices or sets of classes.

- `logloss` clips probabilities at 1e-7. `brier` is the mean squared error of the probability (two classes) or its sum over
  classes (Brier 1950; several).
- Classes are decided by p ≥ ½ or by the largest probability. `f1` is of the positive class (two classes) or the mean over
  classes that occur or are predicted; `balanced_accuracy` is the mean recall of the classes that occur.
- `f1_macro` is the mean over classes that occur or are predicted, of two classes too; `f1_micro` counts the hits of all classes
  together, which makes it the accuracy where a row has one class.
- Of sets of classes, each class is decided by p ≥ ½ for itself; `logloss` is the mean over classes, and a row counts for
  `accuracy` only if all its classes are right.
- `mcc` is Matthews' correlation coefficient; of several classes Gorodkin's R_K (2004).
- `qwk` is Cohen's kappa with quadratic weights (1968).
"""

from __future__ import annotations

import numpy as np

from pluribus.evaluation.metrics import checks
from pluribus.evaluation.metrics.parts import mean, mean_where, undefined_unless, with_ones
from pluribus.tasks.metrics import Additive
from pluribus.tasks.weightings import Array

EPS = 1e-7
_ANY = ("binary", "multiclass", "ordinal")
_SETS = (*_ANY, "multilabel")


def _of_target(p: Array, y: Array) -> Array:
    """The probability given to what happened."""
    found: Array = p[np.arange(len(y)), y.astype(np.intp)] if p.ndim == 2 else np.where(y > 0, p, 1 - p)
    return found


def logloss_rows(p: Array, y: Array) -> Array:
    """−log of the probability given to what happened [n]; of sets the mean over classes."""
    if y.ndim == 2:
        found: Array = logloss_rows(p.ravel(), y.ravel()).reshape(y.shape).mean(1)
        return found
    return -np.log(np.clip(_of_target(p, y), EPS, 1 - EPS))


def _brier_rows(p: Array, y: Array) -> Array:
    if p.ndim == 2:
        loss: Array = (p**2).sum(1) - 2 * _of_target(p, y) + 1
        return loss
    return (p - y) ** 2


def _decided(p: Array) -> Array:
    return p.argmax(1).astype(float) if p.ndim == 2 else (p >= 0.5).astype(float)


def _hits(p: Array, y: Array) -> Array:
    right = ((p >= 0.5) == (y > 0)).all(1) if y.ndim == 2 else _decided(p) == y
    return np.asarray(right, float)


def _confusion(p: Array, y: Array, mask: None = None) -> Array:
    """[n, 3C]: for each class whether the label is it, whether it is predicted, and both."""
    if y.ndim == 2:
        chosen = (p >= 0.5).astype(float)
        return np.concatenate((y, chosen, y * chosen), 1)
    classes = np.arange(p.shape[1] if p.ndim == 2 else 2)
    is_ = (y[:, None] == classes).astype(float)
    said = (_decided(p)[:, None] == classes).astype(float)
    return np.concatenate((is_, said, is_ * said), 1)


def _thirds(s: Array) -> tuple[Array, Array, Array]:
    """Per class [R, C]: the weight that is it, the weight predicted as it, the weight of both."""
    is_, said, both = np.split(s, 3, axis=1)
    return is_, said, both


def _balanced_accuracy(s: Array) -> Array:
    is_, _, both = _thirds(s)
    return mean_where(is_ > 0, both / is_)


def _f1_terms(p: Array, y: Array, mask: None) -> Array:
    """The confusion of the classes that count: of two the positive one, and the weight of all rows beside it."""
    if p.ndim == 2:
        return _confusion(p, y)
    said = _decided(p)
    return np.stack((np.ones(len(y)), y, said, y * said), 1)


def _f1(s: Array) -> Array:
    if s.shape[1] == 4:
        all_, is_, said, both = s.T
        return undefined_unless(all_ > 0, np.where(is_ + said > 0, 2 * both / (is_ + said), 0.0))
    return _f1_macro(s)


def _f1_macro(s: Array) -> Array:
    is_, said, both = _thirds(s)
    return mean_where(is_ + said > 0, 2 * both / (is_ + said))


def _f1_micro_terms(p: Array, y: Array, mask: None) -> Array:
    """What is true, what is predicted and what is both, over all classes [n, 3]."""
    return np.stack([part.sum(1) for part in np.split(_confusion(p, y), 3, axis=1)], 1)


def _f1_micro(s: Array) -> Array:
    return undefined_unless(s[:, 0] + s[:, 1] > 0, 2 * s[:, 2] / (s[:, 0] + s[:, 1]))


def _mcc_terms(p: Array, y: Array, mask: None) -> Array:
    """Whether the label is each class, whether each class is predicted, and whether the prediction is right [n, 2C + 1]."""
    whole = _confusion(p, y)
    size = whole.shape[1] // 3
    return np.concatenate((whole[:, : 2 * size], whole[:, 2 * size :].sum(1, keepdims=True)), 1)


def _mcc(s: Array) -> Array:
    """(c·s − Σ t_k p_k) / √((s² − Σ t_k²)(s² − Σ p_k²)): s rows, c of them right, t_k of class k, p_k predicted as k."""
    is_, said = np.split(s[:, :-1], 2, axis=1)
    total, right = is_.sum(1), s[:, -1]
    above = right * total - (is_ * said).sum(1)
    spread = (total**2 - (is_**2).sum(1)) * (total**2 - (said**2).sum(1))
    return undefined_unless(spread > 1e-12 * total**4, above / np.sqrt(spread))


def _qwk_terms(p: Array, y: Array, mask: None) -> Array:
    said = _decided(p)
    return np.stack((np.ones(len(y)), y, y**2, said, said**2, (y - said) ** 2), 1)


def _qwk(s: Array) -> Array:
    m = s[:, 1:] / s[:, :1]
    by_chance = m[:, 1] + m[:, 3] - 2 * m[:, 0] * m[:, 2]  # E(i − j)² were the two independent
    return undefined_unless(by_chance > 1e-12, 1 - m[:, 4] / by_chance)


LOGLOSS = Additive(
    "logloss", "min", _SETS, terms=with_ones(logloss_rows), finish=mean, check=checks.label_chances, label="log loss"
)
BRIER = Additive("brier", "min", _ANY, terms=with_ones(_brier_rows), finish=mean, check=checks.label_chances)
ACCURACY = Additive("accuracy", "max", _SETS, terms=with_ones(_hits), finish=mean, check=checks.labels, best=1.0, decides=True)
BALANCED_ACCURACY = Additive(
    "balanced_accuracy", "max", _ANY, terms=_confusion, finish=_balanced_accuracy, check=checks.labels, best=1.0, decides=True
)
F1 = Additive("f1", "max", _ANY, terms=_f1_terms, finish=_f1, check=checks.labels, best=1.0, decides=True)
F1_MICRO = Additive(
    "f1_micro", "max", _SETS, terms=_f1_micro_terms, finish=_f1_micro, check=checks.labels, best=1.0, decides=True
)
F1_MACRO = Additive("f1_macro", "max", _SETS, terms=_confusion, finish=_f1_macro, check=checks.labels, best=1.0, decides=True)
MCC = Additive("mcc", "max", _ANY, terms=_mcc_terms, finish=_mcc, check=checks.labels, best=1.0, decides=True, chance=0.0)
QWK = Additive("qwk", "max", ("ordinal",), terms=_qwk_terms, finish=_qwk, check=checks.class_scores, best=1.0, chance=0.0)
