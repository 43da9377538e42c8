# %% [markdown]
# # Serving with an index
#
# A fused score is one inner product, so any index by inner product serves it. `export` writes vectors and an index of
# faiss; a shop's service loads these files and needs neither m3dist nor torch.

# %%
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from shop import QUICK, Shelf, make
from shop import m3dist as command

import m3dist

shop = make("made/shop")
command("prepare", "tables", shop, "made/data", "--split", "random")
run = m3dist.train("made/data", m3dist.Config(out="made/run", **QUICK), quiet=True)
print(*run.export("made/index", "faiss"), sep="\n")

# %% [markdown]
# From here on only faiss, numpy and pyarrow:

# %%
import faiss

index = faiss.read_index("made/index/index.faiss")
items, users = (pq.read_table(f"made/index/{kind}.parquet") for kind in ("items", "users"))
vector = users.filter(pc.equal(users["id"], "customer-7"))["vector"]
scores, places = index.search(np.stack(vector.to_numpy()), 10)
answer = items["id"].take(places[0]).to_pylist()
Shelf(shop, answer, "for customer-7, those that are known included")

# %% [markdown]
# The same list from m3dist itself:

# %%
same = run.recommend(["customer-7"], k=10, rules=m3dist.Rules(include_seen=True))["item"].to_pylist()
assert answer == same
Shelf(shop, same, "m3dist")
