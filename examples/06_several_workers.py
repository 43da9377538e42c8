# %% [markdown]
# # Several workers
#
# The order of a batch and its negatives depend on the data, the seed and the step alone. So a run ends at the same
# numbers in one process and on several workers, here two processes that Ray starts on this machine.

# %%
from pathlib import Path

from shop import m3dist as command
from shop import make

import m3dist

shop = make("made/shop", users=120)
command("prepare", "tables", shop, "made/small", "--split", "random")
here = Path.cwd()  # workers may have another folder of their own, so paths are whole
values = {"data": f"{here}/made/small", "model": "ultragcn", "backbone": {"loss": "softmax"}, "merge": {"epochs": 3}}
found = {}
for workers in (0, 2):
    run = m3dist.train(None, m3dist.Config(**values, out=f"{here}/made/workers-{workers}", workers=workers), quiet=True)
    found[workers] = run.result["test"]["ndcg@10"]
    print(f"workers={workers}: NDCG@10 {found[workers]:.6f}")

# %%
assert abs(found[0] - found[2]) < 1e-4
