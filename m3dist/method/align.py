"""Stage 1: align the modalities (section 4.1). Data set -> representations v_1..v_M, z_{M+1} and a backbone.

L = L_rec + lambda_com L_com + lambda_MI L_MI, each a mean over its samples; CLUB's q(v|z) is fitted beside it on
detached representations, and held fixed in the bound.

Shapes: R distinct items of a worker's step, C items of the global batch under contrast, of which c are its anchors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from m3dist import losses
from m3dist.data.sampling import Batch, Distinct, share
from m3dist.distributed.tables import pull_rows, push_rows
from m3dist.evaluation import ranking
from m3dist.method.backbone import BackboneLoss, Leaves, Member, Rows, draws
from m3dist.models.alignment import Aligner, Club
from m3dist.models.ultragcn import UltraGCN
from m3dist.seeding import derive
from m3dist.storage.artifacts import Output
from m3dist.training.context import Context
from m3dist.training.loop import fit


@dataclass(frozen=True)
class Contrast:
    """The items of a global batch under contrast, and this worker's anchors among them."""

    item_C: Tensor
    present: list[Tensor]  # bool [C] of every modality
    bounds: tuple[int, int]  # of this worker's anchors
    counts: list[int]  # anchors of every worker

    @property
    def anchor_c(self) -> Tensor:
        return self.item_C[self.bounds[0] : self.bounds[1]]


