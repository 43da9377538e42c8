"""Stage 1: align the modalities (section 4.1). Data set -> representations v_1..v_M, z_{M+1} and a backbone.

L = L_rec + lambda_com L_com + lambda_MI L_MI, each a mean over its samples; CLUB's q(v|z) is fitted beside it on
detached representations, and held fixed in the bound.

Shapes: R distinct items of a step, C of them under contrast.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from m3dist import losses
from m3dist.config import Config
from m3dist.data.batches import Batch
from m3dist.data.dataset import Dataset
from m3dist.loop import fit
from m3dist.models.alignment import Aligner, Club
from m3dist.seeding import derive
from m3dist.stages.common import Data, Member, Rows, backbone_loss
from m3dist.tracking import Tracker


class AlignTask:
    def __init__(self, data: Data, config: Config):
        self.data, self.config = data, config
        self.x = data.features()
        align = config.align
        self.present = [torch.from_numpy(data.dataset.present(name)) for name in data.dataset.modalities]
        with torch.random.fork_rng():
            torch.manual_seed(derive(config.seed, "align", "init"))
            self.aligner = Aligner([x.shape[1] for x in self.x], align.dim, align.encoder, align.tau, align.tau_fixed)
            widths = self.aligner.out_widths
            self.club = nn.ModuleList(Club(align.dim, width, align.club_hidden) for width in widths[:-1])
        self.member = Member(data, sum(widths), "align", "member")
        self.sampler = data.sampler(align.batch_size, "align")
        dense = [*self.aligner.parameters(), *self.member.model.parameters()]
        self.optimizer = torch.optim.Adam(
            [{"params": dense, "lr": align.lr}, {"params": list(self.club.parameters()), "lr": align.club_lr}],
            fused=True,
        )

    def step(self, batch: Batch) -> dict[str, Tensor]:
        align, member = self.config.align, self.member
        rows = Rows(self.data, batch)
        user_Rd, item_id_Rd = member.user.pull(rows.user_R), member.item.pull(rows.item_R)
        v, z, common = self.aligner([x[rows.item_R] for x in self.x])
        item_Rd = member.model.item_rows(item_id_Rd, torch.cat([*v, common], dim=1))
        out = backbone_loss(member, batch, rows, user_Rd, item_Rd)
        out["recommendation"] = out.pop("loss")
        chosen = torch.unique(rows.item_at)
        if len(chosen) > align.contrastive_items:  # spread over the ids, the same for every number of workers
            step = torch.arange(align.contrastive_items) * len(chosen) // align.contrastive_items
            chosen = chosen[step]
        com, mi, nll = (torch.zeros(()) for _ in range(3))
        for v_m, z_m, q, present in zip(v, z, self.club, self.present, strict=True):
            have = chosen[present[rows.item_R[chosen]]]
            if len(have) < 2:
                continue
            v_C, z_C, common_C = v_m[have], z_m[have], common[have]
            com = com + losses.contrastive(z_C, common_C, z_C, common_C, self.aligner.tau, 0) / len(have)
            fixed = {name: p.detach() for name, p in q.named_parameters()}
            mean, logvar = functional_call(q, fixed, (z_C,))
            mi = mi + losses.club(v_C, mean, logvar, v_C) / len(have)
            nll = nll + losses.gaussian_nll(v_C.detach(), *q(z_C.detach())) / len(have)
        loss = out["recommendation"] + align.lambda_com * com + align.lambda_mi * mi
        self.optimizer.zero_grad(set_to_none=True)
        (loss + nll).backward()
        self.optimizer.step()
        member.user.push(rows.user_R, user_Rd, align.lr)
        member.item.push(rows.item_R, item_id_Rd, align.lr)
        return {**out, "contrastive": com, "club": mi, "club_nll": nll, "tau": self.aligner.tau, "loss": loss}

    @torch.no_grad()
    def representations(self) -> list[Tensor]:
        """v_1..v_M and z_{M+1} of every item, [I, D] each."""
        v, _, common = self.aligner(self.x)
        return [*v, common]

    def evaluate(self) -> dict[str, float]:
        item_Id = self.member.item_matrix(torch.cat(self.representations(), dim=1))
        return self.data.evaluate(lambda user_u: self.member.user.weight[user_u] @ item_Id.T, "val")[0]

    def state(self) -> dict[str, Tensor]:
        dense = {f"aligner.{name}": x for name, x in self.aligner.state_dict().items()}
        return dense | self.member.state("member.")


def run(dataset: Dataset, config: Config, tracker: Tracker) -> tuple[dict[str, Tensor], dict]:
    """Train stage 1. Returns its tensors (representation.r, member.*) and the best validation metrics."""
    if not dataset.modalities:
        raise ValueError(f"{dataset.root}: m3-invrl needs item features and this data set has none; use model=ultragcn")
    task = AlignTask(Data(dataset, config), config)
    best = fit(task, config.align, config.evaluation.metric, "align", tracker)
    named = {f"representation.{r}": x for r, x in enumerate(task.representations())}
    return {**task.state(), **named}, {"validation": best}
