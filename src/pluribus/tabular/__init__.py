"""Tables: encoders of columns, and the networks that a study tries on them.

    TabularMLP, FTTransformer, TabMEncoder,          encoders
        TabMMiniEncoder, MultiTabEncoder, RealMLPEncoder
    TabM, TabMMini, MultiTabNet, RealMLP             networks that weave their own sharing
    multitab_bench                                   a generated table with several targets of known correlation
    Network, Specialists, export_onnx                the artefact, T networks as one model, and the way to other runtimes
    SingleNetworks, JointNetwork                     candidates: one network per task; the base of all joint ones
    SharedBottomEqual, SharedBottomUncertainty       joint candidates

Names are imported on first use: a model folder is read without the code that trained it.
"""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "FTTransformer": "ft_transformer",
    "TabMEncoder": "tabm",
    "TabM": "tabm",
    "TabMMiniEncoder": "tabm",
    "TabMMini": "tabm",
    "MultiTabEncoder": "multitab_net",
    "MultiTabNet": "multitab_net",
    "RealMLPEncoder": "realmlp",
    "RealMLP": "realmlp",
    "multitab_bench": "multitab_tables",
    "TabularMLP": "mlp",
    "Network": "network",
    "Specialists": "specialists",
    "export_onnx": "export",
    "SingleNetworks": "single_networks",
    "JointNetwork": "joint_networks",
    "SharedBottomEqual": "joint_networks",
    "SharedBottomUncertainty": "joint_networks",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'pluribus.tabular' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"pluribus.tabular.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
