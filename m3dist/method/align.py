"""Stage 1: align the modalities (section 4.1). Data set -> representations v_1..v_M, z_{M+1} and a backbone.

L = L_rec + lambda_com L_com + lambda_MI L_MI, each a mean over its samples; CLUB's q(v|z) is fitted beside it on
detached representations, and held fixed in the bound.

Shapes: M modalities; V columns of all their features; R item slots of a worker's step; C items of the global batch
under contrast, of which c are this worker's anchors; D width of z.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3dist.config import Align
from m3dist.data.draws import Batch
from m3dist.data.parts import share
from m3dist.distributed.rows import distinct, spread
from m3dist.evaluation import ranking
from m3dist.losses.contrastive import Anchors, contrastive
from m3dist.method.backbone import Ahead, Backbones, Rows, Sampled, backbone_loss
from m3dist.method.content import evening, spared
from m3dist.models.alignment import Aligner, Chosen, Club
from m3dist.seeding import derive
from m3dist.storage.artifacts import Output
from m3dist.training.context import Context
from m3dist.training.loop import fit
from m3dist.training.steps import Rate


@dataclass(frozen=True)
class Contrast:
    """The items of a global batch under contrast, and this worker's anchors among them.

    x_cV: features of the anchors, zeros where there is none. valid_MC: 1 where an item is there and has the modality,
    else 0.
    """

    x_cV: Tensor
    valid_MC: Tensor
    anchors: Anchors


class AlignModel(nn.Module):
    """All that stage 1 trains apart from tables; its forward computes a worker's share of the loss."""

    def __init__(self, context: Context, aligner: Aligner, club: Club, backbones: Backbones):
        super().__init__()
        self.engine, self.config = context.engine, context.config.align
        self.aligner, self.club, self.backbone = aligner, club, backbones.models[0]
        self._tables = [backbones]  # in a list, so that it is no part of the module

    def forward(
        self, sampled: Sampled, contrast: Contrast, rows: Rows, x_RV: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, Rows]:
        """Terms, their sum, and the gradients of the rows. x_RV: features of the item slots."""
        align, (tables,), project, part = self.config, self._tables, self.backbone.project, sampled.part
        assert project is not None
        terms_M, loss, grads = backbone_loss(tables, sampled, rows, [self.aligner.projected(x_RV, project)])
        out = {name: x for name, (x,) in terms_M.items()}
        if tables.config.projection_l2:
            penalty = project.weight.square().sum() * (tables.config.projection_l2 * part)
            out["l2"], loss = out["l2"] + penalty.detach(), loss + penalty
        out["recommendation"] = loss.detach()
        common_CD, chosen = self._gathered(*self.aligner.chosen(contrast.x_cV))
        tau = self.aligner.tau
        com = contrastive(chosen.z_MCD, common_CD, contrast.valid_MC, tau, contrast.anchors)
        bounds_M, likelihood = self.club(chosen, contrast.valid_MC, contrast.anchors)
        # mutual information is never negative; a bound below 0 says that q is off, and would fall without end
        total_M = bounds_M.detach().clone()
        self.engine.add_up([total_M])
        information = (bounds_M * (total_M > 0)).sum()
        loss = loss.add(com, alpha=align.lambda_com).add(information, alpha=align.lambda_mi)
        out |= {"contrastive": com.detach(), "club": information.detach(), "club_nll": likelihood.detach()}
        out |= {"tau": tau.detach() * part, "loss": loss.detach()}
        return out, loss + likelihood, grads

    def _gathered(self, common_cD: Tensor, chosen: Chosen) -> tuple[Tensor, Chosen]:
        """Of all workers' anchors, what is given of this one's."""
        engine, C = self.engine, self.config.contrastive_items
        if engine.world == 1:
            return common_cD, chosen
        counts = [high - low for low, high in (share(C, rank, engine.world) for rank in range(engine.world))]
        parts = [common_cD, chosen.v_CW, *chosen.z_MCD.unbind()]
        common_CD, v_CW, *z = engine.gather(torch.cat(parts, dim=1), counts).split([x.shape[1] for x in parts], dim=1)
        return common_CD, Chosen(v_CW, torch.stack(z))

    def catalogue(self, x_IV: Tensor, id_Id: Tensor) -> Tensor:
        """Whole rows of items, whose product with users' rows is the score."""
        v, common = self.aligner(x_IV)
        return self.backbone.item_rows(id_Id, torch.cat([*v, common], dim=1))


