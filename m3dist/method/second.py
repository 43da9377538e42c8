"""Members under both losses: each member's rows under the loss that the race chose, and beside them those under the
loss that came second.

Where the losses are close they err differently, and the sum of a member's two scores ranks better than either: on
MovieLens 1M by 0.004 NDCG@10 where three members under one loss gain 0.003 over one. A sum of two inner products is the
inner product of rows side by side, [u; s u'] and [v; v'], so that a member of both is a member like any other.

Shapes: M members; U users and I items that this worker holds rows of; k width of rows, K that of the second loss's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from m3dist.config import ResolvedBackbone
from m3dist.method.fused import Members, halves
from m3dist.training.context import Context

STAGE = "second"
SCALE = "second_scale"  # s of every member, [M]; there where a run's members are of both losses
SHARES = (0.0, 0.3, 0.5)  # of the second loss in a score, of scores of equal spread: it counts no more than the first


def backbone(context: Context) -> ResolvedBackbone | None:
    """Of the second loss; None where it was too far behind in the race, or nothing was raced."""
    assert context.stage is not None
    if STAGE not in (context.stage.name, *context.inputs):
        return None
    found = context.meta("race").get(STAGE)
    return None if found is None else ResolvedBackbone.model_validate(found)


def joined(context: Context, members: Members) -> tuple[Members, dict[str, Tensor], dict[str, Any]]:
    """Members of both losses, SCALE, and what was tried; the members as they are where one loss does as well.

    How much the second loss counts is decided on the half of the validation users that fusions learn from.
    """
    other = backbone(context)
    if other is None:
        return members, {}, {}
    trained, device = context.read(STAGE), context.data.device
    tables = [
        (trained[f"{m}.user"][members.low : members.low + len(user)].to(device), trained[f"{m}.matrix"].to(device))
        for m, user in enumerate(members.user)
    ]
    firsts = [_spread(context, user, item) for user, item in zip(members.user, members.item, strict=True)]
    even_M = torch.stack(firsts) / torch.stack([_spread(context, *table) for table in tables]).clamp(min=1e-12)
    both = _beside(members, tables)
    tried: dict[float, float] = {}
    for share in SHARES:
        _scale(both, tables, even_M * share / (1 - share))
        tried[share] = halves(context, both if share else members)[0].metric("equal", {})
    share = max(tried, key=tried.__getitem__)  # the first of the best
    scale_M = even_M * share / (1 - share)
    _scale(both, tables, scale_M)
    context.tracker.say(f"merge: {share:.0%} of {other.loss} in every score")
    meta = {STAGE: {"share": share, "tried": {str(share): value for share, value in tried.items()}}}
    return (both, {SCALE: scale_M}, meta) if share else (members, {}, meta)


def split(rows: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Rows of both losses, of any shape [..., k + K], as those of the first and of the second, of K = `width`."""
    return rows[..., : rows.shape[-1] - width], rows[..., rows.shape[-1] - width :]


def _beside(members: Members, tables: list[tuple[Tensor, Tensor]]) -> Members:
    """Members with both losses' rows; `_scale` then says, in place, how much the second's count."""
    out: dict[str, Tensor] = {}
    for m, (user_UK, item_IK) in enumerate(tables):
        out[f"{m}.user"] = torch.cat([members.user[m], user_UK], dim=1)
        out[f"{m}.matrix"] = torch.cat([members.item[m], item_IK], dim=1)
    return Members(out, members.low)


def _scale(both: Members, tables: list[tuple[Tensor, Tensor]], scale_M: Tensor) -> None:
    for user_Uk, (user_UK, _), scale in zip(both.user, tables, scale_M, strict=True):
        torch.mul(user_UK, scale, out=split(user_Uk, user_UK.shape[1])[1])


def _spread(context: Context, user_Uk: Tensor, item_Ik: Tensor) -> Tensor:
    """The standard deviation of a user's scores over the catalogue, a mean over all users."""
    far_Ik = item_Ik - item_Ik.mean(0)
    cov_kk = far_Ik.T @ far_Ik / max(len(item_Ik) - 1, 1)
    std_U = ((user_Uk @ cov_kk) * user_Uk).sum(1).clamp(min=0).sqrt()
    total, count = std_U.sum(), torch.full_like(std_U.sum(), len(std_U))
    context.engine.add_up([total, count])
    return total / count
