"""Stage 3: one recommender per modality on Q_m = [Phi_m; Phi_{M+1}], fused per user (section 4.3).

The same stage trains naive UltraGCN, one member on the concatenated features, or on ids alone without features, and
several such members as a control.

Shapes: M members, u users of a block, I items, n validation pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from m3dist.config import ResolvedBackbone
from m3dist.method import fused, second, warm
from m3dist.method.align import encoded
from m3dist.method.backbone import Ahead, Backbones, Rows, Sampled, backbone_loss, scored
from m3dist.method.content import Contents, Part, Picked
from m3dist.method.fused import Fused, Members
from m3dist.models.ultragcn import UltraGCN
from m3dist.seeding import derive
from m3dist.storage.artifacts import Output
from m3dist.training.context import Context
from m3dist.training.loop import fit
from m3dist.training.steps import Rate


class MergeModel(nn.Module):
    """The members' projections; forward computes the worker's share of all their losses."""

    def __init__(self, backbones: Backbones, contents: Contents):
        super().__init__()
        self.backbones = nn.ModuleList(backbones.models)
        self._held = [(backbones, contents)]  # in a list, so that they are no part of the module

    def forward(self, sampled: Sampled, rows: Rows, content: Picked | None) -> tuple[dict[str, Tensor], Tensor, Rows]:
        """Terms [M], their sum, and the gradients of the rows. content: of the item slots."""
        ((tables, contents),) = self._held
        projections = [backbone.project for backbone in tables.models]
        terms, loss, grads = backbone_loss(tables, sampled, rows, contents.project(projections, content))
        weights = [p.weight for p in projections if p is not None]
        if weights and tables.config.projection_l2:
            penalty_m = torch.stack([W.square().sum() for W in weights]) * (tables.config.projection_l2 * sampled.part)
            terms, loss = {**terms, "l2": terms["l2"] + penalty_m.detach()}, loss + penalty_m.sum()
        return terms, loss, grads

    def catalogue(self, id_MId: Tensor) -> list[Tensor]:
        """Whole rows of every member's items."""
        ((tables, contents),) = self._held
        projected = contents.project([model.project for model in tables.models], contents.items)
        return [model.joined(*pair) for model, *pair in zip(tables.models, id_MId, projected, strict=True)]


class MergeTask:
    """Stage 3 under training. contents: Q_m of every member, on the device; init: of Backbones."""

    fixed = True

    def __init__(self, context: Context, contents: Contents, init: dict[str, Tensor] | None = None):
        data, config = context.data, context.config
        self.data, self.config, self.evaluator = data, config.merge, context.evaluator
        self.contents, widths = contents, contents.widths
        self.members = Backbones(data, config, widths, [("merge", m) for m in range(len(widths))], init)
        self.tables = {"user": self.members.user, "item": self.members.item}
        self.draws = self.members.draws(derive(config.seed, "merge"), config.merge.batch_size)
        self.ahead = Ahead(self.members, self.draws)
        self.dense = data.engine.wrap(MergeModel(self.members, contents), [self.members.parameters(config.merge.lr)])
        self.lr = Rate(config.merge.lr, data.device)
        self.rates = [self.lr]

    def step(self) -> dict[str, Tensor]:
        sampled = self.ahead()
        rows = self.members.rows(sampled)
        terms, loss, grads = self.dense(sampled, rows, self.contents.rows(sampled.item.slots.ids_R))
        move = self.members.send(sampled, rows, grads)  # under way while projections have their gradients
        self.dense.backward(loss)
        self.dense.step()
        move(self.lr.now)
        each = {f"{m}/{name}": x for name, x_M in terms.items() for m, x in enumerate(x_M)}
        return {**each, **{name: x_M.sum() for name, x_M in terms.items()}, "loss": loss.detach()}

    def matrices(self) -> dict[str, Tensor]:
        """The items' whole matrices."""
        item_MId = self.members.item.whole(self.data.engine)
        with self.dense.reading() as model:
            rows = model.catalogue(item_MId)
            return {f"{m}.matrix": self.members.scored(x.float()) for m, x in enumerate(rows)}

    def ranked(self, matrices: dict[str, Tensor]) -> Members:
        """The members as they are, for the users whose rows this worker holds."""
        users = {f"{m}.user": x for m, x in enumerate(self.members.users())}
        return Members({**users, **matrices}, self.members.user.low)

    def evaluate(self) -> dict[str, float]:
        """With equal weights: a fusion learns once, of the members that are kept."""
        return self.evaluator.evaluate(Fused.of(self.ranked(self.matrices()), "equal", {}), "val")[0]

    def output(self, members: Members, learned: dict[str, Tensor], meta: dict[str, Any]) -> Output:
        """What ranking reads: the members, with rows of a second loss or without, and what a fusion learned."""
        dense = {name.removeprefix("backbones."): x for name, x in self.dense.state().items()}
        tensors = {f"{m}.model.{name}": x for at, x in dense.items() for m, _, name in [at.partition(".")]}
        tensors |= {f"{m}.matrix": x for m, x in enumerate(members.item)} | learned
        tables = {f"{m}.item": x for m, x in enumerate(self.members.item.weight)}
        tables |= {f"{m}.user": x for m, x in enumerate(members.user)}
        return self.members.output(tensors, meta, tables)


