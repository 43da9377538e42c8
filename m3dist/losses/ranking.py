"""Losses of recommenders that rank a positive above negatives.

Shapes: b positives, n negatives of each, or N that all share.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def bpr(positive_b: Tensor, negative_bn: Tensor) -> Tensor:
    """Pairwise ranking (Rendle et al., UAI 2009), summed over b: the mean over n of -log sigmoid(s_i - s_j)."""
    return F.softplus(negative_bn - positive_b[:, None]).mean(1).sum()


def softmax(positive_b: Tensor, negative_bn: Tensor) -> Tensor:
    """Softmax of each positive among its negatives, summed over b: log(exp(s_i) + sum_j exp(s_j)) - s_i."""
    return F.softplus(negative_bn.logsumexp(1) - positive_b).sum()
