"""What is known about a layer's parameters from the gradient δ at its output alone.

For y = a Wᵀ + b with rows ("places") p = 1..n of a [n, I] and δ = ∂ℓ/∂y [n, O], ∂ℓ/∂W = δᵀ a and ∂ℓ/∂b = Σ_p δ_p. So from
the tasks' δ_t alone, with no parameter gradient formed,

    <∂ℓ_t/∂W, ∂ℓ_s/∂W> = Σ_{p,q} (a aᵀ)_{pq} (δ_t δ_sᵀ)_{pq}                                    (the kernel form)

and Σ_t w_t ∂ℓ_t/∂W = (Σ_t w_t δ_t)ᵀ a. Embeddings are the same with a one-hot a; convolutions and norm layers have their own
δ → gradient. The layers are read from the autograd graph of the forward pass, so nothing has to be registered; a parameter
that is used twice, or in a way not known here, is left over and told so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from pluribus.balancing.graph import Use
from pluribus.balancing.processes import Processes


def real(x: Tensor) -> Tensor:
    """In float32 at least: half precision cannot hold a squared norm."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def gram_of(blocks: Sequence[Tensor]) -> Tensor:
    """G [T, T] of a Jacobian given in blocks [T, …]."""
    flat = [real(block).flatten(1) for block in blocks]
    total = flat[0] @ flat[0].T
    for block in flat[1:]:
        total = total.addmm(block, block.T)
    return total


def by_task(K: Tensor, tasks: Tensor, T: int) -> Tensor:
    """S K Sᵀ with S[t, p] = 1 where place p is task t's."""
    S = torch.nn.functional.one_hot(tasks, T + 1).to(K.dtype)[:, :T]
    return S.T @ K @ S


