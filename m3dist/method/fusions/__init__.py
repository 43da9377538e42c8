"""How the members of stage 3 become one score per user (eq. 13-15, table 5): a strategy is a class and a line here.

A package of one's own adds one by the entry point `m3dist.fusions`; the config key `merge.fusion` names it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from m3dist.named import Named

if TYPE_CHECKING:
    from m3dist.method.fusions.base import Fusion

FUSIONS: Named[type[Fusion]] = Named(
    "fusion",
    "m3dist.fusions",
    {
        "entropy": "m3dist.method.fusions.entropy:Entropy",
        "equal": "m3dist.method.fusions.equal:Equal",
        "loss": "m3dist.method.fusions.loss:Loss",
        "attention": "m3dist.method.fusions.attention:Attention",
    },
)