class AlignModel(nn.Module):
    """All that stage 1 trains apart from tables; its forward computes a worker's share of the loss."""

    def __init__(self, context: Context, aligner: Aligner, club: nn.ModuleList, backbone: UltraGCN):
        super().__init__()
        self.engine, self.config = context.engine, context.config.align
        self.recommendation = BackboneLoss(context.data, context.config.backbone)
        self.aligner, self.club, self.backbone = aligner, club, backbone

    def forward(
        self, rows: Rows, contrast: Contrast, user_Rd: Tensor, item_id_Rd: Tensor, x_R: list[Tensor]
    ) -> dict[str, Tensor]:
        align = self.config
        v, z, common, tau = self.aligner(x_R)
        out = self.recommendation(rows, Leaves(user_Rd, item_id_Rd, torch.cat([*v, common], dim=1)), self.backbone)
        out["recommendation"] = out.pop("loss")
        com, nll = (torch.zeros((), device=self.engine.device) for _ in range(2))
        bounds = []
        gathered = self._gathered(v, z, common, rows, contrast)
        for (v_C, z_C, common_C), q, present in zip(gathered, self.club, contrast.present, strict=True):
            n = int(present.sum())
            low, high = (int(present[:at].sum()) if n > 1 else 0 for at in contrast.bounds)
            v_H, z_H, common_H = (x if n == len(x) else x[present] for x in (v_C, z_C, common_C))
            com = com + losses.contrastive(z_H, common_H, tau, (low, high)) / max(n, 1)
            v_h, z_h = (x if high - low == n else x[low:high] for x in (v_H, z_H))
            mean_h, logvar_h = q(z_h, fixed=True)
            bounds.append(losses.club(v_h, mean_h, logvar_h, v_H) / max(n, 1))
            nll = nll + losses.gaussian_nll(v_h.detach(), *q(z_h.detach())) / max(n, 1)
        # mutual information is never negative; a bound below 0 says that q is off, and would fall without end
        bound_m = torch.stack(bounds)
        total_m = bound_m.detach().clone()
        self.engine.add_up([total_m])
        mi = (bound_m * (total_m > 0)).sum()
        loss = out["recommendation"] + align.lambda_com * com + align.lambda_mi * mi
        out |= {"contrastive": com, "club": mi, "club_nll": nll, "tau": tau * rows.batch.part, "loss": loss}
        return out

    def _gathered(
        self, v: list[Tensor], z: list[Tensor], common: Tensor, rows: Rows, contrast: Contrast
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """v_m, z_m and z_{M+1} of the items under contrast [C, D], from the workers whose anchors they are."""
        at_c = rows.more_at
        assert at_c is not None
        if self.engine.world == 1:
            common_C = common.index_select(0, at_c)
            return [
                (v_m.index_select(0, at_c), z_m.index_select(0, at_c), common_C) for v_m, z_m in zip(v, z, strict=True)
            ]
        anchors = torch.cat([part[at_c] for part in (*v, *z, common)], dim=1)
        *vz, common_C = self.engine.gather(anchors, contrast.counts).split(
            [part.shape[1] for part in (*v, *z, common)], dim=1
        )
        return [(v_C, z_C, common_C) for v_C, z_C in zip(vz[: len(v)], vz[len(v) :], strict=True)]

    def representations(self, x: list[Tensor]) -> list[Tensor]:
        """v_1..v_M and z_{M+1}, [I, D] each."""
        v, _, common, _ = self.aligner(x)
        return [*v, common]

    def catalogue(self, x: list[Tensor], id_Id: Tensor) -> Tensor:
        """Whole rows of items, whose product with users' rows is the score."""
        return self.backbone.item_rows(id_Id, torch.cat(self.representations(x), dim=1))


class AlignTask:
    """Stage 1 under training."""

    def __init__(self, context: Context):
        config, data = context.config, context.data
        self.config, self.data, self.backbone = config.align, data, config.backbone
        self.x, self.evaluator = data.features, context.evaluator
        align, dataset = config.align, context.dataset
        self.present = [torch.from_numpy(dataset.present(m)).to(data.device) for m in dataset.modalities]
        with torch.random.fork_rng():
            torch.manual_seed(derive(config.seed, "align", "init"))
            widths = [x.shape[1] for x in self.x]
            aligner = Aligner(widths, align.dim, align.encoder, align.tau, align.tau_fixed)
            widths = aligner.out_widths
            club = nn.ModuleList(Club(align.dim, width, align.club_hidden) for width in widths[:-1])
        self.member = Member(data, config, sum(widths), ("align", "member"))
        self.tables = {"user": self.member.user, "item": self.member.item}
        self.sampler = data.sampler(config.seed, "align", align.batch_size, draws(config.backbone))
        self.dense = data.engine.wrap(
            AlignModel(context, aligner, club, self.member.model),
            [
                {"params": list(aligner.parameters()), "lr": align.encoder_lr},
                {"params": list(self.member.model.parameters()), "lr": align.lr},
                {"params": list(club.parameters()), "lr": align.club_lr},
            ],
        )

    def contrast(self, batch: Batch) -> Contrast:
        item_C, _ = Distinct(self.data.n_items)(batch.item_B)
        limit, engine = self.config.contrastive_items, self.data.engine
        if len(item_C) > limit:  # spread over the ids
            item_C = item_C[torch.arange(limit, device=item_C.device) * len(item_C) // limit]
        bounds = [share(len(item_C), rank, engine.world) for rank in range(engine.world)]
        counts = [high - low for low, high in bounds]
        return Contrast(item_C, [present[item_C] for present in self.present], bounds[engine.rank], counts)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        contrast = self.contrast(batch)
        rows = Rows(self.data, self.backbone, batch, contrast.anchor_c)
        wanted = [(self.member.user, rows.user), (self.member.item, rows.item)]
        user_Rd, item_id_Rd = pull_rows(self.data.engine, wanted)
        x_R = [x.index_select(0, rows.item.ids_R) for x in self.x]
        out = self.dense(rows, contrast, user_Rd, item_id_Rd, x_R)
        self.dense.backward(out["loss"] + out["club_nll"])
        self.dense.step()
        pulled = [(*which, leaf) for which, leaf in zip(wanted, (user_Rd, item_id_Rd), strict=True)]
        push_rows(self.data.engine, pulled, self.config.lr * self.dense.rate)
        return out

    def representations(self) -> list[Tensor]:
        """v_1..v_M and z_{M+1} of every item, [I, D] each."""
        with self.dense.reading() as model:
            return model.representations(self.x)

    def evaluate(self) -> dict[str, float]:
        with self.dense.reading() as model:
            item_Id = model.catalogue(self.x, self.member.item.whole(self.data.engine))
        product, low = ranking.Product(self.member.user.weight, item_Id), self.member.user.low
        return self.evaluator.evaluate(lambda user_u: (product(user_u - low), None), "val")[0]

    def output(self, meta: dict[str, Any]) -> Output:
        """What later stages read."""
        dense = {name.replace("backbone.", "member.model."): x for name, x in self.dense.state().items()}
        tensors = {name: x for name, x in dense.items() if not name.startswith("club.")}
        tensors |= {f"representation.{r}": x for r, x in enumerate(self.representations())}
        tables = self.member.tables("member.")
        return Output(tensors, meta, tables) if self.data.sharded else Output(tensors | tables, meta)


def run(context: Context) -> Output:
    """Train stage 1. Its tensors are representation.r and member.*; beside them the best validation metrics."""
    task = AlignTask(context)
    best = fit(task, context.plan, context.tracker, context.checkpoints)
    return task.output({"validation": best})
