"""The router of a merge container: which task a row belongs to, learnt from features of the shared model.

Source: Lu et al. (2024), Twin-Merging: Dynamic Integration of Modular Expertise in Model Merging.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pluribus.errors import BadInput


class Router(nn.Module):
    """Which task a row belongs to, from features of the shared model; the network of the Twin-Merging paper.

    Parameters
    ----------
    width : int
        d of the features [B, d].
    tasks : sequence of str
        The tasks to tell apart.
    """

    def __init__(self, width: int, tasks: Sequence[str]) -> None:
        super().__init__()
        self.width, self.tasks = width, tuple(tasks)

        def layer(inputs: int) -> list[nn.Module]:
            return [nn.Linear(inputs, 2 * width), nn.BatchNorm1d(2 * width), nn.LeakyReLU(), nn.Dropout(0.5)]

        self.net = nn.Sequential(*layer(width), *layer(2 * width), nn.Linear(2 * width, len(self.tasks)))

    def forward(self, features: Tensor) -> Tensor:
        """Logits over the tasks, [B, T]."""
        return self.net(features)  # type: ignore[no-any-return]


def train_router(
    features: Mapping[str, Tensor], *, epochs: int = 50, batch: int = 1024, lr: float = 5e-4, most: int = 5500, seed: int = 0
) -> Router:
    """Cross-entropy on the task index; a tenth of the rows is held out and the best epoch by its accuracy is kept.

    Parameters
    ----------
    features : mapping of str to Tensor
        By task, features [n, d] of the shared model that will be served.
    epochs, batch, lr
        Of Adam.
    most : int
        Rows of a task that are used at most.
    seed : int
        Of the draws.

    Raises
    ------
    BadInput
        There are fewer than 3 rows.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rows = [f[torch.randperm(len(f))[:most]].detach().float() for f in features.values()]
        x = torch.cat(rows)
        y = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(r) for r in rows]))
        order = torch.randperm(len(x))
        held, used = order[: len(x) // 10], order[len(x) // 10 :]
        if len(used) < 2:
            raise BadInput(f"{len(x)} rows are too few to train a router", where="features", remedy="give at least 3")
        router = Router(x.shape[1], tuple(features))
        optimiser = torch.optim.Adam(router.parameters(), lr=lr)
        best, kept = -1.0, router.state_dict()
        for _ in range(epochs):
            router.train()
            for part in torch.split(used[torch.randperm(len(used))], batch):
                if len(part) > 1:  # a batch norm cannot learn from one row
                    optimiser.zero_grad()
                    F.cross_entropy(router(x[part]), y[part]).backward()  # type: ignore[no-untyped-call]
                    optimiser.step()
            router.eval()
            with torch.no_grad():
                right = float((router(x[held]).argmax(-1) == y[held]).float().mean()) if len(held) else 0.0
            if right >= best:
                best, kept = right, {k: v.clone() for k, v in router.state_dict().items()}
    router.load_state_dict(kept)
    return router.eval().requires_grad_(False)
