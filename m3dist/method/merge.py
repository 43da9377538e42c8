"""Stage 3: one recommender per modality on Q_m = [Phi_m; Phi_{M+1}], fused per user (section 4.3).

The same stage trains naive UltraGCN: one member on the concatenated features, or on ids alone without features.

Shapes: M members, u users of a block, I items, n validation pairs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from m3dist.config import Config
from m3dist.data.sampling import Batch
from m3dist.distributed.tables import pull_rows, push_rows
from m3dist.evaluation import ranking
from m3dist.method import fusion
from m3dist.method.backbone import BackboneLoss, Leaves, Member, Rows, draws
from m3dist.models.ultragcn import UltraGCN
from m3dist.seeding import derive
from m3dist.storage.artifacts import Output
from m3dist.training.context import Context
from m3dist.training.data import DeviceData
from m3dist.training.loop import fit


class Fused:
    """Members' scores and their weights, from a stage's tensors alone; ready to rank.

    low: the user to whom the first row of users' tables belongs, where they hold a part.
    """

    def __init__(self, tensors: dict[str, Tensor], strategy: str, low: int = 0):
        self.strategy, self.low = strategy, low
        self.models = sum(name.endswith(".user") for name in tensors)
        self.user = [tensors[f"{m}.user"] for m in range(self.models)]
        self.item = [tensors[f"{m}.matrix"] for m in range(self.models)]
        self._products = [ranking.Product(user, item) for user, item in zip(self.user, self.item, strict=True)]
        self.loss_weight = tensors.get("loss_weight")
        self.gate: fusion.AttentionGate | None = None
        if "gate.mean" in tensors:
            self.gate = fusion.AttentionGate(self.models)
            self.gate.load_state_dict({k.removeprefix("gate."): v for k, v in tensors.items() if k.startswith("gate.")})

    def scores(self, user_u: Tensor) -> list[Tensor]:
        """Every member's, [u, I]; the next call overwrites them."""
        return [product(user_u - self.low if self.low else user_u) for product in self._products]

    def weights(self, scores: list[Tensor]) -> Tensor:
        """omega [u, M] by the configured strategy."""
        if self.models == 1 or self.strategy == "equal":
            return fusion.equal_weights(scores[0], self.models)
        if self.strategy == "loss":
            assert self.loss_weight is not None
            return self.loss_weight.expand(len(scores[0]), -1)
        if self.strategy == "attention":
            assert self.gate is not None
            with torch.no_grad():
                return self.gate(torch.cat([fusion.confidence(s) for s in scores], dim=1))
        return fusion.entropy_weights(torch.stack([fusion.entropy(s) for s in scores], dim=1))

    def __call__(self, user_u: Tensor) -> tuple[Tensor, Tensor | None]:
        """Fused scores [u, I], which the next call overwrites, and weights [u, M]; no weights of a single member."""
        scores = self.scores(user_u)
        weight_uM = self.weights(scores)
        return fusion.fuse(weight_uM, scores), weight_uM if self.models > 1 else None


def scorer(tensors: dict[str, Tensor], config: Config) -> Fused:
    """A finished stage's members, ready to rank."""
    return Fused(tensors, config.merge.fusion)


class MergeModel(nn.Module):
    """The members' backbones; forward computes the worker's share of all their losses."""

    def __init__(self, loss: BackboneLoss, backbones: list[UltraGCN]):
        super().__init__()
        self.loss = loss
        self.backbones = nn.ModuleList(backbones)

    def forward(self, rows: Rows, members: list[Leaves]) -> list[dict[str, Tensor]]:
        out = []
        for backbone, leaves in zip(self.backbones, members, strict=True):
            assert isinstance(backbone, UltraGCN)
            out.append(self.loss(rows, leaves, backbone))
        return out

    def catalogue(self, m: int, id_Id: Tensor, content_Iw: Tensor | None) -> Tensor:
        """Whole rows of a member's items."""
        backbone = self.backbones[m]
        assert isinstance(backbone, UltraGCN)
        return backbone.item_rows(id_Id, content_Iw)


