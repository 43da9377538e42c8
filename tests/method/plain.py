"""The three stages written out plainly, in float64 with autograd over whole tables: what their losses have to be.

With the library they share what a config says, the interactions, negatives and neighbours that a step draws, and where
parameters start. All else is written anew, from the equations.

Shapes: M members, U users, I items, B interactions of a batch, N negatives of each, E environments, c content width of
users, D width of a representation, V items under contrast.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from m3dist.config import Config, ResolvedBackbone
from m3dist.data.draws import Batch
from m3dist.method.backbone import Backbones
from m3dist.models.ultragcn import Weights


class Adam:
    """Dense Adam of parameters, and lazy Adam of tables' rows, which keep still in a step that does not read them."""

    def __init__(self, total: int):
        self.total, self.taken = total, 0
        self.moments: dict[int, tuple[Tensor, Tensor]] = {}

    def step(self, groups: Iterable[tuple[Tensor, float, Tensor | None]]) -> None:
        """(parameter, its learning rate at the start, the rows that the step reads or None for all)."""
        self.taken += 1
        for p, rate, rows in groups:
            lr = rate * (1 - (self.taken - 1) / self.total)
            first, second = self.moments.setdefault(id(p), (torch.zeros_like(p), torch.zeros_like(p)))
            at = torch.arange(len(p)) if rows is None else rows[rows < len(p)].unique()
            assert p.grad is not None
            grad = p.grad[at]
            first[at] = 0.9 * first[at] + 0.1 * grad
            second[at] = 0.999 * second[at] + 0.001 * grad.square()
            with torch.no_grad():
                away = (second[at] / (1 - 0.999**self.taken)).sqrt() + 1e-8
                p[at] -= lr * first[at] / (1 - 0.9**self.taken) / away
            p.grad = None


def leaf(x: Tensor) -> Tensor:
    return x.detach().double().clone().requires_grad_()


def terms(batch: Batch, backbones: Backbones, tables: list[Tensor]) -> dict[str, Tensor]:
    """A backbone's terms sample by sample, from whole tables of users, items and items' ids, and L2.

    UltraGCN: eq. 8, 10, 11 and 15. Softmax: cosines over tau of a positive among its group's negatives, weighted as
    UltraGCN's positives are.
    """
    backbone, (user_Uk, item_Ik, id_Id) = backbones.config, tables
    a_U, c_I = (x.double() for x in (backbones.weights.a_U, backbones.weights.c_I))
    here, (P, b) = batch.valid_Pb, batch.valid_Pb.shape
    own = batch.negative if batch.negative.ndim == 3 else batch.negative.unsqueeze(1).expand(P, b, -1)
    user_B, item_B, negative_BN = batch.user_Pb[here], batch.item_Pb[here], own[here]
    u, v, far = user_Uk[user_B], item_Ik[item_B], item_Ik[negative_BN]
    positive_B = backbone.w1 + backbone.kappa * backbone.w2 * a_U[user_B] * c_I[item_B]
    held_Ik = id_Id if backbones.adds else item_Ik  # added content is none of what L2 holds
    l2_k = torch.full((user_Uk.shape[1],), backbone.l2, dtype=torch.float64)
    l2_k[backbone.dim :] = backbone.content_l2
    squares_B = u.square() + held_Ik[negative_BN].square().mean(1)
    if backbone.loss == "ultragcn":  # under the softmax items are held as negatives alone
        squares_B = squares_B + held_Ik[item_B].square()
    out = {"l2": (l2_k * squares_B).sum()}
    if backbone.nu:
        near_sB, omega_sB = backbones.weights.neighbours(item_B, batch.columns_s)
        scores_sB = (u * item_Ik[near_sB]).sum(2)
        out["neighbours"] = backbone.nu * (omega_sB * F.softplus(-scores_sB)).sum()
    if backbone.loss == "softmax":
        cosine_B1 = F.cosine_similarity(u, v, dim=1).unsqueeze(1)
        logits = torch.cat([cosine_B1, F.cosine_similarity(u[:, None], far, dim=2)], dim=1) / backbone.tau
        out["softmax"] = -(positive_B * logits.log_softmax(1)[:, 0]).sum()
    else:
        weight_BN = backbone.w3 + backbone.kappa * backbone.w4 * a_U[user_B, None] * c_I[negative_BN]
        negative_B = (weight_BN * F.softplus((u[:, None] * far).sum(2))).mean(1)
        out["positive"] = (positive_B * F.softplus(-(u * v).sum(1))).sum()
        out["negative"] = backbone.negative_weight * negative_B.sum()
    return {name: x / len(user_B) for name, x in out.items()}


