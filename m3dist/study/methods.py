"""The methods of table 3, the ablations of table 4, and the figures that the paper published (Hu and Zhang, 2025)."""

from __future__ import annotations

from dataclasses import dataclass

from m3dist.method import registry

LEARNING_RATES = (2e-2, 5e-3, 1e-3, 5e-2)  # every method's tuning grid, in the order of the trials


@dataclass(frozen=True)
class Method:
    """A row of a table: config overrides, and the row of the paper that it stands beside."""

    name: str
    category: str
    overrides: tuple[str, ...]
    needs_features: bool = True

    @property
    def rate(self) -> str:
        """The key of its final stage's learning rate."""
        model = self.overrides[0].removeprefix("model=")
        return f"{registry.model(model).final.section}.lr"


_PAPER = ("backbone.loss=ultragcn", "merge.masks=learned")  # as published; m3dist's defaults stand beside it
NAIVE = Method("Naive-UltraGCN", "UltraGCN", ("model=ultragcn", *_PAPER), needs_features=False)
INVRL = Method("UltraGCN + InvRL", "UltraGCN", ("model=invrl", *_PAPER))
OURS = Method("M3-InvRL", "UltraGCN", ("model=m3-invrl", *_PAPER))
TABLE3 = (
    Method("VBPR", "M-CF", ("model=vbpr",), needs_features=False),
    Method("DUIF", "M-CF", ("model=duif",)),
    Method("CB2CF", "M-CF", ("model=cb2cf",)),
    Method("NGCF", "G-NCF", ("model=ngcf",), needs_features=False),
    Method("DisenGCN", "G-NCF", ("model=disengcn",), needs_features=False),
    Method("MacridVAE", "G-NCF", ("model=macridvae",), needs_features=False),
    Method("MMGCN", "M-NCF", ("model=mmgcn",)),
    Method("HUIGN", "M-NCF", ("model=huign",)),
    Method("GRCN", "M-NCF", ("model=grcn",)),
    NAIVE,
    INVRL,
    OURS,
    Method("Naive-UltraGCN, softmax", "softmax", ("model=ultragcn", "backbone.loss=softmax"), needs_features=False),
    Method("UltraGCN + InvRL, softmax", "softmax", ("model=invrl", "backbone.loss=softmax")),
    Method("M3-InvRL, softmax", "softmax", ("model=m3-invrl", "backbone.loss=softmax")),
)
TABLE4 = (
    Method("M3-InvRL w/o L_com", "ablation", (*OURS.overrides, "align.lambda_com=0")),
    Method("M3-InvRL w/o L_MI", "ablation", (*OURS.overrides, "align.lambda_mi=0")),
    OURS,
)
TABLE5 = {"equal": "E-weight", "loss": "L-weight", "attention": "A-weight", "entropy": "M3-InvRL"}

METRICS = {"P@10": "precision@10", "R@10": "recall@10", "N@10": "ndcg@10"}
PUBLISHED = {  # P@10, R@10, N@10 as printed
    "movielens": {
        "VBPR": (0.0512, 0.1990, 0.2261),
        "DUIF": (0.0538, 0.2167, 0.2341),
        "CB2CF": (0.0548, 0.2265, 0.2505),
        "NGCF": (0.0547, 0.2196, 0.2342),
        "DisenGCN": (0.0555, 0.2222, 0.2401),
        "MacridVAE": (0.0576, 0.2286, 0.2437),
        "MMGCN": (0.0581, 0.2345, 0.2517),
        "HUIGN": (0.0619, 0.2522, 0.2677),
        "GRCN": (0.0639, 0.2569, 0.2754),
        "Naive-UltraGCN": (0.0624, 0.2547, 0.2691),
        "UltraGCN + InvRL": (0.0645, 0.2615, 0.2815),
        "M3-InvRL": (0.0675, 0.2775, 0.2840),
        "M3-InvRL w/o L_com": (0.0642, 0.2648, 0.2792),
        "M3-InvRL w/o L_MI": (0.0667, 0.2753, 0.2836),
        "E-weight": (0.0652, 0.2731, 0.2829),
        "L-weight": (0.0648, 0.2719, 0.2817),
        "A-weight": (0.0670, 0.2761, 0.2834),
    },
    "tiktok": {
        "VBPR": (0.0118, 0.0628, 0.0574),
        "DUIF": (0.0087, 0.0483, 0.0434),
        "CB2CF": (0.0109, 0.0642, 0.0613),
        "NGCF": (0.0135, 0.0780, 0.0661),
        "DisenGCN": (0.0145, 0.0760, 0.0639),
        "MacridVAE": (0.0152, 0.0813, 0.0686),
        "MMGCN": (0.0144, 0.0808, 0.0674),
        "HUIGN": (0.0164, 0.0884, 0.0769),
        "GRCN": (0.0195, 0.1048, 0.0938),
        "Naive-UltraGCN": (0.0183, 0.0981, 0.0878),
        "UltraGCN + InvRL": (0.0192, 0.1062, 0.0922),
        "M3-InvRL": (0.0198, 0.1099, 0.0957),
        "M3-InvRL w/o L_com": (0.0190, 0.1030, 0.0925),
        "M3-InvRL w/o L_MI": (0.0194, 0.1093, 0.0931),
        "E-weight": (0.0192, 0.1080, 0.0911),
        "L-weight": (0.0193, 0.1073, 0.0937),
        "A-weight": (0.0195, 0.1105, 0.0955),
    },
}
_SIZES = {"movielens": (55485, 5986), "tiktok": (36656, 76085)}  # users and items of table 2


def published_for(name: str, n_users: int, n_items: int) -> tuple[str | None, str]:
    """Whose published figures stand beside a data set, and the caveat that goes with them; None for other data."""
    for paper, size in _SIZES.items():
        if (n_users, n_items) == size:
            return paper, "the paper's data set by its counts; its split is not the paper's unless it was given so"
    folded = name.lower().replace("-", "").replace("_", "")
    if folded.startswith(("movielens", "ml1m", "ml100k")):
        users, items = _SIZES["movielens"]
        return (
            "movielens",
            f"published on another MovieLens data set ({users:,} users, {items:,} items): not comparable",
        )
    if folded.startswith("tiktok"):
        return "tiktok", "the paper's TikTok has other counts: not comparable"
    return None, ""