class MergeTask:
    """Stage 3 under training. contents: Q_m of every member [I, w], or None of one on ids alone. init: see Member."""

    def __init__(self, context: Context, contents: list[Tensor | None], init: dict[str, Tensor] | None = None):
        data, config = context.data, context.config
        self.data, self.config, self.evaluator = data, config.merge, context.evaluator
        self.backbone = config.backbone
        self.contents = [None if x is None else x.to(data.device) for x in contents]
        widths = [0 if x is None else x.shape[1] for x in contents]
        self.members = [Member(data, config, width, ("merge", m), init) for m, width in enumerate(widths)]
        self.tables = {f"{m}.user": x.user for m, x in enumerate(self.members)}
        self.tables |= {f"{m}.item": x.item for m, x in enumerate(self.members)}
        self.sampler = data.sampler(config.seed, "merge", config.merge.batch_size, draws(config.backbone))
        model = MergeModel(BackboneLoss(data, config.backbone), [member.model for member in self.members])
        self.dense = data.engine.wrap(model, [{"params": list(model.parameters()), "lr": config.merge.lr}])

    def step(self, batch: Batch) -> dict[str, Tensor]:
        rows = Rows(self.data, self.backbone, batch)
        wanted = [(x.user, rows.user) for x in self.members] + [(x.item, rows.item) for x in self.members]
        leaves = pull_rows(self.data.engine, wanted)
        users, items = leaves[: len(self.members)], leaves[len(self.members) :]
        contents = [None if x is None else x.index_select(0, rows.item.ids_R) for x in self.contents]
        terms = self.dense(rows, [Leaves(*parts) for parts in zip(users, items, contents, strict=True)])
        self.dense.backward(torch.stack([part["loss"] for part in terms]).sum())
        self.dense.step()
        pulled = [(*which, leaf) for which, leaf in zip(wanted, leaves, strict=True)]
        push_rows(self.data.engine, pulled, self.config.lr * self.dense.rate)
        out = {f"{m}/{name}": x.detach() for m, part in enumerate(terms) for name, x in part.items()}
        return out | {name: torch.stack([part[name].detach() for part in terms]).sum() for name in terms[0]}

    def matrices(self) -> dict[str, Tensor]:
        """The items' whole matrices."""
        with self.dense.reading() as model:
            return {
                f"{m}.matrix": model.catalogue(m, member.item.whole(self.data.engine), content)
                for m, (member, content) in enumerate(zip(self.members, self.contents, strict=True))
            }

    def fused(self, strategy: str, further: dict[str, Tensor]) -> Fused:
        """The members as they are, for the users whose rows this worker holds; further: matrices and what else."""
        users = {f"{m}.user": member.user.weight for m, member in enumerate(self.members)}
        return Fused({**users, **further}, strategy, self.members[0].user.low)

    def evaluate(self) -> dict[str, float]:
        strategy = self.config.fusion if self.config.fusion in ("equal", "entropy") else "equal"
        return self.evaluator.evaluate(self.fused(strategy, self.matrices()), "val")[0]

    def output(self, further: dict[str, Tensor], meta: dict[str, Any]) -> Output:
        """What ranking reads: further are the items' matrices and what a fusion learned."""
        dense = {name.removeprefix("backbones."): x for name, x in self.dense.state().items()}
        tensors = {f"{m}.model.{name}": x for at, x in dense.items() for m, _, name in [at.partition(".")]}
        tables = {k: x for m, member in enumerate(self.members) for k, x in member.tables(f"{m}.").items()}
        if self.data.sharded:
            return Output(tensors | further, meta, tables)
        return Output(tensors | tables | further, meta)


class ValidationPairs:
    """Validation pairs as fusions learn from them: each with one uniform negative, in ascending order of users."""

    def __init__(self, data: DeviceData, seed: int):
        self.data = data
        self.user, self.item = (torch.from_numpy(x.copy()).long() for x in data.dataset.interactions("val"))
        generator = torch.Generator().manual_seed(derive(seed, "validation"))
        self.negative = torch.randint(data.n_items, (len(self.user),), generator=generator)

    def scores(self, fused: Fused, items: Tensor) -> Tensor:
        """Every member's score of each pair's user with these items, [n, M]."""
        mine = self.data.mine(self.user)
        at, items = self.user[mine] - fused.low, items[mine]
        pairs = [(u[at] * v[items]).sum(1) for u, v in zip(fused.user, fused.item, strict=True)]
        return self.data.joined(torch.stack(pairs, dim=1))


