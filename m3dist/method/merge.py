"""Stage 3: one recommender per modality on Q_m = [Phi_m; Phi_{M+1}], fused per user (section 4.3).

The same stage trains naive UltraGCN: one member on the concatenated features, or on ids alone without features.

Shapes: M members, u users of a block, I items.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from m3dist.config import Config
from m3dist.data.dataset import Dataset
from m3dist.data.sampling import Batch
from m3dist.distributed.engine import Engine
from m3dist.distributed.tables import pull_rows, push_rows
from m3dist.evaluation import ranking
from m3dist.method import fusion
from m3dist.method.backbone import Data, Member, Rows, backbone_loss
from m3dist.models.ultragcn import UltraGCN
from m3dist.seeding import derive
from m3dist.storage.checkpoints import Checkpoints
from m3dist.storage.folders import Stored
from m3dist.training.loop import fit
from m3dist.training.tracking import Tracker


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
            return fusion.equal_weights(len(scores[0]), self.models)
        if self.strategy == "loss":
            assert self.loss_weight is not None
            return self.loss_weight.expand(len(scores[0]), -1)
        if self.strategy == "attention":
            assert self.gate is not None
            with torch.no_grad():
                return self.gate(torch.cat([fusion.confidence(s) for s in scores], dim=1))
        return fusion.entropy_weights(torch.stack([fusion.entropy(s) for s in scores], dim=1))

    def __call__(self, user_u: Tensor) -> Tensor:
        scores = self.scores(user_u)
        return fusion.fuse(self.weights(scores), scores)


class MergeModel(nn.Module):
    """The members' backbones; forward computes the worker's share of all their losses."""

    def __init__(self, data: Data, backbones: list[UltraGCN]):
        super().__init__()
        self.data = data
        self.backbones = nn.ModuleList(backbones)

    def forward(self, what: str, *args: Any) -> Any:
        return getattr(self, what)(*args)

    def loss(
        self, batch: Batch, rows: Rows, users: list[Tensor], items: list[Tensor], contents: list[Tensor | None]
    ) -> list[dict[str, Tensor]]:
        out = []
        for backbone, user_Rd, id_Rd, content_Rw in zip(self.backbones, users, items, contents, strict=True):
            assert isinstance(backbone, UltraGCN)
            out.append(backbone_loss(self.data, batch, rows, user_Rd, id_Rd, content_Rw, backbone))
        return out

    def catalogue(self, m: int, id_Id: Tensor, content_Iw: Tensor | None) -> Tensor:
        backbone = self.backbones[m]
        assert isinstance(backbone, UltraGCN)
        return backbone.item_rows(id_Id, content_Iw)


class MergeTask:
    def __init__(self, data: Data, config: Config, contents: list[Tensor | None], init: dict[str, Tensor] | None):
        self.data, self.config = data, config
        self.contents = [None if x is None else x.to(data.device) for x in contents]
        self.members = [
            Member(data, 0 if x is None else x.shape[1], "merge", m, init=init) for m, x in enumerate(contents)
        ]
        self.tables = {f"{m}.user": x.user for m, x in enumerate(self.members)}
        self.tables |= {f"{m}.item": x.item for m, x in enumerate(self.members)}
        self.sampler = data.sampler(config.merge.batch_size, "merge")
        model = MergeModel(data, [member.model for member in self.members])
        self.dense = data.engine.wrap(model, [{"params": list(model.parameters()), "lr": config.merge.lr}])

    def step(self, batch: Batch) -> dict[str, Tensor]:
        rows = Rows(self.data, batch)
        wanted = [(x.user, rows.user) for x in self.members] + [(x.item, rows.item) for x in self.members]
        leaves = pull_rows(self.data.engine, wanted)
        users, items = leaves[: len(self.members)], leaves[len(self.members) :]
        contents = [None if x is None else x.index_select(0, rows.item.ids_R) for x in self.contents]
        terms = self.dense("loss", batch, rows, users, items, contents)
        self.dense.backward(torch.stack([part["loss"] for part in terms]).sum())
        self.dense.step()
        pulled = [(*which, leaf) for which, leaf in zip(wanted, leaves, strict=True)]
        push_rows(self.data.engine, pulled, self.config.merge.lr * self.dense.rate)
        out = {f"{m}/{name}": x.detach() for m, part in enumerate(terms) for name, x in part.items()}
        return out | {name: torch.stack([part[name].detach() for part in terms]).sum() for name in terms[0]}

    @torch.no_grad()
    def matrices(self) -> dict[str, Tensor]:
        """The items' whole matrices."""
        return {
            f"{m}.matrix": self.dense("catalogue", m, member.item.whole(self.data.engine), content)
            for m, (member, content) in enumerate(zip(self.members, self.contents, strict=True))
        }

    def fused(self, strategy: str, further: dict[str, Tensor]) -> Fused:
        """The members as they are, for the users whose rows this worker holds; further: matrices and what else."""
        users = {f"{m}.user": member.user.weight for m, member in enumerate(self.members)}
        return Fused({**users, **further}, strategy, self.members[0].user.low)

    def tensors(self) -> dict[str, Stored]:
        """State and the items' whole matrices."""
        return {**self.state(), **self.matrices()}

    def evaluate(self) -> dict[str, float]:
        strategy = self.config.merge.fusion if self.config.merge.fusion in ("equal", "entropy") else "equal"
        fused = self.fused(strategy, self.matrices())
        weights = {f"fusion weight {m}": w for m, w in enumerate(_sample_weights(self.data, fused).mean(0).tolist())}
        return self.data.evaluate(fused, "val")[0] | weights

    def state(self) -> dict[str, Stored]:
        """What evaluation reads, by the names of the artifact."""
        dense = {name.removeprefix("backbones."): x for name, x in self.dense.state().items()}
        named: dict[str, Stored] = {
            f"{m}.model.{name}": x for at, x in dense.items() for m, _, name in [at.partition(".")]
        }
        return named | {k: x for m, member in enumerate(self.members) for k, x in member.state(f"{m}.").items()}


