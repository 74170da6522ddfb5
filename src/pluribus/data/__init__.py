"""Tables with holes: reading, encoding, splitting, sampling, batching.

`Table.read` → `split` → `prepare` → `Prepared.batches`; `FittedColumns` travels with the model, `leakage` looks for what would
make a study lie, `sampling` mixes tasks of unequal size.
"""

from pluribus.data.batch import Batch, Labels, Rows
from pluribus.data.cells import Cells
from pluribus.data.columns import FittedColumns
from pluribus.data.dataset import Dataset
from pluribus.data.items import ItemTable
from pluribus.data.prepared import Prepared, prepare
from pluribus.data.ragged import Ragged
from pluribus.data.splitting import Split, split
from pluribus.data.table import Table

__all__ = [
    "Batch",
    "Cells",
    "Dataset",
    "FittedColumns",
    "ItemTable",
    "Labels",
    "Prepared",
    "Ragged",
    "Rows",
    "Split",
    "Table",
    "prepare",
    "split",
]
