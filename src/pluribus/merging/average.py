"""Weight averaging, or model soups: θ = Σ_t w_t θ_t / Σ_t w_t.

Wortsman, Ilharco, Gadre, Roelofs, Gontijo-Lopes, Morcos, et al. "Model soups: averaging weights of multiple fine-tuned models
improves accuracy without increasing inference time", ICML 2022, https://arxiv.org/abs/2203.05482. The greedy soup is in
`greedy_soup`.

Weights must be above 0: dividing by a sum near 0 makes the result explode.
"""

from __future__ import annotations

from pluribus.merging.algebra import Mean, Method


def average() -> Method:
    """The weighted mean of the experts; the base is not read."""
    return Method(Mean(), space="weights", positive=True)