class Member:
    """One backbone: leaves that start where a member of the library's does."""

    def __init__(self, backbones: Backbones, m: int):
        self.backbones, project = backbones, backbones.models[m].project
        assert project is not None
        self.user, self.ids = leaf(backbones.user.weight[m]), leaf(backbones.item.weight[m])
        self.W, self.bias = leaf(project.weight), leaf(project.bias)

    def loss(self, batch: Batch, content_Iw: Tensor) -> Tensor:
        content_Ic = content_Iw @ self.W.T + self.bias
        adds = self.backbones.adds
        item_Ik = self.ids + content_Ic if adds else torch.cat([self.ids, content_Ic], dim=1)
        found = terms(batch, self.backbones, [self.user, item_Ik, self.ids])
        return torch.stack([*found.values()]).sum() + self.backbones.config.projection_l2 * self.W.square().sum()

    def groups(self, batch: Batch, lr: float) -> list[tuple[Tensor, float, Tensor | None]]:
        """What an optimiser moves."""
        backbone = self.backbones.config
        items = [batch.item_B, batch.negative_B.flatten()]
        if backbone.nu:
            items.append(self.backbones.weights.neighbours(batch.item_B, batch.columns_s)[0].flatten())
        slow = lr * backbone.projection_rate
        tables = [(self.user, lr, batch.user_Pb.view(-1)), (self.ids, lr, torch.cat(items))]
        return [*tables, (self.W, slow, None), (self.bias, slow, None)]


def merge(backbones: Backbones, contents: list[Tensor], batches: list[Batch], total: int, lr: float) -> list[float]:
    """Losses of stage 3's steps, one after the other: the sum over members."""
    members, adam, out = [Member(backbones, m) for m in range(len(contents))], Adam(total), []
    for batch in batches:
        loss = torch.stack([x.loss(batch, content.double()) for x, content in zip(members, contents, strict=True)])
        loss.sum().backward()
        adam.step([group for member in members for group in member.groups(batch, lr)])
        out.append(float(loss.sum().detach()))
    return out


def contrast(z_MVD: Tensor, common_VD: Tensor, tau: Tensor) -> Tensor:
    """Eq. 2-4, summed over modalities: each item's z_m and z_{M+1} are a pair, and those of other items are not."""
    z_MVD, common_VD = F.normalize(z_MVD, dim=2), F.normalize(common_VD, dim=1)
    other_VV = ~torch.eye(len(common_VD), dtype=torch.bool)
    loss = z_MVD.new_zeros(())
    for z_VD in z_MVD:
        pairs = ((z_VD, z_VD), (z_VD, common_VD), (common_VD, common_VD))
        scores = [(a @ b.T / tau).masked_fill(~other_VV, -torch.inf) for a, b in pairs]
        loss = loss + (torch.logsumexp(torch.cat(scores, dim=1), 1) - (z_VD * common_VD).sum(1) / tau).mean()
    return loss


def likelihood(v: Tensor, z: Tensor, q: list[Tensor]) -> Tensor:
    """log q(v_j | z_i), [i, j]: a Gaussian whose mean and log variance, within 5 of 0, one hidden layer gives."""
    hidden, hidden_bias, out, out_bias = q
    h = F.relu(z @ hidden + hidden_bias)
    mean, raw = (h @ W + b for W, b in zip(out, out_bias, strict=True))
    logvar = 5 * torch.tanh(raw)
    square = (v[None] - mean[:, None]).square() / logvar.exp()[:, None]
    return -0.5 * (square + logvar[:, None] + math.log(2 * math.pi)).sum(2)


