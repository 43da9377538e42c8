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

shop = make("work/shop", users=120)
command("prepare", "tables", shop, "work/small", "--split", "random")
search = """
base:
  data: work/small
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
Path("work/search.yaml").write_text(search)
command("tune", "work/search.yaml", "out=work/search")

# %% [markdown]
# Every trial is a row, and the best values are a config for `m3dist train`. The test split was read once, at the end.

# %%
print(Path("work/search/best.yaml").read_text()[:400])
table = pq.read_table("work/search/search.parquet")
print(table.to_pandas().to_string())
