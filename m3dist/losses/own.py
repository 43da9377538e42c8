"""UltraGCN's loss where every positive has negatives of its own, as the paper draws them; gradients in closed form.

Negatives are read where their rows stand among the slots of a step, so that no row is copied once a negative where a
step has few items for its negatives: all are scored then, and those picked.

Shapes: M members; X = P b positives; n negatives of each; R slots of distinct items; k width of rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from m3dist.losses.logistic import Coefficients, Found, Samples, add_pairs, softplus

_SPARSE = 64  # slots to score for each negative, from which on negatives are scored one by one
_BLOCK = 256  # users whose scores are held at once


@torch.no_grad()
def ultragcn_own(
    user_MPbk: Tensor, item_MLk: Tensor, negatives: tuple[Tensor, Tensor], samples: Samples, coefficients: Coefficients
) -> tuple[Found, Tensor]:
    """The terms and gradients of `logistic.ultragcn`, and the negatives' gradients by slot, [M, R, k].

    item_MLk: rows of neighbours [s, X] and positives [X]. negatives: rows of all slots [M, R, k], and the negatives'
    slots [X, n]. samples.weight_PN: of the negatives, [X, n].
    """
    slot_MRk, slot_Xn = negatives
    share_X, n = samples.share_Pb.view(-1), slot_Xn.shape[1]
    out = Found({}, torch.zeros_like(user_MPbk), torch.empty_like(item_MLk))
    weight_TX = (samples.positive_Pb.view(-1) * share_X).unsqueeze(0)
    if samples.omega_sX is not None:
        weight_TX = torch.cat([samples.omega_sX * (coefficients.nu * share_X), weight_TX])
    value_MT = add_pairs(user_MPbk, item_MLk, weight_TX, out)
    if samples.omega_sX is not None:
        out.terms["neighbours"] = value_MT[:, :-1].sum(1)
    out.terms["positive"] = value_MT[:, -1]
    each_X1 = (share_X * (coefficients.negative_weight / n)).unsqueeze(1)
    weight_Xn = each_X1 * (samples.base + samples.scale_Pb.view(-1, 1) * samples.weight_PN)
    user_MXk, user_grad = user_MPbk.flatten(1, 2), out.user_grad_MPbk.flatten(1, 2)
    slot_grad, values = torch.zeros_like(slot_MRk), []
    add = _add_all if slot_MRk.shape[1] < _SPARSE * n else _add_each
    for user_Xk, slot_Rk, du, dv in zip(user_MXk, slot_MRk, user_grad, slot_grad, strict=True):
        value = user_Xk.new_zeros(())
        for at in range(0, len(user_Xk), _BLOCK):
            rows = slice(at, at + _BLOCK)
            value += add((user_Xk[rows], slot_Rk), slot_Xn[rows], weight_Xn[rows], (du[rows], dv))
        values.append(value)
    out.terms["negative"] = torch.stack(values)
    return out, slot_grad


Both = tuple[Tensor, Tensor]  # of users [x, k] and of slots [R, k]


def _add_all(rows: Both, slot_xn: Tensor, weight_xn: Tensor, grads: Both) -> Tensor:
    """Weighted -log(1 - sigmoid(u . v)), summed, from the scores of all slots; adds the gradients."""
    (user_xk, slot_Rk), (du, dv) = rows, grads
    slope_xn, soft_xn = softplus((user_xk @ slot_Rk.T).gather(1, slot_xn))
    slope_xR = user_xk.new_zeros(len(user_xk), len(slot_Rk)).scatter_add_(1, slot_xn, slope_xn.mul_(weight_xn))
    du.addmm_(slope_xR, slot_Rk)
    dv.addmm_(slope_xR.T, user_xk)
    return (soft_xn * weight_xn).sum()


def _add_each(rows: Both, slot_xn: Tensor, weight_xn: Tensor, grads: Both) -> Tensor:
    """The same from the negatives' own rows."""
    (user_xk, slot_Rk), (du, dv) = rows, grads
    row_xnk = slot_Rk.index_select(0, slot_xn.reshape(-1)).view(*slot_xn.shape, -1)
    slope_xn, soft_xn = softplus(torch.bmm(row_xnk, user_xk.unsqueeze(2)).squeeze(2))
    slope_xn.mul_(weight_xn)
    du += torch.bmm(slope_xn.unsqueeze(1), row_xnk).squeeze(1)
    dv.index_add_(0, slot_xn.reshape(-1), (slope_xn.unsqueeze(2) * user_xk.unsqueeze(1)).flatten(0, 1))
    return (soft_xn * weight_xn).sum()