def align(task, config: Config, batches: list[Batch], total: int) -> list[float]:  # type: ignore[no-untyped-def]
    """Losses of stage 1's steps, without that of CLUB's own q, of features as they are given (encoder=identity)."""
    settings, model = config.align, task.dense.module
    p = {name: leaf(x) for name, x in model.named_parameters() if not name.startswith("backbone.")}
    x, member, adam, out = [x.double() for x in task.data.features], Member(task.member, 0), Adam(total), []
    widths = [part.shape[1] for part in x]

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ p[f"aligner.{name}.weight"].T + p[f"aligner.{name}.bias"]

    for batch in batches:
        common_ID = linear("g", linear("f_all", torch.cat(x, dim=1)))
        loss = member.loss(batch, torch.cat([*x, common_ID], dim=1))
        some = batch.item_B[batch.item_B < len(common_ID)].unique()
        assert len(some) <= settings.contrastive_items
        z_MVD = torch.stack([linear("g", linear(f"f.{m}", part[some])) for m, part in enumerate(x)])
        tau = p["aligner.log_tau"].exp().squeeze()
        loss = loss + settings.lambda_com * contrast(z_MVD, common_ID[some], tau)
        fit = torch.zeros((), dtype=torch.float64)
        parts = p["club.out_2HW"].split(widths, dim=2), p["club.out_bias"].split(widths, dim=2)
        for m, (W, b) in enumerate(zip(*parts, strict=True)):
            q = [p["club.hidden_MDH"][m], p["club.hidden_bias"][m], W, b]
            held = likelihood(x[m][some], z_MVD[m], [part.detach() for part in q])
            bound = held.diagonal().mean() - held.mean()
            loss = loss + settings.lambda_mi * bound.clamp(min=0)
            fit = fit - likelihood(x[m][some], z_MVD[m].detach(), q).diagonal().mean()
        (loss + fit).backward()
        rates = {"aligner": settings.encoder_lr, "club": settings.club_lr}
        dense = [(x, rates[name.split(".")[0]], None) for name, x in p.items()]
        (user, ids, *project) = member.groups(batch, settings.lr)
        assert ids[2] is not None
        adam.step([user, (*ids[:2], torch.cat([ids[2], some])), *project, *dense])
        out.append(float(loss.detach()))
    return out


@dataclass(frozen=True)
class Given:
    """What stage 2 holds fixed: tables of the first stage, with a row of zeros behind, and UltraGCN's constants."""

    backbone: ResolvedBackbone
    weights: Weights
    user_Uk: Tensor
    item_Id: Tensor

    @property
    def content_Uc(self) -> Tensor:
        if self.backbone.loss == "softmax":
            return F.normalize(self.user_Uk, dim=1)
        return self.user_Uk if self.backbone.content == "add" else self.user_Uk[:, self.item_Id.shape[1] :]

    def losses(self, batch: Batch, x_ID: Tensor, W: Tensor, b: Tensor) -> Tensor:
        """Of a batch's interactions [B], each under its own W [B, c, D] and b [B, c]: those of eq. 7.

        Under the softmax scores are of content alone, and a negative that is the positive itself is left out.
        """
        backbone, d = self.backbone, self.item_Id.shape[1]
        user_B, item_B, negative_N = batch.user_Pb[0], batch.item_Pb[0], batch.negative[0]
        score_BI = ((self.content_Uc[user_B, None] @ W).squeeze(1)) @ x_ID.double().T
        score_BI = score_BI + (b * self.content_Uc[user_B]).sum(1, keepdim=True)
        if backbone.loss == "softmax":
            score_BI = score_BI / backbone.tau
            own_B1 = score_BI.gather(1, item_B[:, None])
            far_BN = score_BI[:, negative_N].masked_fill(negative_N == item_B[:, None], -torch.inf)
            return torch.logsumexp(torch.cat([own_B1, far_BN], dim=1), 1) - own_B1.squeeze(1)
        score_BI = score_BI + self.user_Uk[user_B, :d] @ self.item_Id.T
        a_B, c_I = self.weights.a_U[user_B].double(), self.weights.c_I.double()
        positive_B = backbone.w1 + backbone.kappa * backbone.w2 * a_B * c_I[item_B]
        weight_BN = backbone.w3 + backbone.kappa * backbone.w4 * a_B[:, None] * c_I[negative_N]
        negatives_B = backbone.negative_weight * (weight_BN * F.softplus(score_BI[:, negative_N])).mean(1)
        return negatives_B + positive_B * F.softplus(-score_BI.gather(1, item_B[:, None]).squeeze(1))


Parts = dict[int, Tensor]  # something of each representation


def environments(
    given: Given,
    config: Config,
    batches: list[Batch],
    psi: dict[int, tuple[Tensor, Tensor]],
    start: tuple[Parts, Parts],
) -> list[float]:
    """Losses of environment models' steps, summed over representations.

    psi: (1 - m) x [I + 1, D] and every interaction's environment. start: W [E, c, D] and b [E, c].
    """
    settings = config.invariance
    (W, b), adam, out = ({r: leaf(x) for r, x in part.items()} for part in start), Adam(settings.environment_steps), []
    for batch in batches:
        here, loss = batch.valid_Pb[0], torch.zeros((), dtype=torch.float64)
        for r, (x_ID, environment_n) in psi.items():
            e_B = environment_n[batch.index_Pb[0].long()]
            each_B = given.losses(batch, x_ID, W[r][e_B], b[r][e_B])
            loss = loss + each_B[here].mean() + settings.projection_l2 * W[r].square().sum(dim=(1, 2)).mean()
        loss.backward()
        adam.step([(x, settings.environment_lr, None) for part in (W, b) for x in part.values()])
        out.append(float(loss.detach()))
    return out


