# %% [markdown]
# # A search
#
# `m3dist tune` tries values by validation data, stops bad trials early (ASHA) and trains a stage that trials share
# once. A search is a file; this one tries the width of rows and the learning rate of stage 3.

# %%
from pathlib import Path

import pyarrow.parquet as pq
from shop import m3dist as command
from shop import make

from m3dist import config

shop = make("made/shop", users=120)
command("prepare", "tables", shop, "made/small", "--split", "random")
search = """
base:
  data: made/small
  model: ultragcn
  backbone: {loss: softmax}
  merge: {epochs: 4}
space:
  backbone.dim: {choice: [16, 32]}
  merge.lr: {log_uniform: [0.003, 0.1]}
budget: {trials: 4}
scheduler: {grace: 1, reduction: 2}
final_seeds: [0]
concurrency: 1
"""
Path("made/search.yaml").write_text(search)
command("tune", "made/search.yaml", "out=made/search")

# %% [markdown]
# Every trial is a row, and the best values are a config for `m3dist train`. The test split was read once, at the end.

# %%
best = config.load("made/search/best.yaml")
print(f"backbone.dim={best.backbone.dim} merge.lr={best.merge.lr:.4f}")
table = pq.read_table("made/search/search.parquet")
print(table.to_pandas().to_string())
