"""A run as one ONNX graph from histories to lists: fold-in by its fixed number of steps, the fusion, the best items.

Shapes: u users, T items of the longest history, I items, M members, k list length.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from m3dist.method.foldin import Both, FoldIn
    from m3dist.method.fused import Fused

_MASKED = -1e30  # finite, so that a product with a weight is


class Histories(nn.Module):
    """Scores [u, I] of users with histories, int64 [u, T] with -1 where there is no item; -inf for their own items."""

    def __init__(self, fold_in: FoldIn | Both, fused: Fused):
        super().__init__()
        self.fold_in, self.fused = fold_in, fused

    def forward(self, history_uT: Tensor) -> Tensor:
        fusion, items = self.fused.fusion, self.fold_in.items
        rows_Muk = self.fold_in.padded(history_uT)
        scores = [row_uk @ item_Ik.T for row_uk, item_Ik in zip(rows_Muk.unbind(), items, strict=True)]
        n_items = len(items[0])
        at_uT = torch.where(history_uT >= 0, history_uT, n_items)
        own_uI = scores[0].new_zeros(history_uT.shape[0], n_items + 1).scatter(1, at_uT, 1.0)[:, :n_items] > 0
        fused_uI = scores[0]
        if fusion is not None:
            weight_uM = fusion.weights([score_uI.masked_fill(own_uI, _MASKED) for score_uI in scores])
            fused_uI = (torch.stack(scores, dim=2) * weight_uM.unsqueeze(1)).sum(2)
        return fused_uI.masked_fill(own_uI, float("-inf"))


def write(path: Path, fold_in: FoldIn | Both, fused: Fused) -> None:
    """Write the graph: (history [u, T], k [1]) to (item [u, k], score [u, k]); items are places in the catalogue."""
    import onnx
    from onnx import TensorProto, helper

    model = Histories(fold_in, fused).eval()
    sample = torch.tensor([[0, 1, -1], [2, -1, -1]], device=fold_in.means.device)
    shapes = {"history_uT": {0: torch.export.Dim("u"), 1: torch.export.Dim("T")}}
    with torch.no_grad():
        program = torch.onnx.export(
            model, (sample,), dynamo=True, verbose=False, input_names=["history"], output_names=["scores"],
            dynamic_shapes=shapes, external_data=False, opset_version=18,
        )  # fmt: skip
    assert program is not None
    made = program.model_proto
    graph = made.graph
    graph.input.append(helper.make_tensor_value_info("k", TensorProto.INT64, [1]))
    graph.node.append(helper.make_node("TopK", ["scores", "k"], ["score", "item"]))
    del graph.output[:]
    for name, kind in (("item", TensorProto.INT64), ("score", TensorProto.FLOAT)):
        graph.output.append(helper.make_tensor_value_info(name, kind, ["u", "K"]))
    onnx.checker.check_model(made)
    onnx.save(made, str(path))