@dataclass(frozen=True)
class RowTasks:
    """Which task each of B rows is labelled for. rows: the row indices of each task, disjoint; task_of: [B], T for no task.

    A layer that sees n = B·k places (tokens, patches) has those of a row side by side (`across` False: place // k is
    the row) or a whole batch after the other (True: place % B is the row).
    """

    rows: list[Tensor]
    task_of: Tensor

    def tasks(self, n: int, across: bool) -> Tensor:
        """The task of each place [n]."""
        B = self.task_of.shape[0]
        return self.task_of.repeat(n // B) if across else self.task_of.repeat_interleave(n // B)

    def places(self, t: int, n: int, across: bool) -> Tensor:
        """The places of task t."""
        B, rows = self.task_of.shape[0], self.rows[t]
        k = torch.arange(n // B, device=rows.device)
        return (rows + B * k[:, None]).flatten() if across else (rows[:, None] * (n // B) + k).flatten()


class Layer:
    """One node of the graph and its shared parameters `leaves`. δ has the shape of the node's output; Δ is [T, *δ]."""

    def __init__(self, node: Any, found: dict[Tensor, Use]) -> None:
        self.node, self.found = node, found
        self.leaves = list(found)
        self.edge = GradientEdge(node, 0)

    def places(self, delta: Tensor) -> Tensor:
        """δ as [n, …], a place a row."""
        return delta

    def gradients(self, delta: Tensor) -> list[Tensor]:
        """∂ℓ/∂leaf of each leaf for δ = ∂ℓ/∂y."""
        raise NotImplementedError

    def jacobian(self, deltas: Tensor) -> list[Tensor]:
        """The rows [T, *leaf] of each leaf."""
        return [torch.stack(column) for column in zip(*(self.gradients(delta) for delta in deltas))]

    def gram(self, deltas: Tensor) -> Tensor:
        """This layer's part of G [T, T] for the tasks' Δ."""
        return gram_of(self.jacobian(deltas))

    def separable(self, delta: Tensor, rows: int) -> bool:
        """Whether the output has places that belong to one of `rows` rows each."""
        n = self.places(delta).shape[0]
        return n > 0 and n % rows == 0

    def kernel(self, delta: Tensor, T: int, team: Processes) -> Tensor | None:
        """K [n, n] of the products of the places' gradients (of all processes), where that is the cheaper way."""
        return None

    def grouped(self, delta: Tensor, cells: RowTasks, across: bool, team: Processes) -> Tensor:
        """This layer's part of G [T, T] where each place speaks for one task, from the δ of the summed loss."""
        return gram_of([team.sum(block) for block in self.grouped_jacobian(delta, cells, across)])

    def grouped_jacobian(self, delta: Tensor, cells: RowTasks, across: bool) -> list[Tensor]:
        """The rows [T, *leaf] of each leaf where each place speaks for one task."""
        raise NotImplementedError


class Affine(Layer):
    """addmm and mm: y = a Wᵀ + b. The weight may lie as [O, I] (Linear) or [I, O] (Conv1D of GPT-2)."""

    def __init__(self, node: Any, found: dict[Tensor, Use]) -> None:
        super().__init__(node, found)
        self.a: Tensor | None = node._saved_mat1 if node.name() == "AddmmBackward0" else node._saved_self
        last = len(node.next_functions) - 1
        self.weight = next((leaf for leaf, use in found.items() if use.slot == last), None)
        self.bias = next((leaf for leaf, use in found.items() if use.slot == 0), None)

    def inputs(self) -> Tensor:
        """a with a column of ones for the bias, [n, I (+ 1)]; the ones alone where only the bias is shared."""
        parts = []
        if self.weight is not None:
            assert self.a is not None
            parts.append(real(self.a))
        if self.bias is not None:
            n = self.node_rows()
            parts.append(torch.ones(n, 1, dtype=real(self.bias).dtype, device=self.bias.device))
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]

    def node_rows(self) -> int:
        if self.a is not None:
            return self.a.shape[0]
        return int(self.node._saved_mat1_sym_sizes[0])

    def gradients(self, delta: Tensor) -> list[Tensor]:
        found = []
        for leaf in self.leaves:
            if leaf is self.bias:
                found.append(delta.sum(0).to(leaf.dtype))
            else:
                assert self.a is not None
                a = self.a.to(delta.dtype)
                found.append((delta.T @ a if self.found[leaf].transposed else a.T @ delta).to(leaf.dtype))
        return found

    def jacobian(self, deltas: Tensor) -> list[Tensor]:
        found = []
        for leaf in self.leaves:
            if leaf is self.bias:
                found.append(deltas.sum(1).to(leaf.dtype))
            else:
                assert self.a is not None
                a = self.a.to(deltas.dtype)
                rows = deltas.transpose(1, 2) @ a if self.found[leaf].transposed else a.T @ deltas
                found.append(rows.to(leaf.dtype))
        return found

    def gram(self, deltas: Tensor) -> Tensor:
        """G depends on a through a aᵀ only: with a = L Qᵀ (n < I), <δ_tᵀ a, δ_sᵀ a> = <δ_tᵀ L, δ_sᵀ L>, and L is n × n."""
        a = self.inputs()
        if 2 * a.shape[0] < a.shape[1]:
            a = torch.linalg.qr(a.T, mode="r").R.T
        return gram_of([real(deltas).transpose(1, 2) @ a])

    def kernel(self, delta: Tensor, T: int, team: Processes) -> Tensor | None:
        delta = real(delta)
        n, O = delta.shape
        I = 1 if self.weight is None or self.a is None else self.a.shape[1]
        total = sum(team.gather(n))
        if total * total * (I + O) > (total + T * T) * I * O:
            return None
        delta = team.cat(delta)
        K = delta @ delta.T
        if self.weight is None or self.a is None:
            return K
        a = team.cat(real(self.a))
        return K.mul_(a @ a.T if self.bias is None else torch.addmm(a.new_ones(()), a, a.T))

    def grouped_jacobian(self, delta: Tensor, cells: RowTasks, across: bool) -> list[Tensor]:
        a, delta = self.inputs(), real(delta)
        places = [cells.places(t, a.shape[0], across) for t in range(len(cells.rows))]
        return [torch.stack([delta[p].T @ a[p] for p in places])]


class Convolution(Layer):
    """Every convolution (any dimension, stride, dilation, groups; transposed too), by autograd's own kernel."""

    def gradients(self, delta: Tensor) -> list[Tensor]:
        return self._of(delta, self.node._saved_input)

    def _of(self, delta: Tensor, x: Tensor) -> list[Tensor]:
        node, weight = self.node, self.node._saved_weight
        slots = [self.found[leaf].slot for leaf in self.leaves]
        _, w, b = torch.ops.aten.convolution_backward(
            delta.to(weight.dtype),
            x,
            weight,
            [delta.shape[1]],
            node._saved_stride,
            node._saved_padding,
            node._saved_dilation,
            node._saved_transposed,
            node._saved_output_padding,
            node._saved_groups,
            [False, 1 in slots, 2 in slots],
        )
        return [(w if slot == 1 else b).to(leaf.dtype) for slot, leaf in zip(slots, self.leaves)]

    def grouped_jacobian(self, delta: Tensor, cells: RowTasks, across: bool) -> list[Tensor]:
        n, x = delta.shape[0], self.node._saved_input
        each = [self._of(delta[p], x[p]) for p in (cells.places(t, n, across) for t in range(len(cells.rows)))]
        return [torch.stack(column) for column in zip(*each)]


class PerPlace(Layer):
    """Layers whose places give their gradients one by one, each as large as the leaf: norm layers, additions, products."""

    def scaled(self, delta: Tensor, leaf: Tensor) -> Tensor:
        """δ times what the leaf is multiplied with, in δ's shape (or Δ's)."""
        raise NotImplementedError

    def fold(self, scaled: Tensor, leaf: Tensor) -> Tensor:
        """The sum over all that a place holds beside the leaf's own dimensions, [n, *leaf]."""
        raise NotImplementedError

    def gradients(self, delta: Tensor) -> list[Tensor]:
        return [self.fold(self.scaled(delta, leaf), leaf).sum(0).view_as(leaf).to(leaf.dtype) for leaf in self.leaves]

    def grouped_jacobian(self, delta: Tensor, cells: RowTasks, across: bool) -> list[Tensor]:
        blocks = []
        for leaf in self.leaves:
            flat = real(self.fold(self.scaled(delta, leaf), leaf)).flatten(1)
            rows = flat.new_zeros(len(cells.rows) + 1, flat.shape[1])
            blocks.append(rows.index_add(0, cells.tasks(flat.shape[0], across), flat)[:-1])
        return blocks


class LayerNorm(PerPlace):
    """y = x̂ ∘ γ + β, x̂ normalised over the last dimensions of a place: ∂γ = Σ_p δ_p ∘ x̂_p, ∂β = Σ_p δ_p."""

    def __init__(self, node: Any, found: dict[Tensor, Use]) -> None:
        super().__init__(node, found)
        self.x = (real(node._saved_input) - node._saved_result1) * node._saved_result2

    def places(self, delta: Tensor) -> Tensor:
        return delta.reshape(-1, *self.leaves[0].shape)

    def scaled(self, delta: Tensor, leaf: Tensor) -> Tensor:
        return real(delta) * self.x if self.found[leaf].slot == 1 else real(delta)

    def fold(self, scaled: Tensor, leaf: Tensor) -> Tensor:
        return self.places(scaled)

    def jacobian(self, deltas: Tensor) -> list[Tensor]:
        T = deltas.shape[0]
        return [self.scaled(deltas, leaf).reshape(T, -1, *leaf.shape).sum(1).to(leaf.dtype) for leaf in self.leaves]


class ChannelNorm(PerPlace):
    """BatchNorm and GroupNorm: the same with γ, β a channel, summed over the positions of a place."""

    def __init__(self, node: Any, found: dict[Tensor, Use]) -> None:
        super().__init__(node, found)
        x = real(node._saved_input)
        shape = (1, -1, *[1] * (x.ndim - 2))
        if node.name() == "NativeGroupNormBackward0":
            parts = x.reshape(x.shape[0], node._saved_group, -1)
            self.x = ((parts - node._saved_result1[..., None]) * node._saved_result2[..., None]).view_as(x)
        elif node._saved_training:
            self.x = (x - node._saved_result1.view(shape)) * node._saved_result2.view(shape)
        else:
            scale = torch.rsqrt(node._saved_running_var + node._saved_eps)
            self.x = (x - node._saved_running_mean.view(shape)) * scale.view(shape)

    def scaled(self, delta: Tensor, leaf: Tensor) -> Tensor:
        return real(delta) * self.x if self.found[leaf].slot == 1 else real(delta)

    def fold(self, scaled: Tensor, leaf: Tensor) -> Tensor:
        return scaled.flatten(2).sum(2) if scaled.ndim > 2 else scaled

    def jacobian(self, deltas: Tensor) -> list[Tensor]:
        return [self.scaled(deltas, leaf).transpose(1, 2).flatten(2).sum(2).to(leaf.dtype) for leaf in self.leaves]


class Shift(PerPlace):
    """y = x + p (a bias, a position) and y = x ∘ p (a scale): p is broadcast over the places."""

    def places(self, delta: Tensor) -> Tensor:
        return delta.flatten(0, -2) if self.leaves[0].ndim == 1 and delta.ndim > 1 else delta

    def separable(self, delta: Tensor, rows: int) -> bool:
        leaf = self.leaves[0]
        broadcast = leaf.ndim < delta.ndim or (leaf.ndim == delta.ndim and leaf.shape[0] == 1)
        return broadcast and super().separable(delta, rows)

    def scaled(self, delta: Tensor, leaf: Tensor) -> Tensor:
        if self.node.name() == "AddBackward0":
            return real(delta)
        other: Tensor = self.node._saved_other if self.found[leaf].slot == 0 else self.node._saved_self
        return real(delta) * other

    def fold(self, scaled: Tensor, leaf: Tensor) -> Tensor:
        scaled = self.places(scaled)
        inner = leaf.shape if leaf.ndim < scaled.ndim else leaf.shape[1:]
        ones = [1] * (scaled.ndim - 1 - len(inner))
        return scaled.sum_to_size(scaled.shape[0], *ones, *inner).reshape(scaled.shape[0], *inner)

    def gradients(self, delta: Tensor) -> list[Tensor]:
        return [self.scaled(delta, leaf).sum_to_size(leaf.shape).to(leaf.dtype) for leaf in self.leaves]


class Embedding(Layer):
    """y_p = W[i_p]: a one-hot a, so (a aᵀ)_{pq} = [i_p = i_q]."""

    def __init__(self, node: Any, found: dict[Tensor, Use]) -> None:
        super().__init__(node, found)
        self.indices: Tensor = node._saved_indices.flatten()
        padding = node._saved_padding_idx
        self.padding = padding if isinstance(padding, int) and 0 <= padding < self.leaves[0].shape[0] else None

    def places(self, delta: Tensor) -> Tensor:
        flat = delta.reshape(-1, delta.shape[-1])
        return flat if self.padding is None else flat * (self.indices != self.padding)[:, None]

    def gradients(self, delta: Tensor) -> list[Tensor]:
        leaf, delta = self.leaves[0], self.places(delta)
        return [torch.zeros_like(leaf, requires_grad=False).index_add(0, self.indices, delta.to(leaf.dtype))]

    def gram(self, deltas: Tensor) -> Tensor:
        used, place = torch.unique(self.indices, return_inverse=True)
        rows = real(torch.stack([self.places(delta) for delta in deltas]))
        return gram_of([rows.new_zeros(rows.shape[0], len(used), rows.shape[2]).index_add(1, place, rows)])

    def kernel(self, delta: Tensor, T: int, team: Processes) -> Tensor | None:
        delta = real(self.places(delta))
        n = sum(team.gather(delta.shape[0]))
        if n > 2 * (T + 1) * delta.shape[1]:
            return None
        delta, indices = team.cat(delta), team.cat(self.indices)
        return (indices[:, None] == indices) * (delta @ delta.T)

    def grouped(self, delta: Tensor, cells: RowTasks, across: bool, team: Processes) -> Tensor:
        """A table a task, of the tokens that occur."""
        delta, T = real(self.places(delta)), len(cells.rows)
        delta, tasks = team.cat(delta), team.cat(cells.tasks(delta.shape[0], across))
        used, place = torch.unique(team.cat(self.indices), return_inverse=True)
        rows = delta.new_zeros((T + 1) * len(used), delta.shape[1]).index_add(0, tasks * len(used) + place, delta)
        return gram_of([rows.view(T + 1, -1)[:T]])


def _layer(node: Any, found: dict[Tensor, Use]) -> Layer | None:
    """The layer that a node is for these of its leaves; None where it is not one that is known here."""
    name, slots = node.name(), {use.slot for use in found.values()}
    flips = any(use.transposed for use in found.values())
    if name == "AddmmBackward0" and 1 not in slots and node._saved_alpha == 1 and node._saved_beta == 1:
        bias = next((leaf for leaf, use in found.items() if use.slot == 0), None)
        return Affine(node, found) if bias is None or bias.ndim == 1 else None
    if name == "MmBackward0" and slots == {1}:
        return Affine(node, found)
    if flips:
        return None
    if name == "ConvolutionBackward0" and 0 not in slots:
        return Convolution(node, found)
    if name == "NativeLayerNormBackward0" and 0 not in slots:
        return LayerNorm(node, found)
    if name in ("NativeGroupNormBackward0", "NativeBatchNormBackward0") and 0 not in slots:
        return ChannelNorm(node, found)
    if name == "EmbeddingBackward0" and not node._saved_scale_grad_by_freq and not node._saved_sparse:
        return Embedding(node, found)
    if name in ("AddBackward0", "MulBackward0") and len(found) == 1:
        leaf = next(iter(found))
        if (name == "AddBackward0" and getattr(node, "_saved_alpha", 1) != 1) or leaf.ndim == 0:
            return None
        return Shift(node, found)
    return None


def known_layers(found: Mapping[Tensor, tuple[list[Use], int]]) -> tuple[list[Layer], dict[Tensor, str]]:
    """The layers that hold the leaves found by `graph.uses`, and the leaves left over, each with the reason."""
    left: dict[Tensor, str] = {}
    by_node: dict[Any, dict[Tensor, Use]] = {}
    for leaf, (own, _) in found.items():
        if len(own) != 1:
            left[leaf] = f"a parameter is used {len(own)} times"
        else:
            by_node.setdefault(own[0].node, {})[leaf] = own[0]
    layers = []
    for node, leaves in by_node.items():
        layer = _layer(node, leaves)
        if layer is None:
            name = node.name().removesuffix("0").removesuffix("Backward")
            left.update(dict.fromkeys(leaves, f"no rule for a parameter in {name}"))
        else:
            layers.append(layer)
    return layers, left