Made = tuple[Contents, dict[str, Tensor] | None]  # contents and init of a `MergeTask`


def fitted(context: Context, made: Made) -> tuple[MergeTask, dict[str, float]]:
    """The members, trained together on the same batches, and the metrics of the epoch that is kept."""
    if context.before is not None:
        context = context.under(warm.shortened(context.config, context.dataset.size("train")))
    task = MergeTask(context, *made)
    if context.before is not None:
        warm.carry(context, task)
    return task, fit(task, context.plan, context.tracker, context.checkpoints)


def train(context: Context, made: Made) -> Output:
    """Train the members and fuse them: their tensors, and validation metrics of the fusion."""
    task, best = fitted(context, made)
    members, learned, joined = second.joined(context, task.ranked(task.matrices()))
    strategy = context.config.merge.fusion
    learned |= fused.learn(context, members, strategy)
    final, users = context.evaluator.evaluate(Fused.of(members, strategy, learned), "val", keep=True)
    meta: dict[str, Any] = {"validation": final, "epoch": best.get("epoch"), "fusion_weight": [1.0], **joined}
    if members.count > 1:
        names = [f"fusion weight {m}" for m in range(members.count)]
        for name in names:
            context.tracker.histogram("merge", name, 0, torch.from_numpy(users[name]))
        meta["fusion_weight"] = [final[name] for name in names]
        meta["fusion_weight_spread"] = [float(users[name].std()) for name in names]  # over users
        meta["judged"] = fused.judge(context, members, learned, strategy)
    return task.output(members, learned, meta)


def naive(context: Context) -> Output:
    """UltraGCN on all features side by side, or on ids alone. InvRL's pretraining is the same."""
    return train(context, _plain(context))


def several(context: Context) -> Output:
    """As many members as M3-InvRL has, each of them that of `naive` with a start of its own: what their number alone
    gives, against which the method is to be judged."""
    return train(context, _several(context))


def masked(context: Context) -> Output:
    """InvRL: UltraGCN on the features that the mask keeps."""
    return train(context, _masked(context))


def per_modality(context: Context) -> Output:
    """M3-InvRL: a member per modality."""
    return train(context, _modalities(context))


def naive_second(context: Context) -> Output:
    """The member of `naive` under the loss that came second in the race."""
    return _second(context, _plain)


def several_second(context: Context) -> Output:
    """The members of `several` under the loss that came second in the race."""
    return _second(context, _several)


def masked_second(context: Context) -> Output:
    """The member of `masked` under the loss that came second in the race."""
    return _second(context, _masked)


def per_modality_second(context: Context) -> Output:
    """The members of `per_modality` under the loss that came second in the race."""
    return _second(context, _modalities)


def _second(context: Context, made: Callable[[Context], Made]) -> Output:
    """Members that `second.joined` puts beside the others; nothing where that loss was too far behind."""
    backbone = second.backbone(context)
    if backbone is None:
        return Output({}, {})
    under = context.under(context.config.model_copy(update={"backbone": backbone}))
    read, _ = made(under)  # rows of the first loss are no start for this one's
    task, best = fitted(under, (read, None))
    meta = {"validation": {k: v for k, v in best.items() if k != "epoch"}, "epoch": best.get("epoch")}
    return task.output(task.ranked(task.matrices()), {}, meta)


def _plain(context: Context) -> Made:
    return whole(context), None


def _several(context: Context) -> Made:
    return whole(context, len(context.dataset.modalities)), None


def _masked(context: Context) -> Made:
    return features(context, context.masks), _start(context, "pretrain", "0")


def _modalities(context: Context) -> Made:
    return modalities(context, context.masks), _start(context, "align", "member")


def whole(context: Context, members: int = 1) -> Contents:
    """What members read that each read all features side by side; of a data set without features, nothing."""
    return _whole(context.data.features, members)