@torch.no_grad()
def _sample_weights(data: Data, fused: Fused) -> Tensor:
    """Fusion weights [u, M] of the first users, as many as are ranked at once."""
    some = torch.arange(min(data.n_users, data.config.evaluation.block))
    return data.joined(fused.weights(fused.scores(some[data.mine(some)])))


def _validation_pairs(data: Data, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Validation users in ascending order, their items, and one uniform negative each."""
    user, item = (torch.from_numpy(x.copy()).long() for x in data.dataset.interactions("val"))
    generator = torch.Generator().manual_seed(derive(seed, "validation"))
    return user, item, torch.randint(data.n_items, (len(user),), generator=generator)


def fit_fusion(data: Data, config: Config, fused: Fused) -> dict[str, Tensor]:
    """What `loss` and `attention` learn from validation pairs: weights [M], and the gate's parameters."""
    user, item, negative = _validation_pairs(data, config.seed)
    mine = data.mine(user)

    def pair_scores(items: Tensor) -> Tensor:
        at, items = user[mine] - fused.low, items[mine]
        pairs = [(u[at] * v[items]).sum(1) for u, v in zip(fused.user, fused.item, strict=True)]
        return data.joined(torch.stack(pairs, dim=1))

    positive_nM, negative_nM = pair_scores(item), pair_scores(negative)
    loss_M = torch.nn.functional.softplus(negative_nM - positive_nM).mean(0)
    out = {"loss_weight": fusion.loss_weights(loss_M)}
    if config.merge.fusion == "attention" and fused.models > 1:
        users = torch.unique(user)
        here = users[data.mine(users)].split(1024)
        blocks = [torch.cat([fusion.confidence(s) for s in fused.scores(u)], 1) for u in here]
        confidence = data.joined(torch.cat(blocks))
        with torch.random.fork_rng():
            torch.manual_seed(derive(config.seed, "gate"))
            gate = fusion.AttentionGate(fused.models)
        gate.mean, gate.std = confidence.mean(0), confidence.std(0).clamp(min=1e-6)
        optimizer = torch.optim.Adam(gate.parameters(), lr=config.merge.attention_lr)
        at = torch.searchsorted(users, user)
        for _ in range(config.merge.attention_epochs):
            optimizer.zero_grad()
            margin = (gate(confidence)[at] * (positive_nM - negative_nM)).sum(1)
            torch.nn.functional.softplus(-margin).mean().backward()
            optimizer.step()
        out |= {f"gate.{name}": x.detach() for name, x in gate.state_dict().items()}
    return out


def run(
    dataset: Dataset,
    config: Config,
    contents: list[Tensor | None],
    init: dict[str, Tensor] | None,
    tracker: Tracker,
    engine: Engine | None = None,
    checkpoints: Checkpoints | None = None,
    stage: str = "merge",
) -> tuple[dict[str, Stored], dict]:
    """Train the members together on the same batches. Returns their tensors and validation metrics of the fusion.

    stage: the name under which it is logged.
    """
    task = MergeTask(Data(dataset, config, engine), config, contents, init)
    best = fit(task, config.merge, config.evaluation.metric, stage, tracker, checkpoints)
    further = task.matrices()
    further |= fit_fusion(task.data, config, task.fused("equal", further))
    fused = task.fused(config.merge.fusion, further)
    weight_uM = _sample_weights(task.data, fused)
    for m in range(fused.models):
        tracker.histogram("merge", f"fusion weight {m}", 0, weight_uM[:, m])
    final = task.data.evaluate(fused, "val")[0]
    return {**task.state(), **further}, {
        "validation": final,
        "epoch": best.get("epoch"),
        "fusion_weight": weight_uM.mean(0).tolist(),
    }
