"""What a finished run's masks say: of the given features, against planted dimensions, and as a table."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from m3dist.data.dataset import Dataset

Read = Callable[[str], dict[str, Tensor]]  # the tensors of a finished stage
Masks = tuple[dict[str, Tensor], dict[str, Tensor] | None]  # of representations, and of each modality's features


def of_representations(dataset: Dataset, read: Read) -> Masks:
    """The masks of a run whose first stage encodes each modality."""
    masks = read("invariance")
    return masks, input_masks(dataset, read("align"), masks)


def of_features(dataset: Dataset, read: Read) -> Masks:
    """The masks of a run with one mask over all features side by side."""
    parts = read("invariance")["mask.0"].split(list(dataset.modalities.values()))
    masks = {f"mask.{m}": part for m, part in enumerate(parts)}
    return masks, input_masks(dataset, {}, masks)


def input_masks(dataset: Dataset, aligned: dict[str, Tensor], masks: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Every modality's mask over its input dimensions, [d_m]; None where an encoder does not allow it.

    A mask speaks of representation dimensions; its value is carried back to an input dimension as the mean mask
    weighted by the absolute sensitivity of v_m to that input, k_m f_m of the linear encoder.
    """
    out = {}
    for m, (name, width) in enumerate(dataset.modalities.items()):
        if f"mask.{m}" not in masks:  # one representation for all modalities
            return None
        mask = masks[f"mask.{m}"]
        f, k = aligned.get(f"aligner.f.{m}.weight"), aligned.get(f"aligner.k.{m}.weight")
        if len(mask) == width and k is None:
            out[name] = mask
        elif f is not None and k is not None:
            through = (k @ f).abs()
            out[name] = (mask @ through) / through.sum(0).clamp(min=1e-12)
        else:
            return None
    return out


def mask_truth(dataset: Dataset, scores: dict[str, Tensor] | None) -> dict[str, dict[str, float]] | None:
    """Masks against planted dimensions: per modality the ROC AUC and the mean mask over planted and spurious ones.

    scores: from `input_masks`. None where nothing was planted.
    """
    out = {}
    for name in dataset.modalities:
        invariant = dataset.truth(name)
        if invariant is None or scores is None:
            return None
        inside, outside = scores[name][torch.from_numpy(invariant)], scores[name][torch.from_numpy(~invariant)]
        wins = (inside[:, None] > outside).double() + 0.5 * (inside[:, None] == outside).double()
        out[name] = {"auc": float(wins.mean()), "planted": float(inside.mean()), "spurious": float(outside.mean())}
    return out or None


def mask_table(dataset: Dataset, masks: dict[str, Tensor], scores: dict[str, Tensor] | None) -> pa.Table:
    """One row per dimension of every representation: representation, dimension, mask, and where known planted."""
    parts = [masks[f"mask.{r}"].numpy() for r in range(sum(name.startswith("mask.") for name in masks))]
    whole = len(parts) == len(dataset.modalities) + 1
    names = [*dataset.modalities, "common"] if whole else [str(r) for r in range(len(parts))]
    columns = {
        "representation": pa.array(np.repeat(names, [len(part) for part in parts])),
        "dimension": np.concatenate([np.arange(len(part)) for part in parts]),
        "mask": np.concatenate(parts),
    }
    same = whole and scores is not None and all(len(parts[m]) == len(x) for m, x in enumerate(scores.values()))
    truth = [dataset.truth(name) for name in dataset.modalities]
    if same and all(part is not None for part in truth):
        columns["planted"] = pa.array([bool(x) for part in truth for x in part] + [None] * len(parts[-1]))  # type: ignore[union-attr]
    return pa.table(columns)
