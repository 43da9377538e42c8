"""MacridVAE (Ma et al., NeurIPS 2019): a variational autoencoder of users' histories, disentangled by K concepts.

Items h_i and concept prototypes m_k have unit length. c_ik = softmax_k(h_i . m_k / tau). Encoder, for every concept:
(a, b) = g(x_u o c_k), mu_k = a / |a|, sigma_k = sigma0 exp(-b / 2). Decoder (eq. 3): p(i | u) proportional to
sum_k c_ik exp(z_k . h_i / tau). Loss: - sum_i x_ui ln p(i | u) + beta KL, a mean over users.

Simplifications: c_ik are the probabilities themselves, where the paper samples them by Gumbel softmax in training;
beta is constant, without annealing. Content is not used, as in the paper.

Shapes: u users of a block, U users, I items, K concepts, d width, h hidden width, n interactions of a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3dist.data.sampling import Batch
from m3dist.models.base import Given, Recommender, Settings, xavier
from m3dist.seeding import torch_rng


@dataclass(frozen=True)
class MacridVAESettings(Settings):
    concepts: int = 4
    hidden: int = 256
    tau: float = 0.1
    std: float = 0.075
    dropout: float = 0.5
    beta: float = 0.2
    block: int = 1024


class MacridVAE(Recommender):
    batches = "users"
    Options = MacridVAESettings

    def __init__(self, given: Given, settings: MacridVAESettings):
        super().__init__(given, settings)
        dim = settings.dim
        self.tau, self.std, self.dropout = settings.tau, settings.std, settings.dropout
        self.beta, self.block = settings.beta, settings.block
        self.item, self.prototype = xavier(given.n_items, dim), xavier(settings.concepts, dim)
        self.table, self.bias = xavier(given.n_items, settings.hidden), nn.Parameter(torch.zeros(settings.hidden))
        self.out = nn.Linear(settings.hidden, 2 * dim)
        self.history = given.to_users()

    def concepts(self) -> tuple[Tensor, Tensor]:
        """h [I, d] and c [I, K]."""
        h_Id = F.normalize(self.item)
        return h_Id, torch.softmax(h_Id @ F.normalize(self.prototype).T / self.tau, dim=1)

    def interactions(self, user_u: Tensor) -> tuple[Tensor, Tensor]:
        """Items of all users, one after the other [n], and how many each has [u]."""
        low, count_u = self.history.crow[user_u].long(), self.history.degree()[user_u].long()
        row_n = torch.repeat_interleave(torch.arange(len(user_u), device=user_u.device), count_u)
        place_n = torch.arange(len(row_n), device=user_u.device) - (count_u.cumsum(0) - count_u)[row_n]
        return self.history.col[low[row_n] + place_n].long(), count_u

    def encode(self, item_n: Tensor, count_u: Tensor, keep_n: Tensor | None, c_IK: Tensor) -> tuple[Tensor, Tensor]:
        """mu and ln(sigma^2 / sigma0^2), [u, K, d] each; keep_n: weights of dropout."""
        value_n = torch.repeat_interleave(count_u.clamp(min=1).float().rsqrt(), count_u)
        if keep_n is not None:
            value_n = value_n * keep_n
        start_u = count_u.cumsum(0) - count_u
        parts = []
        for c_I in c_IK.unbind(1):
            weight_n = value_n * c_I[item_n]
            bag_uh = F.embedding_bag(item_n, self.table, start_u, mode="sum", per_sample_weights=weight_n)
            parts.append(self.out(torch.tanh(bag_uh + self.bias)))
        a, b = torch.stack(parts, dim=1).chunk(2, dim=2)
        return F.normalize(a, dim=2), -b

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        h_Id, c_IK = self.concepts()
        # drawn for the whole batch, so that the draws do not depend on the number of workers
        low, high = batch.bounds
        rng = torch_rng(batch.seed, "macridvae")
        count_B = self.history.degree().long()[batch.user_B]
        first, last = (int(count_B[:at].sum()) for at in (low, high))
        kept = torch.rand(int(count_B.sum()), generator=rng)[first:last] >= self.dropout
        shape = (len(batch.user_B), c_IK.shape[1], self.dim)
        noise_uKd = torch.randn(shape, generator=rng)[low:high].to(h_Id.device)

        item_n, count_u = self.interactions(batch.user_b)
        keep_n = kept.to(h_Id.device).float() / max(1 - self.dropout, 1e-6)
        mu_uKd, spread_uKd = self.encode(item_n, count_u, keep_n, c_IK)
        z_uKd = mu_uKd + noise_uKd * (0.5 * spread_uKd).exp() * self.std
        log_p_uI = torch.log_softmax(decode(z_uKd, h_Id, c_IK, self.tau), dim=1)
        row_n = torch.repeat_interleave(torch.arange(len(count_u), device=item_n.device), count_u)
        kl = 0.5 * (spread_uKd.exp() - spread_uKd - 1).sum()
        out = {"reconstruction": -log_p_uI[row_n, item_n].sum() / batch.size, "kl": self.beta * kl / batch.size}
        out["l2"] = self.l2 * (self.table.square().sum() / len(self.table)) * batch.part
        return out | {"loss": torch.stack(list(out.values())).sum()}

    def tensors(self) -> dict[str, Tensor]:
        """mu of every user [U, K, d], and of the items h / tau [I, d] and ln c [I, K]."""
        h_Id, c_IK = self.concepts()
        users = torch.arange(self.n_users, device=h_Id.device).split(self.block)
        mu = [self.encode(*self.interactions(user_u), None, c_IK)[0] for user_u in users]
        return {"user": torch.cat(mu), "item": h_Id / self.tau, "concept": c_IK.clamp(min=1e-30).log()}

    @staticmethod
    def score(tensors: dict[str, Tensor], user_u: Tensor) -> Tensor:
        return _mix(tensors["user"][user_u], tensors["item"], tensors["concept"])


def decode(z_uKd: Tensor, h_Id: Tensor, c_IK: Tensor, tau: float) -> Tensor:
    """ln sum_k c_ik exp(z_k . h_i / tau), [u, I]."""
    return _mix(z_uKd, h_Id / tau, c_IK.clamp(min=1e-30).log())


def _mix(z_uKd: Tensor, scaled_Id: Tensor, log_c_IK: Tensor) -> Tensor:
    parts = [z_ud @ scaled_Id.T + log_c_I for z_ud, log_c_I in zip(z_uKd.unbind(1), log_c_IK.unbind(1), strict=True)]
    return torch.logsumexp(torch.stack(parts), dim=0)
