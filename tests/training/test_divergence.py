"""A training that diverges says which value of its config to lower."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import trained

from m3dist.config import Align, Backbone, Baseline, Fit, Invariance, Merge
from m3dist.section import Section
from m3dist.training.divergence import suspect

ULTRAGCN = "backbone.loss=ultragcn"
BY_RATES = [
    "align.lr", "align.club_lr", "align.encoder_lr", "merge.lr", "backbone.projection_rate",
    "invariance.environment_lr", "invariance.projection_lr",
]  # fmt: skip


@pytest.mark.parametrize(
    ("stage", "sections", "key"),
    [
        ("align", (Align(),), "align.lr"),
        ("align", (Align(lr=1.0, club_lr=0.9),), "align.club_lr"),
        ("align", (Align(lr=1.0, encoder_lr=0.9, club_lr=0.02),), "align.encoder_lr"),
        ("align", (Align(lr=1e30, encoder_lr=0.9),), "align.lr"),
        ("pretrain", (Merge(lr=3.0), Backbone()), "merge.lr"),
        ("mine", (Fit(lr=3.0),), "mine.lr"),
        ("merge", (Merge(), Backbone(init_std=0.5)), "merge.lr"),
        ("merge", (Merge(lr=0.1), Backbone(init_std=1e4)), "backbone.init_std"),
        ("merge", (Merge(), Backbone(loss="softmax", l2=1e9)), "backbone.l2"),
        ("merge", (Merge(), Backbone(loss="ultragcn", kappa=1e9).resolved), "backbone.kappa"),
        ("invariance", (Invariance(mask_lr=1.0), Align(lr=0.1)), "invariance.mask_lr"),
        ("baseline", (Baseline(l2=1e9),), "baseline.l2"),
    ],
)
def test_the_value_furthest_above_its_default_is_named(stage: str, sections: tuple[Section, ...], key: str) -> None:
    assert suspect(stage, *sections) == key


@pytest.mark.parametrize(
    ("key", "further"),
    [
        *((key, []) for key in BY_RATES),
        ("backbone.init_std", []),
        ("backbone.init_std", [ULTRAGCN]),
        ("backbone.init_std", ["backbone.loss=auto"]),
        ("backbone.kappa", [ULTRAGCN]),
        ("merge.lr", ["model=invrl"]),
        ("merge.lr", ["model=ultragcn", "backbone.loss=auto"]),
        ("baseline.lr", ["model=vbpr"]),
    ],
)
def test_a_run_that_diverges_names_what_made_it(key: str, further: list[str], tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=rf"^[^\n]*; lower {key}$"):
        trained(tmp_path, f"{key}=1e30", *further)
