"""Balancing: every loss and gradient balancer, in anybody's training loop.

A newcomer who knows a paper's name finds the file of that name; this page is the table of contents.
"""

from pluribus.balancing.balancer import Balancer
from pluribus.balancing.doors import Step, combine
from pluribus.balancing.equal_weighting import EqualWeighting

__all__ = [
    "Balancer",
    "EqualWeighting",
    "Step",
    "combine",
]
