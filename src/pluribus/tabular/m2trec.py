"""M2TRec: sessions over items that are nothing but their attributes.

Shalaby, Oh, Afsharinejad, Kumar, Cui, "M2TRec: Metadata-aware Multi-task Transformer for Large-scale and Cold-start free Session-
based Recommendations", RecSys 2022.

    v_i = Linear(concat_a Emb_a(meta_a(i)))                     an item; there is no embedding of its id
    h = mean_n Transformer(v_{i_1} + p_1, …, v_{i_n} + p_n)       a session; bidirectional, padding masked
    L = L_item + Σ_a λ_a CE_a                                    next item, and each of its categories from h

Where the paper leaves it open, or public code differs:

- the next item is scored as ⟨W h, v_j⟩ with the attributes' own v_j, so that an item is ranked that no training row mentions (a
  Linear onto the catalogue, as in the public re-implementation, cannot);
- the softmax runs over the whole catalogue, as the paper's does, so that an item's attributes also learn how seldom items like it
  are chosen; with `rivals="mentioned"` items that no training row mentions are nobody's rivals, and rank higher for it;
- positions count back from the latest item; several values of an attribute, and the words of a text, are averaged;
- a small share of attribute codes is replaced by "unseen" in training, so that this code means something when it comes;
- beyond `softmax` items the softmax is sampled: L = −s_y + log(e^{s_y} + Σ_j e^{s_j − log(m q_j)}), m draws from q ∝ √count,
  draws of y itself left out: an unbiased estimate of the sum over the other items (Bengio & Senécal 2008);
- the public re-implementation learns id embeddings too, and attends causally.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pluribus.data.prepared import Prepared
from pluribus.errors import unknown
from pluribus.modeling import Choice, LogUniform, SearchSpace, Uniform
from pluribus.tabular.fields import Catalogue, mean
from pluribus.tabular.retrieval import Labelled, Ranking, RankingCandidate, session_of

UNSEEN_SHARE = 0.02
RIVALS = ("catalogue", "mentioned")


class M2TRec(Ranking):
    """catalogue: the items. categories: codes of each categorical attribute, whose class in the next item is predicted too.
    length: longest session. width: d. size: width of an attribute's embedding."""

    session: str

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        categories: Mapping[int, int],
        length: int,
        width: int,
        size: int,
        layers: int,
        heads: int,
        dropout: float,
        softmax: int,
        weight: float,
        session: str,
        rivals: str = "mentioned",
    ) -> None:
        super().__init__()
        self.fields = catalogue.fields(size)
        self.item = nn.Linear(self.fields.width, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout, F.gelu, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.query = nn.Linear(width, width, bias=False)  # W
        self.classes = nn.ModuleDict({str(a): nn.Linear(width, codes) for a, codes in categories.items()})
        self.softmax, self.weight, self.session, self.rivals = softmax, weight, session, rivals

    def vectors(self, inputs: Mapping[str, Any]) -> Tensor:
        """v [M, d] of encoded items."""
        if self.training:
            codes = inputs["categorical"]
            inputs = {**inputs, "categorical": torch.where(torch.rand(codes.shape) < UNSEEN_SHARE, 1, codes)}
        found: Tensor = self.item(self.fields(inputs))
        return found

    def encode(self, items: Tensor, mask: Tensor) -> Tensor:
        """h [B, d] of sessions: items [B, L, d], the earliest first, mask [B, L] of the places that hold one."""
        lengths = mask.sum(1, keepdim=True)
        back = (lengths - 1 - torch.arange(mask.shape[1])).clamp_min(0)
        x = items + self.position[back]
        return mean(self.encoder(x, src_key_padding_mask=~mask), mask)

    def queries(self, inputs: Mapping[str, Any], catalogue: Catalogue, items: Tensor) -> Tensor:
        """W h [B, d]; items: v of the whole catalogue, the unknown item last."""
        session = inputs[self.session]
        found: Tensor = self.query(self.encode(items[catalogue.rows(session["values"])], session["mask"]))
        return found

    def loss(self, data: Prepared, rows: Tensor, target: Tensor, weight: Tensor, train: Labelled, catalogue: Catalogue) -> Tensor:
        session = data.batch(rows, tasks=()).inputs[self.session]
        places = catalogue.rows(session["values"])
        pool = train.mentioned if self.rivals == "mentioned" else torch.arange(catalogue.count)
        share = train.share[pool]
        whole = len(pool) <= self.softmax
        drawn = slice(None) if whole else torch.multinomial(share, self.softmax, replacement=True)
        rivals = pool[drawn]
        used, at = torch.unique(torch.cat((places.flatten(), target, rivals)), return_inverse=True)  # no vector of any other item
        vectors = self.vectors(catalogue.inputs(used))
        at_session, at_target, at_rivals = at.split((places.numel(), len(target), len(rivals)))
        h = self.encode(vectors[at_session.view(places.shape)], session["mask"])
        query, others = self.query(h), vectors[at_rivals]
        if whole:
            main = F.cross_entropy(query @ others.T, torch.searchsorted(pool, target), reduction="none")
        else:
            expected = (len(rivals) * share[drawn] / share.sum()).log()
            main = sampled_softmax(query, vectors[at_target], others, expected, target[:, None] == rivals)
        total = mean_of(main, weight)
        codes = torch.from_numpy(catalogue.data.categorical)[target].long()
        for a, head in self.classes.items():
            code = codes[:, int(a)]
            each = F.cross_entropy(head(h), code, reduction="none")
            total = total + self.weight * mean_of(each, weight * (code >= 2))
        return total


def mean_of(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean; 0 where no weight is."""
    return (values * weight).sum() / weight.sum().clamp_min(1e-12)


def sampled_softmax(queries: Tensor, positives: Tensor, drawn: Tensor, log_expected: Tensor, same: Tensor) -> Tensor:
    """−log of the softmax at the positive [B], its sum over other items estimated from a sample.

    queries, positives: [B, d]. drawn: [m, d], vectors of items drawn with replacement. log_expected: [m], log of how often each
    is expected among the m draws. same: [B, m], where a draw is the row's own positive.
    """
    positive = (queries * positives).sum(1)
    others = (queries @ drawn.T - log_expected).masked_fill(same, -torch.inf)
    return torch.logsumexp(torch.cat((positive[:, None], others), 1), 1) - positive


class M2TRecNetwork(RankingCandidate):
    """M2TRec. Settings: width d, embedding size, layers, heads, dropout, softmax (items beyond which it is sampled, and then the
    size of the sample), rivals ("catalogue" or "mentioned": the items of the softmax), category_weight λ (0: no attribute is
    predicted), session (a sequence column; "auto": the only one that is joined to the items)."""

    name = "m2trec"
    label = "M2TRec"
    reads = frozenset({"sequence"})
    defaults: ClassVar[Mapping[str, Any]] = {
        **RankingCandidate.defaults,
        "session": "auto",
        "width": 64,
        "size": 32,
        "layers": 1,
        "heads": 2,
        "dropout": 0.1,
        "softmax": 4096,
        "rivals": "catalogue",
        "category_weight": 1.0,
    }
    space = SearchSpace(
        {
            "width": Choice((64, 128)),
            "layers": Choice((1, 2)),
            "dropout": Uniform(0.0, 0.3),
            "lr": LogUniform(5e-4, 5e-3),
            "category_weight": Choice((0.0, 0.3, 1.0)),
            "rivals": Choice(RIVALS),
        }
    )
    attributes: ClassVar[bool] = True

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        if self.settings["rivals"] not in RIVALS:
            raise unknown("rivals", str(self.settings["rivals"]), RIVALS, where=f"candidate {self.name!r}")

    def unfit(self, data: Prepared) -> str | None:
        return super().unfit(data) or empty_sessions(data, self.settings["session"])

    def config(self, data: Prepared) -> dict[str, Any]:
        items = data.columns.items[self.items_of(data)]
        chosen = {name: self.settings[name] for name in ("width", "size", "layers", "heads", "dropout", "softmax", "rivals")}
        session = session_of(data, self.items_of(data), self.settings["session"])
        sizes = items.data.columns.cardinalities if self.attributes and self.settings["category_weight"] else ()
        return {
            "ids": None if self.attributes else len(items),
            "attributes": self.attributes,
            "settings": {
                **chosen,
                "session": session,
                "weight": self.settings["category_weight"],
                "length": data.columns.sequences[session].limit,
                "categories": {str(a): size for a, size in enumerate(sizes) if size > 2},
            },
        }

    @staticmethod
    def build(catalogue: Catalogue, columns: Any, settings: Mapping[str, Any]) -> M2TRec:
        categories = {int(a): size for a, size in settings["categories"].items()}
        return M2TRec(catalogue, **{**settings, "categories": categories})


def empty_sessions(data: Prepared, session: str) -> str | None:
    """One line that names the first row whose session is empty, or None."""
    task = data.tasks[0].name
    items = next(name for name, found in data.columns.items.items() if task in found.columns)
    lengths = data.ragged[session_of(data, items, session)].lengths
    empty = lengths == 0
    if not empty.any():
        return None
    return f"the session is empty in {int(empty.sum())} rows (row {int(empty.argmax()) + 1} first): leave them out"


class SessionIds(M2TRecNetwork):
    """The same transformer over item ids, each with an embedding of its own, and the next item alone: the specialist that M2TRec
    is judged against. Items that no training row mentions share one embedding, and are nobody's rivals."""

    name = "session_ids"
    label = "Transformer over item ids"
    per_task = True
    attributes = False
    defaults: ClassVar[Mapping[str, Any]] = {**M2TRecNetwork.defaults, "rivals": "mentioned"}
    space = SearchSpace({name: each for name, each in M2TRecNetwork.space.ranges.items() if name != "rivals"})
