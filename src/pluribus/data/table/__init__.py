"""A table with roles, read, checked and typed.

`table` is the whole; `roles` says who is who among the columns, `reading` of what types the inputs are, `targets` what kinds the
targets are, `holes` which cells have labels and why others have none, `delayed` what late labels weigh.
"""

from pluribus.data.table.holes import DELAYED, HOLES, LABELLED, MISSING, NOT_APPLICABLE
from pluribus.data.table.table import MIN_TRAIN_LABELS, Table

__all__ = ["DELAYED", "HOLES", "LABELLED", "MIN_TRAIN_LABELS", "MISSING", "NOT_APPLICABLE", "Table"]
