"""The backbone: UltraGCN (Mao et al., CIKM 2021) over id rows and projected item content.

score(u, i) = u_id . v_id + u_c . (W x_i + b)

The module holds W and b; rows of the id tables and of the content are arguments, so the model knows neither how
many users there are nor where their rows live.

Shapes: U users, I items, d id width, c projected content width, w content width; R distinct rows of a step,
b positives, N negatives, k neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from m3dist import losses

_SPARSE = 64  # items to score for each negative, from which on negatives are scored one by one


class UltraGCN(nn.Module):
    """width: w, content columns (0: ids alone). Rows of users are [u_id, u_c], d + c wide (d when w is 0)."""

    def __init__(self, width: int, content_dim: int):
        super().__init__()
        self.project = nn.Linear(width, content_dim) if width else None

    def item_rows(self, id_Rd: Tensor, content_Rw: Tensor | None) -> Tensor:
        """[v_id, W x + b], whose product with a user's row is the score."""
        if self.project is None:
            return id_Rd
        assert content_Rw is not None
        return torch.cat([id_Rd, self.project(content_Rw)], dim=1)


class Weights(nn.Module):
    """UltraGCN's constants: beta_ui = a_u c_i (eq. 9) and the item-item neighbours (eq. 12-14).

    degrees: training interactions of users [U] and items [I]; one of 0 counts as 1 for users. w: w1 to w4.
    neighbours: neighbour_Ik and omega_Ik of `graphs.item_neighbours`.
    """

    a_U: Tensor
    c_I: Tensor
    neighbour_Ik: Tensor
    omega_Ik: Tensor

    def __init__(
        self,
        degrees: tuple[Tensor, Tensor],
        w: tuple[float, float, float, float],
        kappa: float,
        neighbours: tuple[Tensor, Tensor] | None = None,
    ):
        super().__init__()
        self.w, self.kappa = w, kappa
        user_degree, item_degree = degrees[0].double().clamp(min=1), degrees[1].double()  # such a user is never drawn
        self.register_buffer("a_U", ((user_degree + 1).sqrt() / user_degree).float())
        self.register_buffer("c_I", (1 / (item_degree + 1).sqrt()).float())
        self.register_buffer("neighbour_Ik", neighbours[0] if neighbours else None)
        self.register_buffer("omega_Ik", neighbours[1] if neighbours else None)

    def positive(self, user_b: Tensor, item_b: Tensor) -> Tensor:
        """w1 + kappa w2 beta_ui, [b]."""
        return self.w[0] + self.kappa * self.w[1] * self.a_U[user_b] * self.c_I[item_b]

    def negative(self, user_b: Tensor) -> tuple[float, Tensor]:
        """(w3, kappa w4 a_u): the weight of (u, j) is their sum with the second times c_j."""
        return self.w[2], self.kappa * self.w[3] * self.a_U[user_b]


Ids = tuple[Tensor, Tensor, Tensor]  # users [b], items [b] and negatives [b, n]


def interaction_loss(
    user_bd: Tensor, item_Rd: Tensor, places: tuple[Tensor, Tensor], ids: Ids, weights: Weights
) -> tuple[Tensor, Tensor]:
    """L_O and kappa L_C together (eq. 8, 10): the positives' and the negatives' part, each a sum over its samples.

    Every positive has negatives of its own; `losses.ultragcn` is for those that a batch shares. user_bd: rows of the
    batch's users; item_Rd: distinct item rows; places: where positives [b] and negatives [b, n] stand among them.
    """
    (at_b, at_bn), (user_b, item_b, negative_bn) = places, ids
    positive = losses.positives((user_bd * item_Rd[at_b]).sum(1), weights.positive(user_b, item_b))
    base, scale_b = weights.negative(user_b)
    if len(item_Rd) < _SPARSE * at_bn.shape[1]:  # rows of items copied once a negative cost more than all the scores
        score_bn = (user_bd @ item_Rd.T).gather(1, at_bn)
    else:
        score_bn = torch.bmm(item_Rd[at_bn], user_bd.unsqueeze(2)).squeeze(2)
    return positive, losses.own_negatives(score_bn, base + scale_b[:, None] * weights.c_I[negative_bn])