class Effects:
    """How far environments differ in every dimension: f^2 (Cohen 1988) of single samples' gradients of W, over the
    last steps, each worth less than the one after it; nothing before there is a window of steps."""

    def __init__(self, E: int, window: int):
        self.E, self.window, self.steps = E, window, 0
        self.kept: list[list[Tensor]] = [[] for _ in range(E)]  # of each step: count, sum and sum of squares

    def add(self, gradient_BcD: Tensor, e_B: Tensor) -> None:
        self.steps += 1
        for e in range(self.E):
            mine = gradient_BcD[e_B == e]
            new = [torch.tensor(float(len(mine))).double(), mine.sum(0), mine.square().sum(0)]
            old = self.kept[e] or [torch.zeros_like(x) for x in new]
            self.kept[e] = [(1 - 1 / self.window) * a + b for a, b in zip(old, new, strict=True)]

    def effect(self, small: float) -> Tensor:
        """f^2 / (f^2 + small), [D]: what lies between environments beyond what chance, with three standard errors,
        puts there, over the variance of a sample."""
        c, D = self.kept[0][1].shape
        if self.steps < self.window:
            return torch.zeros(D, dtype=torch.float64)
        count_E = torch.stack([count for count, _, _ in self.kept])
        mean_EcD = torch.stack([total / count for count, total, _ in self.kept])
        within_ED = torch.stack(
            [
                (square / count - mean.square()).sum(0) * count / (count - 1)
                for (count, _, square), mean in zip(self.kept, mean_EcD, strict=True)
            ]
        )
        between_D = (mean_EcD - mean_EcD.mean(0)).square().sum((0, 1)) / (self.E - 1)
        chance_D = (within_ED / count_E[:, None]).mean(0) * (1 + 3 * math.sqrt(2 / c / (self.E - 1)))
        ratio_D = (between_D - chance_D).clamp(min=0) / within_ED.mean(0)
        return ratio_D / (ratio_D + small)


def masks(
    given: Given,
    config: Config,
    batches: list[Batch],
    reps: dict[int, tuple[Tensor, Tensor]],
    start: tuple[Parts, Parts],
) -> list[float]:
    """Losses of masks' steps in the last round, summed over representations; gate=sigmoid.

    reps: x [I + 1, D] and every interaction's environment. start: W [c, D] and b [c]; masks start at 1/2.
    """
    settings, n = config.invariance, len(next(iter(reps.values()))[1])
    E, window = settings.environments, min(-(-n // settings.batch_size), settings.mask_steps // 6)
    (W, b), adam, out = ({r: leaf(x) for r, x in part.items()} for part in start), Adam(settings.mask_steps), []
    logit = {r: leaf(torch.zeros(x_ID.shape[1])) for r, (x_ID, _) in reps.items()}
    effects = {r: Effects(E, window) for r in reps}
    for batch in batches:
        here, total = batch.valid_Pb[0], torch.zeros((), dtype=torch.float64)
        for r, (x_ID, environment_n) in reps.items():
            m, e_B = logit[r].sigmoid(), environment_n[batch.index_Pb[0].long()]
            each_BcD = (W[r] * m).expand(len(here), -1, -1)
            each_B = given.losses(batch, x_ID, each_BcD, b[r].expand(len(here), -1))
            (gradient_BcD,) = torch.autograd.grad(each_B[here].sum(), each_BcD, retain_graph=True)
            effects[r].add(gradient_BcD[here], e_B[here])
            fit = torch.stack([each_B[here & (e_B == e)].mean() for e in range(E)]).mean()
            priced = settings.gamma * (effects[r].effect(settings.effect) * m).square().mean()
            size = settings.rho * (m - 0.5).square().mean()
            total = total + fit + settings.projection_l2 * W[r].square().sum() + priced + size
        total.backward()
        gates = [(x, settings.mask_lr, None) for x in logit.values()]
        adam.step([*gates, *((x, settings.projection_lr, None) for part in (W, b) for x in part.values())])
        out.append(float(total.detach()))
    return out