def _whole(x: list[Tensor], members: int, scale_V: Tensor | None = None) -> Contents:
    part = [Part(0, sum(one.shape[1] for one in x), scale_V)] if x else []
    return Contents(x, [part] * members)


def features(context: Context, masks: str) -> Contents:
    """What InvRL's member reads: all features through the masks of that name, see `scale_of`."""
    return _whole(context.data.features, 1, scale_of(context, masks, 0))


def modalities(context: Context, masks: str) -> Contents:
    """What members read: Q_m = [Phi_m; Phi_{M+1}] (eq. 9, 11), D_m + D wide, through the masks of that name."""
    aligned, M = context.read("align"), len(context.dataset.modalities)
    return joined(context, masks, [aligned[f"representation.{r}"] for r in range(M + 1)])


def contents(context: Context, x: list[Tensor]) -> Contents:
    """What the members of the final stage read of any items, from their features as `DeviceData.prepared` has them."""
    assert context.stage is not None
    kind = context.stage.run.partition(":")[2]
    if kind == "per_modality":
        return joined(context, context.masks, encoded(context.config.align, context.read("align"), x))
    scale_V = scale_of(context, context.masks, 0) if kind == "masked" else None
    return _whole(x, len(x) if kind == "several" else 1, scale_V)


def new_rows(context: Context, tensors: dict[str, Tensor], x: list[Tensor]) -> list[Tensor]:
    """The members' rows of items that were not trained, as they rank, [n, k] each: content alone speaks for them.

    tensors: of the final stage; x: features as in `contents`.
    """
    given = contents(context, x)
    rows, other = _new_rows(context.config.backbone.resolved, tensors, given), second.backbone(context)
    if other is None or second.SCALE not in tensors:
        return rows
    beside = _new_rows(other, context.read(second.STAGE), given)
    return [torch.cat(pair, dim=1) for pair in zip(rows, beside, strict=True)]


def _new_rows(backbone: ResolvedBackbone, tensors: dict[str, Tensor], contents: Contents) -> list[Tensor]:
    """The same under one loss."""
    items, models = contents.items, []
    assert items is not None
    for m, width in enumerate(contents.widths):
        state = {k.removeprefix(f"{m}.model."): v for k, v in tensors.items() if k.startswith(f"{m}.model.")}
        adds = backbone.content == "add"
        model = UltraGCN(width, backbone.dim if adds else backbone.content_dim, adds)
        model.load_state_dict(state)
        models.append(model.to(items.x_RV.device))
    projected = contents.project([model.project for model in models], items)
    id_nd = items.x_RV.new_zeros(len(items.x_RV), backbone.dim)
    return [scored(model.joined(id_nd, x).detach(), backbone.loss) for model, x in zip(models, projected, strict=True)]


def joined(context: Context, masks: str, v: list[Tensor]) -> Contents:
    """Q_m of representations v_1..v_M and z_{M+1}."""
    align, parts, at = context.config.align, [], 0
    derived = align.encoder == "identity" and align.shared == "features"  # z_{M+1} is v_1..v_M in rows of even length
    scales = [scale_of(context, masks, r) for r in range(len(v))]
    for x, scale in zip(v[:-1], scales, strict=False):
        parts.append([Part(at, at := at + x.shape[1], scale)])
    common = Part(0, at, scales[-1], even=True) if derived else Part(at, at + v[-1].shape[1], scales[-1])
    blocks = [x.to(context.data.device).float() for x in (v[:-1] if derived else v)]
    return Contents(blocks, [[*own, common] for own in parts])


def scale_of(context: Context, masks: str, r: int) -> Tensor | None:
    """What the mask of representation r multiplies its dimensions by, [D]: the learned mask, or its entries shuffled as
    a control; None with masks of one.

    Its mean square is 1: a mask says what dimensions are worth beside each other, not what content is worth.
    """
    if masks == "one":
        return None
    mask_D = context.read("invariance")[f"mask.{r}"]
    if masks == "shuffled":
        generator = torch.Generator().manual_seed(derive(context.config.seed, "masks", r))
        mask_D = mask_D[torch.randperm(len(mask_D), generator=generator)]
    return (mask_D / mask_D.square().mean().sqrt().clamp(min=1e-6)).to(context.data.device)


def _start(context: Context, stage: str, prefix: str) -> dict[str, Tensor] | None:
    """The tables that `merge.init=align` starts from: those of an earlier stage."""
    if context.config.merge.init == "fresh":
        return None
    trained = context.read(stage)
    return {name: trained[f"{prefix}.{name}"] for name in ("user", "item")}