def fit_fusion(context: Context, fused: Fused, strategy: str) -> dict[str, Tensor]:
    """What `loss` and `attention` learn from validation pairs: weights [M], and the gate's parameters."""
    settings, seed, data = context.config.merge, context.config.seed, context.data
    pairs = ValidationPairs(data, seed)
    positive_nM, negative_nM = pairs.scores(fused, pairs.item), pairs.scores(fused, pairs.negative)
    loss_M = torch.nn.functional.softplus(negative_nM - positive_nM).mean(0)
    out = {"loss_weight": fusion.loss_weights(loss_M)}
    if strategy == "attention" and fused.models > 1:
        users = torch.unique(pairs.user)
        here = users[data.mine(users)].split(1024)
        blocks = [torch.cat([fusion.confidence(s) for s in fused.scores(u)], 1) for u in here]
        confidence = data.joined(torch.cat(blocks))
        with torch.random.fork_rng():
            torch.manual_seed(derive(seed, "gate"))
            gate = fusion.AttentionGate(fused.models)
        gate.mean, gate.std = confidence.mean(0), confidence.std(0).clamp(min=1e-6)
        optimizer = torch.optim.Adam(gate.parameters(), lr=settings.attention_lr)
        at = torch.searchsorted(users, pairs.user)
        for _ in range(settings.attention_epochs):
            optimizer.zero_grad()
            margin = (gate(confidence)[at] * (positive_nM - negative_nM)).sum(1)
            torch.nn.functional.softplus(-margin).mean().backward()
            optimizer.step()
        out |= {f"gate.{name}": x.detach() for name, x in gate.state_dict().items()}
    return out


def train(context: Context, contents: list[Tensor | None], init: dict[str, Tensor] | None = None) -> Output:
    """Train the members together on the same batches: their tensors, and validation metrics of the fusion."""
    task = MergeTask(context, contents, init)
    best = fit(task, context.plan, context.tracker, context.checkpoints)
    further = task.matrices()
    strategy = context.config.merge.fusion
    further |= fit_fusion(context, task.fused("equal", further), strategy)
    final, users = context.evaluator.evaluate(task.fused(strategy, further), "val", keep=True)
    for name in [name for name in users if name.startswith("fusion weight")]:
        context.tracker.histogram("merge", name, 0, torch.from_numpy(users[name]))
    weights = [value for name, value in final.items() if name.startswith("fusion weight")]
    meta = {"validation": final, "epoch": best.get("epoch"), "fusion_weight": weights or [1.0]}
    return task.output(further, meta)


def naive(context: Context) -> Output:
    """UltraGCN on all features side by side, or on ids alone. InvRL's pretraining is the same."""
    return train(context, [context.data.all_features])


def masked(context: Context) -> Output:
    """InvRL: UltraGCN on the features that the mask keeps."""
    features = context.data.all_features
    assert features is not None
    contents: list[Tensor | None] = [context.read("invariance")["mask.0"].to(features.device) * features]
    return train(context, contents, _start(context, "pretrain", "0"))


def fused(context: Context) -> Output:
    """M3-InvRL: a member per modality on Q_m = [Phi_m; Phi_{M+1}] (eq. 9, 11), [I, D_m + D]."""
    aligned, masks = context.read("align"), context.read("invariance")
    M = len(context.dataset.modalities)
    phi = [masks[f"mask.{r}"] * aligned[f"representation.{r}"] for r in range(M + 1)]
    contents: list[Tensor | None] = [torch.cat([phi[m], phi[M]], dim=1) for m in range(M)]
    return train(context, contents, _start(context, "align", "member"))


def _start(context: Context, stage: str, prefix: str) -> dict[str, Tensor] | None:
    """The tables that `merge.init=align` starts from: those of an earlier stage."""
    if context.config.merge.init == "fresh":
        return None
    trained = context.read(stage)
    return {name: trained[f"{prefix}.{name}"] for name in ("user", "item")}
