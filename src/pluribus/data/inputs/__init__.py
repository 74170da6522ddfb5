"""Types of input columns: how a column is recognised, what is learnt of it, and how its cells are encoded; one file a type.

An `InputType` is an open record (`pluribus.data.inputs.record`): a domain registers its own (pictures, waves, molecules).

| type     | column                       | encoded as                                                                  |
|----------|------------------------------|-----------------------------------------------------------------------------|
| number   | numbers                      | one numeric feature                                                         |
| category | words, categories            | one categorical feature                                                     |
| boolean  | true and false               | one categorical feature                                                     |
| datetime | dates and times              | numeric and categorical features of the calendar                            |
| text     | free text, or as declared    | the strings, for candidates that read them                                  |
| sequence | lists of words, numbers, keys | a ragged input of codes or numbers                                         |
| item     | keys of an item table        | a categorical feature, features of the item's attributes, a ragged input    |
"""

from pluribus.data.inputs.boolean import BOOLEAN
from pluribus.data.inputs.category import CATEGORY
from pluribus.data.inputs.date import DATE
from pluribus.data.inputs.item import ITEM
from pluribus.data.inputs.number import NUMBER
from pluribus.data.inputs.record import (
    INPUTS,
    ColumnFeatures,
    FittedInput,
    InputColumn,
    InputType,
    Unfit,
    Words,
    by_inference,
    register,
)
from pluribus.data.inputs.sequence import SEQUENCE
from pluribus.data.inputs.text import TEXT

__all__ = [
    "BOOLEAN",
    "CATEGORY",
    "DATE",
    "INPUTS",
    "ITEM",
    "NUMBER",
    "SEQUENCE",
    "TEXT",
    "ColumnFeatures",
    "FittedInput",
    "InputColumn",
    "InputType",
    "Unfit",
    "Words",
    "by_inference",
    "register",
]
