# %% [markdown]
# # Cold items
#
# An item that nobody has taken yet has no history; what it looks like and what its title says still place it. Here a
# fifth of the items is held out with all their interactions, so that one can see how well that works.

# %%
import numpy as np
from shop import Shelf, make
from shop import m3dist as command

import m3dist

shop = make("made/shop")
command("prepare", "tables", shop, "made/cold", "--split", "random", "--cold", 0.2)

# %%
config = m3dist.Config(
    out="made/run-cold",
    model="ultragcn",
    backbone={"loss": "softmax", "dim": 32, "id_dropout": 0.2},
    merge={"epochs": 12},
)
run = m3dist.train(m3dist.Dataset.open("made/cold"), config, quiet=True)
cold = run.result["test"]["ndcg@10/cold-only"]
print(f"NDCG@10 of cold items among themselves: {cold:.3f}")

# %% [markdown]
# A random order of the cold items is what this has to beat:

# %%
data = run.dataset
users, items = data.interactions("test")
new = np.flatnonzero(data.degrees[1] == 0)
tested = np.intersect1d(items, new)
draw = np.random.default_rng(0)
scores = []
for user in np.unique(users):
    wanted = np.intersect1d(items[users == user], tested)
    if len(wanted):
        hits = np.isin(draw.permutation(new)[:10], wanted)
        best = (1 / np.log2(np.arange(2, 2 + min(10, len(wanted))))).sum()
        scores.append((hits / np.log2(np.arange(2, 12))).sum() / best)
chance = float(np.mean(scores))
print(f"in a random order: {chance:.3f}, so {cold / chance:.1f} times as good")

# %% [markdown]
# Cold items alone, for one customer:

# %%
rules = m3dist.Rules(only_new=True)
for customer in ("customer-7", "customer-8"):
    top = run.recommend([customer], k=6, rules=rules)["item"].to_pylist()
    print(Shelf(shop, top, customer))
Shelf(shop, top, f"new items for {customer}")
