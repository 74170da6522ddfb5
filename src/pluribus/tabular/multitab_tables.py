"""MultiTab-Bench: tables with several targets whose relatedness is known.

"MultiTab: A Scalable Foundation for Multitask Learning on Tabular Data" (arXiv 2511.09970), the generator:

    U ∈ R^{T×D}, rows orthonormal;   P ∈ R^{T×T}, 1 on the diagonal, ρ elsewhere;   P = Q Λ Qᵀ
    W = Q Λ^½ U                      so that <w_s, w_t> = P_st exactly
    x ~ N(0, I_D),  s_t = w_t·x,     y_t = Σ_{k=1…deg_t} s_t^k + σ ε,   ε ~ N(0, 1)

The linear parts s_t of two tasks are then correlated by P_st. Beyond the paper: P in blocks (groups of related tasks) or given
whole, links (a task becomes binary: 1 where y exceeds the quantile that leaves the wanted share of positives), categorical
columns (a number cut into bins of equal mass), missing cells, in inputs and in targets. Targets are not standardised here: heads
and trees do that by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pluribus.errors import BadInput

if TYPE_CHECKING:
    import pandas as pd

WHERE = "multitab_bench"
DEGREES = (1, 3, 2, 3, 4, 2, 3)
ROWS = 10_000_000  # as many as are made at most


def multitab_bench(
    rows: int = 20_000,
    *,
    tasks: int = 7,
    features: int = 32,
    correlation: float | Sequence[float] | Sequence[Sequence[float]] | NDArray[np.float64] = 0.4,
    blocks: Sequence[int] | None = None,
    between: float = 0.0,
    degrees: Sequence[int] | None = None,
    noise: float = 0.01,
    binary: Mapping[str, float] | Sequence[str] | None = None,
    categorical: int = 0,
    bins: int = 8,
    missing: float = 0.0,
    missing_labels: float = 0.0,
    seed: int = 0,
) -> pd.DataFrame:
    """A table with the inputs x0 … and the targets y0 …

    Parameters
    ----------
    rows, tasks, features: n, T and D, with T ≤ D.
    correlation: ρ of every pair, at least −1/(T − 1); with `blocks` of the pairs within a block, one for all or one for each; or
        the whole matrix P [T, T].
    blocks: sizes of groups of tasks, which add up to T; between: the correlation of tasks of different groups.
    degrees: of the polynomials, one a task (default: 1, 3, 2, 3, 4, 2, 3, over again).
    noise: σ, in units of y.
    binary: tasks that become 0 and 1, by name: {name: share of positives}, or names (a half each).
    categorical: so many of the last inputs are cut into `bins` bins of equal mass and named c0 … c{bins − 1}.
    missing, missing_labels: share of the input cells, and of the target cells, that are empty, at random.
    seed: of everything. The same seed with more rows begins with other numbers.

    Raises
    ------
    BadInput: what cannot be, by the setting's name.
    """
    import pandas as pd

    for name, value, least in (
        ("rows", rows, 1),
        ("tasks", tasks, 1),
        ("features", features, 1),
        ("bins", bins, 2),
        ("categorical", categorical, 0),
        ("seed", seed, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise _bad(f"{name} must be a whole number of at least {least}, not {value!r}")
    if rows > ROWS:
        raise _bad(f"rows must be at most {ROWS:,}, not {rows:,}")
    if tasks > features:
        raise _bad(f"{tasks} tasks need at least as many features, not {features}")
    if categorical > features:
        raise _bad(f"categorical must be at most the number of features ({features}), not {categorical}")
    for name, share in (("missing", missing), ("missing_labels", missing_labels)):
        if not _number(share) or not 0 <= share < 1:
            raise _bad(f"{name} must be a share from 0 to below 1, not {share!r}")
    if not _number(noise) or not 0 <= noise < math.inf:
        raise _bad(f"noise must be a number of at least 0, not {noise!r}")
    powers = _degrees(degrees, tasks)
    names = [f"y{t}" for t in range(tasks)]
    rates = _rates(binary, names)

    rng = np.random.default_rng(seed)
    w = directions(matrix(tasks, correlation, blocks, between), features, rng)
    x = rng.normal(size=(rows, features))
    s = x @ w.T
    frame: dict[str, Any] = {f"x{j}": x[:, j] for j in range(features)}
    for j in range(features - categorical, features):
        edges = np.quantile(x[:, j], np.linspace(0, 1, bins + 1)[1:-1])
        frame[f"x{j}"] = np.array([f"c{b}" for b in range(bins)], dtype=object)[np.digitize(x[:, j], edges)]
    if missing:
        for name, values in frame.items():
            frame[name] = np.where(rng.random(rows) < missing, None if values.dtype == object else np.nan, values)
    for t, name in enumerate(names):
        y = np.polyval([1.0] * powers[t] + [0.0], s[:, t]) + noise * rng.normal(size=rows)
        if name in rates:
            y = (y > np.quantile(y, 1 - rates[name])).astype(float)
        frame[name] = np.where(rng.random(rows) < missing_labels, np.nan, y) if missing_labels else y
    return pd.DataFrame(frame)


def matrix(tasks: int, correlation: Any, blocks: Sequence[int] | None = None, between: float = 0.0) -> NDArray[np.float64]:
    """P [T, T] of these settings (see `multitab_bench`); a matrix that is none of correlations is an error."""
    if blocks is None and _number(correlation):
        sizes, within = [tasks], [correlation]
    elif blocks is not None:
        sizes = list(blocks) if isinstance(blocks, Sequence) else []
        if not all(isinstance(size, int) and size >= 1 for size in sizes) or sum(sizes) != tasks:
            raise _bad(f"blocks must be whole numbers that add up to {tasks}, not {blocks!r}")
        listed = isinstance(correlation, (Sequence, np.ndarray)) and not isinstance(correlation, str)
        within = list(correlation) if listed else [correlation] * len(sizes)
        if len(within) != len(sizes):
            raise _bad(f"correlation has {len(within)} values for {len(sizes)} blocks")
    else:
        try:
            given = np.asarray(correlation, dtype=np.float64)
        except (TypeError, ValueError):
            raise _bad("correlation must be a number, one a block, or a matrix of numbers") from None
        if given.shape != (tasks, tasks):
            raise _bad(f"correlation must be one number or a {tasks} × {tasks} matrix, not of shape {given.shape}")
        return _checked(given)
    if not all(_number(rho) for rho in (*within, between)):
        raise _bad("correlation and between must be numbers")
    group = np.repeat(np.arange(len(sizes)), sizes)
    p = np.where(group[:, None] == group, np.asarray(within, dtype=np.float64)[group][:, None], between)
    np.fill_diagonal(p, 1.0)
    if len(sizes) == 1 and tasks > 1 and not -1 / (tasks - 1) <= within[0] <= 1:
        raise _bad(f"a correlation of {within[0]} among {tasks} tasks is impossible: it lies in {-1 / (tasks - 1):.3f} … 1")
    return _checked(p)


def directions(p: NDArray[np.float64], features: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """W [T, D] with W Wᵀ = P."""
    u = np.linalg.qr(rng.normal(size=(features, len(p))))[0].T
    values, vectors = np.linalg.eigh(p)
    w: NDArray[np.float64] = (vectors * np.sqrt(values.clip(0))) @ u
    return w


def _checked(p: NDArray[np.float64]) -> NDArray[np.float64]:
    if not np.isfinite(p).all() or not np.allclose(p, p.T) or not np.allclose(np.diag(p), 1) or (np.abs(p) > 1 + 1e-9).any():
        raise _bad("correlation must be symmetric, with ones on the diagonal and no entry beyond 1")
    least = float(np.linalg.eigvalsh(p).min())
    if least < -1e-8:
        raise _bad(f"no tasks can be correlated so: the matrix has the eigenvalue {least:.3g}", "bring the correlations closer")
    return p


def _degrees(degrees: Sequence[int] | None, tasks: int) -> list[int]:
    if degrees is not None and (isinstance(degrees, str) or not isinstance(degrees, Sequence)):
        raise _bad(f"degrees must be a list of whole numbers, not {degrees!r}")
    found = list(degrees) if degrees is not None else [DEGREES[t % len(DEGREES)] for t in range(tasks)]
    if len(found) != tasks:
        raise _bad(f"degrees has {len(found)} values for {tasks} tasks")
    if not all(isinstance(k, int) and not isinstance(k, bool) and 1 <= k <= 9 for k in found):
        raise _bad(f"degrees must be whole numbers from 1 to 9, not {found!r}")
    return found


def _rates(binary: Mapping[str, float] | Sequence[str] | None, names: Sequence[str]) -> dict[str, float]:
    if isinstance(binary, str) or not isinstance(binary or (), (Mapping, Sequence)):
        raise _bad(f"binary must be a list of targets, or targets with shares of positives, not {binary!r}")
    found = dict(binary) if isinstance(binary, Mapping) else dict.fromkeys(binary or (), 0.5)
    for name, rate in found.items():
        if name not in names:
            raise _bad(f"binary names {name!r}, but the targets are {names[0]} … {names[-1]}")
        if not _number(rate) or not 0 < rate < 1:
            raise _bad(f"the share of positives of {name!r} must lie between 0 and 1, not {rate!r}")
    return found


def _number(value: Any) -> bool:
    return isinstance(value, (int, float, np.floating)) and not isinstance(value, bool)


def _bad(what: str, remedy: str | None = None) -> BadInput:
    return BadInput(what, where=WHERE, remedy=remedy)
