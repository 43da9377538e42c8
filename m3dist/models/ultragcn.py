"""The backbone: UltraGCN (Mao et al., CIKM 2021) over id rows and projected item content.

score(u, i) = u_id . v_id + u_c . (W x_i + b), or where content is added to ids, u . (v_id + W x_i + b)

The module holds W and b; rows of the id tables and of the content are arguments, so the model knows neither how
many users there are nor where their rows live.

Shapes: U users, I items, K neighbours of an item, s of them in a step, d id width, c projected content width, w content
width; R rows of a step, P groups of b positives, X = P b of them, N negatives of a group.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class UltraGCN(nn.Module):
    """width: w, content columns (0: ids alone). Rows of users are [u_id, u_c], d + c wide (d when w is 0).

    adds: content is added to ids; content_dim is d then, and users' rows are d wide.
    """

    def __init__(self, width: int, content_dim: int, adds: bool = False):
        super().__init__()
        self.adds = adds
        self.project = nn.Linear(width, content_dim) if width else None

    def item_rows(self, id_Rd: Tensor, content_Rw: Tensor | None) -> Tensor:
        """[v_id, W x + b], or their sum, whose product with a user's row is the score."""
        if self.project is None:
            return id_Rd
        assert content_Rw is not None
        return self.joined(id_Rd, self.project(content_Rw))

    def joined(self, id_Rd: Tensor, content_Rc: Tensor | None) -> Tensor:
        """The same of content that is projected; None: of ids alone."""
        if content_Rc is None:
            return id_Rd
        return id_Rd + content_Rc if self.adds else torch.cat([id_Rd, content_Rc], dim=1)


def user_factor(degree: Tensor) -> Tensor:
    """a_u of eq. 9, sqrt(d + 1) / d; one interaction counts for users who have none."""
    degree = degree.clamp(min=1)
    return (degree + 1).sqrt() / degree


class Weights(nn.Module):
    """UltraGCN's constants: beta_ui = a_u c_i (eq. 9) and the item-item neighbours (eq. 12-14).

    degrees: training interactions of users [U] and items [I]; one of 0 counts as 1 for users. w: w1 to w4.
    neighbours: those of `graphs.item_neighbours`, which are not copied: they may lie in a mapped file. Buffers have one
    more row, for places of a batch where there is no user or item.
    """

    a_U: Tensor
    c_I: Tensor
    neighbour: Tensor
    omega: Tensor

    def __init__(
        self,
        degrees: tuple[Tensor, Tensor],
        w: tuple[float, float, float, float],
        kappa: float,
        neighbours: tuple[Tensor, Tensor] | None = None,
    ):
        super().__init__()
        self.w, self.kappa = w, kappa
        user_degree, item_degree = (torch.cat([x.double(), x.new_ones(1)]) for x in degrees)
        self.register_buffer("a_U", user_factor(user_degree).float())
        self.register_buffer("c_I", (1 / (item_degree + 1).sqrt()).float())
        self.K = neighbours[0].shape[1] if neighbours else 0
        if neighbours:
            for name, x in zip(("neighbour", "omega"), neighbours, strict=True):
                self.register_buffer(name, x.view(-1))

    def positive(self, user: Tensor, item: Tensor) -> Tensor:
        """w1 + kappa w2 beta_ui of pairs of any shape."""
        beta = self.a_U[user] * self.c_I[item]
        return beta.mul_(self.kappa * self.w[1]).add_(self.w[0])

    def negative(self, user: Tensor) -> tuple[float, Tensor]:
        """(w3, kappa w4 a_u): the weight of (u, j) is their sum with the second times c_j."""
        return self.w[2], self.a_U[user].mul_(self.kappa * self.w[3])

    def neighbours(self, item_X: Tensor, columns_s: Tensor) -> tuple[Tensor, Tensor]:
        """Neighbours of every item in these columns, [s, X], and their omega, scaled to the sum over all columns."""
        at_sX = item_X * self.K + columns_s[:, None]
        omega_sX = self.omega[at_sX].mul_(self.K / len(columns_s))
        return self.neighbour[at_sX].long(), omega_sX
