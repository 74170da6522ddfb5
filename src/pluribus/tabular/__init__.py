"""Tables: encoders of columns, and the networks that a study tries on them."""

from pluribus.tabular.joint_networks import JointNetwork, SharedBottomEqual, SharedBottomUncertainty
from pluribus.tabular.mlp import TabularMLP
from pluribus.tabular.network import Network
from pluribus.tabular.single_networks import SingleNetworks
from pluribus.tabular.specialists import Specialists

__all__ = [
    "JointNetwork", "Network", "SharedBottomEqual", "SharedBottomUncertainty", "SingleNetworks", "Specialists", "TabularMLP",
]  # fmt: skip