def represented(aligner: Aligner, x: list[Tensor], shared: str) -> list[Tensor]:
    """v_1..v_M and what stands for z_{M+1} (`align.shared`), float32 [I, D] each, of items with features x.

    A code of z's few dimensions, which interactions have shaped, tells members less of an item without any than all its
    features do; so features stand for the shared representation, or beside the code.
    """
    v, code = aligner(torch.cat(x, dim=1))
    v, code = [one.float() for one in v], code.float()
    if shared == "code":
        return [*v, code]
    whole = torch.cat({"features": x, "both": [*x, F.normalize(code, dim=1)]}[shared], dim=1)
    return [*v, whole * evening(whole)]


def encoded(align: Align, trained: dict[str, Tensor], x: list[Tensor]) -> list[Tensor]:
    """The representations of any items by the encoders of a trained stage 1, from their features x.

    trained: its tensors."""
    aligner = Aligner([one.shape[1] for one in x], align.dim, align.encoder, align.tau, align.tau_fixed)
    aligner.load_state_dict({k.removeprefix("aligner."): v for k, v in trained.items() if k.startswith("aligner.")})
    with torch.no_grad():
        return represented(aligner.to(x[0].device), x, align.shared)


class AlignTask:
    """Stage 1 under training."""

    fixed = True

    def __init__(self, context: Context):
        config, data, dataset = context.config, context.data, context.dataset
        self.config, self.data, self.evaluator = config.align, data, context.evaluator
        assert data.all_features is not None
        self.x_IV, align = spared(data.all_features), config.align
        present = torch.stack([torch.from_numpy(dataset.present(m)) for m in dataset.modalities])
        self.present = F.pad(present.float(), (0, 1)).to(data.device)  # an item that is none has no modality
        C, engine = align.contrastive_items, data.engine
        self.anchors = Anchors(*share(C, engine.rank, engine.world))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(config.seed, "align", "init"))
            widths = [x.shape[1] for x in data.features]
            aligner = Aligner(widths, align.dim, align.encoder, align.tau, align.tau_fixed)
            widths = aligner.out_widths
            club = Club(align.dim, widths[:-1], align.club_hidden, data.device)
        self.member = Backbones(data, config, [sum(widths)], [("align", "member")])
        self.tables = {"user": self.member.user, "item": self.member.item}
        self.draws = self.member.draws(derive(config.seed, "align"), align.batch_size)
        self.ahead = Ahead(self.member, self.draws)
        self.dense = data.engine.wrap(
            AlignModel(context, aligner, club, self.member),
            [
                {"params": list(aligner.parameters()), "lr": align.encoder_lr},
                self.member.parameters(align.lr),
                {"params": list(club.parameters()), "lr": align.club_lr},
            ],
        )
        self.lr = Rate(align.lr, data.device)
        self.rates = [self.lr]

    def contrast(self, batch: Batch) -> Contrast:
        """Distinct items of the global batch, spread over the ids where there are more than `contrastive_items`."""
        C = self.config.contrastive_items
        item_C, _ = spread(distinct(batch.item_B, self.data.n_items).ids_R, self.data.n_items, C)
        anchors = self.anchors
        x_cV = self.x_IV.index_select(0, item_C[anchors.low : anchors.high])
        return Contrast(x_cV, self.present[:, item_C], anchors)

    def step(self) -> dict[str, Tensor]:
        sampled = self.ahead()
        contrast = self.contrast(sampled.batch)
        rows = self.member.rows(sampled)
        x_RV = self.x_IV.index_select(0, sampled.item.slots.ids_R)
        terms, loss, grads = self.dense(sampled, contrast, rows, x_RV)
        move = self.member.send(sampled, rows, grads)  # under way while all else has its gradients
        self.dense.backward(loss)
        self.dense.step()
        move(self.lr.now)
        return terms

    def representations(self) -> list[Tensor]:
        """Those of every item."""
        with self.dense.reading() as model:
            return represented(model.aligner, self.data.features, self.config.shared)

    def evaluate(self) -> dict[str, float]:
        with self.dense.reading() as model:
            (id_Id,) = self.member.item.whole(self.data.engine)
            item_Id = self.member.scored(model.catalogue(self.x_IV[:-1], id_Id).float())
        product, low = ranking.Product(self.member.users()[0], item_Id), self.member.user.low
        return self.evaluator.evaluate(lambda user_u, mask: (product(user_u - low), None), "val")[0]

    def output(self, meta: dict[str, Any]) -> Output:
        """What later stages read."""
        dense = {name.replace("backbone.", "member.model."): x for name, x in self.dense.state().items()}
        tensors = {name: x for name, x in dense.items() if not name.startswith("club.")}
        tensors |= {f"representation.{r}": x for r, x in enumerate(self.representations())}
        tables = self.member.tables("member.")
        return self.member.output(tensors, meta, tables)


def run(context: Context) -> Output:
    """Train stage 1. Its tensors are representation.r and member.*; beside them the best validation metrics."""
    task = AlignTask(context)
    best = fit(task, context.plan, context.tracker, context.checkpoints)
    return task.output({"validation": best})
