# %% [markdown]
# # Comparing methods with statistics
#
# One number for each method says little: users differ, and so do seeds. Every run keeps each user's test metrics, so
# that two methods can be compared on the same users. `m3dist reproduce` does this for the paper's tables; here it is by
# hand, on planted data whose test split is shifted: spurious features predict the other way round there.

# %%
import numpy as np
import pyarrow.parquet as pq
from shop import m3dist as command

import m3dist
from m3dist.study.statistics import compare, holm

METHODS = {
    "plain": {"model": "ultragcn"},
    "all features": {"model": "m3-invrl", "merge": {"epochs": 6, "masks": "one"}},
    "M3-InvRL": {"model": "m3-invrl", "merge": {"epochs": 6, "masks": "learned"}},
}
SMALL = {
    "backbone": {"loss": "softmax", "dim": 16},
    "align": {"epochs": 2},
    "invariance": {"rounds": 1, "environment_steps": 16, "mask_steps": 32},
    "merge": {"epochs": 6},
}


def per_user(name: str, seed: int) -> np.ndarray:
    """Test NDCG@10 of every user, in the same order for all methods."""
    out = f"made/compared/{name.replace(' ', '-')}-{seed}"
    values = SMALL | METHODS[name] | {"seed": seed, "out": out, "data": "made/planted", "artifacts": "made/stages"}
    m3dist.train(None, m3dist.Config(**values), quiet=True)
    return pq.read_table(f"{out}/test_users.parquet")["ndcg@10"].to_numpy()


# %% [markdown]
# The data are made once, so that seeds change only the training; stages that methods share are trained once, too
# (`artifacts`).

# %%
command("prepare", "synthetic", "made/planted", "--users", 300, "--items", 200)
found = {name: np.stack([per_user(name, seed) for seed in (0, 1)]) for name in METHODS}
for name, ndcg_Sn in found.items():
    print(f"{name:<14}{ndcg_Sn.mean():.4f}  by seed {', '.join(f'{x:.4f}' for x in ndcg_Sn.mean(1))}")

# %% [markdown]
# Differences over the same users, with 95 % intervals by bootstrap, and p-values corrected for their number (Holm).

# %%
best, others = found["M3-InvRL"], [name for name in METHODS if name != "M3-InvRL"]
compared = [compare(best, found[name]) for name in others]
for name, one, p in zip(others, compared, holm([one.p for one in compared]), strict=True):
    print(f"M3-InvRL - {name:<14}{one.difference:+.4f}  [{one.low:+.4f}, {one.high:+.4f}]  p = {p:.3g}")
