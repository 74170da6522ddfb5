"""What a training costs, for plans: core-seconds to the early stop, by a model fitted to measurements.

Small networks on small batches spend their time between the products, not in them: a step costs a fixed time and a little for
every tensor that is trained, whatever its size, and only then its FLOPs. The constants are medians over tables of 400 to 60,000
training rows, 8 to 105 columns and five tasks on one core of a server; where an early stop falls (6 to 24 epochs there) is what
keeps an estimate from being sharper than a factor of two.
"""

from __future__ import annotations

import math

EPOCHS = 16
STEP, TENSOR = 2.5e-3, 2e-4  # seconds of a step, and of each of its trained tensors
BANK_TENSOR = 1.5e-4  # seconds of a tensor in a step of specialists side by side, which have little else to do
SPEED = 3e10  # FLOPs a second of wide products; a step's passes forward and back are three forward passes


def training_seconds(
    rows: int, batch: int, flops: float, tensors: int, *, epochs: int = EPOCHS, usual: int = EPOCHS, speed: float = SPEED
) -> float:
    """rows: of an epoch. batch: rows of a step. flops: of one row's forward pass. epochs: the most there may be. usual: where an
    early stop falls."""
    steps = math.ceil(rows / batch)
    return min(epochs, usual) * (steps * (STEP + TENSOR * tensors) + 3 * rows * flops / speed)
