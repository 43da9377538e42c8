# %% [markdown]
# # From a CSV file to recommendations
#
# A shop has a table of who took what, a table of items, and features of their pictures and titles. This notebook makes
# such a shop (see `shop.py`), imports it, trains, and looks at what is recommended.

# %%
from shop import QUICK, Shelf, make
from shop import m3dist as command

import m3dist

shop = make("made/shop")
print(*sorted(path.name for path in shop.iterdir()), sep="\n")
print((shop / "interactions.csv").read_text()[:120])

# %% [markdown]
# `m3dist prepare` recognises the layout and says what it took for what. Every customer's items are split at random:
# 80 % to train on, 10 % to choose by, 10 % to test on.

# %%
command("prepare", "tables", shop, "made/data", "--split", "random")

# %% [markdown]
# Training takes every value from its defaults but for `QUICK`, which makes it short. A run is a folder; running this
# cell again skips what is done.

# %%
data = m3dist.Dataset.open("made/data")
print(QUICK)
run = m3dist.train(data, m3dist.Config(out="made/run", **QUICK), quiet=True)
print(f"NDCG@10 on test data: {run.result['test']['ndcg@10']:.3f}")

# %% [markdown]
# What a customer took, and what is recommended: items in the same colours, of the same kinds.

# %%
customer = "customer-7"
rows = [line.split(",") for line in (shop / "interactions.csv").read_text().splitlines()]
Shelf(shop, [item for user, item, _ in rows[1:] if user == customer][:8], f"{customer} took")

# %%
top = run.recommend([customer], k=8)
Shelf(shop, top["item"].to_pylist(), "recommended")

# %% [markdown]
# Each row also says how much each modality counts for this customer.

# %%
m3dist.show(top)
