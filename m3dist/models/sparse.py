"""Propagation over a fixed graph whose edge weights may be learned.

`spread` and `dots` are each other's derivatives, so whatever is built of them keeps one number per edge and never a
vector per edge: memory is O(edges + nodes x width), and no matrix of nodes x nodes is made.

Shapes: n destinations, s sources, E edges, d width.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")


class Graph(nn.Module):
    """Directed edges source -> destination in CSR order (by destination, then source), and the transpose.

    Buffers: crow [n + 1], col [E] (sources), row [E] (destinations); *_t of the transpose; order_t [E], the edge that
    stands at each place of the transpose.
    """

    crow: Tensor
    col: Tensor
    row: Tensor
    crow_t: Tensor
    col_t: Tensor
    order_t: Tensor

    def __init__(self, destination_E: Tensor, source_E: Tensor, n: int, s: int):
        super().__init__()
        self.n, self.s = n, s
        order = torch.argsort(destination_E.long() * s + source_E.long())
        row, col = destination_E[order].long(), source_E[order].long()
        order_t = torch.argsort(col * n + row)

        def bounds(ids_E: Tensor, size: int) -> Tensor:
            count = torch.bincount(ids_E, minlength=size).cumsum(0)
            return torch.cat([count.new_zeros(1), count])

        kept = {"crow": bounds(row, n), "col": col, "crow_t": bounds(col, s), "col_t": row[order_t]}
        # MKL's products are fastest with 32-bit indices
        for name, x in kept.items():
            self.register_buffer(name, x.int() if len(col) < 1 << 31 else x, persistent=False)
        self.register_buffer("row", row, persistent=False)
        self.register_buffer("order_t", order_t, persistent=False)

    def degree(self) -> Tensor:
        """Edges that arrive at each destination, [n]."""
        return self.crow.diff()

    def degree_out(self) -> Tensor:
        """Edges that leave each source, [s]."""
        return self.crow_t.diff()

    def symmetric(self) -> Tensor:
        """1 / sqrt(d_destination d_source) of every edge, [E]: D^-1/2 A D^-1/2."""
        destination, source = self.degree().double().rsqrt(), self.degree_out().double().rsqrt()
        return (destination[self.row] * source[self.col.long()]).float()

    def mean(self) -> Tensor:
        """1 / d_destination of every edge, [E]."""
        return self.degree().double().reciprocal()[self.row].float()

    def forward(self, weight_E: Tensor, x_sd: Tensor) -> Tensor:
        return spread(self, weight_E, x_sd)


def _matrix(crow: Tensor, col: Tensor, value_E: Tensor, shape: tuple[int, int]) -> Tensor:
    return torch.sparse_csr_tensor(crow, col, value_E, shape, check_invariants=False)


def _product(graph: Graph, weight_E: Tensor, x_sd: Tensor) -> Tensor:
    return _matrix(graph.crow, graph.col, weight_E, (graph.n, graph.s)) @ x_sd.contiguous()


def _product_t(graph: Graph, weight_E: Tensor, x_nd: Tensor) -> Tensor:
    value_E = weight_E.index_select(0, graph.order_t)
    return _matrix(graph.crow_t, graph.col_t, value_E, (graph.s, graph.n)) @ x_nd.contiguous()


def _sampled(graph: Graph, q_nd: Tensor, k_sd: Tensor) -> Tensor:
    pattern = _matrix(graph.crow, graph.col, q_nd.new_zeros(len(graph.col)), (graph.n, graph.s))
    out = torch.sparse.sampled_addmm(pattern, q_nd.contiguous(), k_sd.contiguous().T, beta=0.0)
    return out.values()


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx, graph: Graph, weight_E: Tensor, x_sd: Tensor) -> Tensor:  # type: ignore[override]
        ctx.graph = graph
        ctx.save_for_backward(weight_E, x_sd if ctx.needs_input_grad[1] else None)
        return _product(graph, weight_E, x_sd)

    @staticmethod
    def backward(ctx, grad_nd: Tensor):  # type: ignore[override]
        weight_E, x_sd = ctx.saved_tensors
        weight = _sampled(ctx.graph, grad_nd, x_sd) if ctx.needs_input_grad[1] else None
        x = _product_t(ctx.graph, weight_E, grad_nd) if ctx.needs_input_grad[2] else None
        return None, weight, x


class _Dots(torch.autograd.Function):
    @staticmethod
    def forward(ctx, graph: Graph, q_nd: Tensor, k_sd: Tensor) -> Tensor:  # type: ignore[override]
        ctx.graph = graph
        ctx.save_for_backward(q_nd, k_sd)
        return _sampled(graph, q_nd, k_sd)

    @staticmethod
    def backward(ctx, grad_E: Tensor):  # type: ignore[override]
        q_nd, k_sd = ctx.saved_tensors
        q = _product(ctx.graph, grad_E, k_sd) if ctx.needs_input_grad[1] else None
        k = _product_t(ctx.graph, grad_E, q_nd) if ctx.needs_input_grad[2] else None
        return None, q, k


def _full(x: Tensor) -> Tensor:
    """Sparse products have no half precision."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def spread(graph: Graph, weight_E: Tensor, x_sd: Tensor) -> Tensor:
    """sum over edges (j -> i) of w_ij x_j, [n, d]; differentiable in both."""
    with torch.autocast(x_sd.device.type, enabled=False):
        return _Spread.apply(graph, _full(weight_E), _full(x_sd))


def dots(graph: Graph, q_nd: Tensor, k_sd: Tensor) -> Tensor:
    """q_i . k_j of every edge j -> i, [E]; differentiable in both."""
    with torch.autocast(q_nd.device.type, enabled=False):
        return _Dots.apply(graph, _full(q_nd), _full(k_sd))


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, graph: Graph, score_E: Tensor) -> Tensor:  # type: ignore[override]
        top_n = score_E.new_full((graph.n,), float("-inf")).scatter_reduce_(0, graph.row, score_E, "amax")
        share_E = score_E.sub(top_n.index_select(0, graph.row)).exp_()
        share_E.div_(_arriving(graph, share_E))
        ctx.graph = graph
        ctx.save_for_backward(share_E)
        return share_E

    @staticmethod
    def backward(ctx, grad_E: Tensor):  # type: ignore[override]
        (share_E,) = ctx.saved_tensors
        part_E = grad_E * share_E
        return None, part_E - share_E * _arriving(ctx.graph, part_E)


def _arriving(graph: Graph, x_E: Tensor) -> Tensor:
    """Of every edge, the sum over all that arrive at the same destination, [E]."""
    total_n = torch.segment_reduce(x_E, "sum", offsets=graph.crow.long(), initial=0)
    return total_n.index_select(0, graph.row)


def softmax(graph: Graph, score_E: Tensor) -> Tensor:
    """Softmax over the edges that arrive at the same destination, [E]."""
    return _Softmax.apply(graph, score_E)
