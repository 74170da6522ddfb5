"""Kinds of task: how a cell's value, a head's outputs and a prediction hang together; one file a kind.

A `Kind` is an open record (`pluribus.tasks.kinds.record`): a domain registers its own (maps, tags, rankings …). Those here serve
tables. Shapes: `outputs` [m, width], `values` [m], `loss` [m], and `link(outputs)` is what metrics and files see:

| kind       | width | values           | link                                    |
|------------|-------|------------------|-----------------------------------------|
| binary     | 1     | 0., 1.           | P(positive) [m]                         |
| multiclass | C     | class index      | P(class) [m, C]                         |
| ordinal    | C − 1 | class index      | P(class) [m, C]                         |
| regression | 1     | real             | mean [m], in the target's units         |
| count      | 1     | 0, 1, 2 …        | mean [m]                                |
| quantile   | L     | real             | quantiles [m, L], in the target's units |
| multilabel | C     | a set of indices | P(class) [m, C]                         |
"""

from pluribus.tasks.kinds.binary import BINARY
from pluribus.tasks.kinds.count import COUNT, LARGEST_LOG_MEAN
from pluribus.tasks.kinds.multiclass import MULTICLASS
from pluribus.tasks.kinds.multilabel import MULTILABEL
from pluribus.tasks.kinds.ordinal import ORDINAL
from pluribus.tasks.kinds.quantile import QUANTILE
from pluribus.tasks.kinds.record import KINDS, Kind, by_inference, kind, names, register
from pluribus.tasks.kinds.regression import REGRESSION

__all__ = [
    "BINARY",
    "COUNT",
    "KINDS",
    "LARGEST_LOG_MEAN",
    "MULTICLASS",
    "MULTILABEL",
    "ORDINAL",
    "QUANTILE",
    "REGRESSION",
    "Kind",
    "by_inference",
    "kind",
    "names",
    "register",
]
