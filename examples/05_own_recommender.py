# %% [markdown]
# # A recommender of one's own, in 40 lines
#
# A class with `vectors()` is a recommender: it is trained under BPR, on any number of workers, checkpointed, searched
# and served like those that come with m3dist. This one reads an item's features through two layers, and gives a user
# the mean of what they took beside a row of their own.

# %%
import torch
from shop import Shelf, make
from shop import m3dist as command

import m3dist
from m3dist.models.base import Given, Settings, xavier


@m3dist.recommender("tasteful")
class Tasteful(m3dist.Recommender):
    """Items by their features alone; users by what they took, and a row of their own."""

    def __init__(self, given: Given, settings: Settings):
        super().__init__(given, settings)
        self.user = xavier(given.n_users, settings.dim)
        self.read = torch.nn.Sequential(
            torch.nn.Linear(given.width, 64), torch.nn.ReLU(), torch.nn.Linear(64, settings.dim)
        )
        count = torch.bincount(given.user.long(), minlength=given.n_users).clamp(min=1)
        self.register_buffer("count", count[:, None].float(), persistent=False)
        self.register_buffer("pairs", torch.stack([given.user.long(), given.item.long()]), persistent=False)

    def vectors(self):
        item = self.read(self.feature)
        history = torch.zeros_like(self.user).index_add(0, self.pairs[0], item[self.pairs[1]]) / self.count
        return self.user + history, item

    def ego(self):
        return self.user, None


# %%
shop = make("made/shop")
command("prepare", "tables", shop, "made/data", "--split", "random")
runs = {}
for model in ("tasteful", "vbpr"):
    config = m3dist.Config(out=f"made/{model}", model=model, baseline={"epochs": 10, "dim": 32})
    runs[model] = m3dist.train("made/data", config, quiet=True)
    print(f"{model:<10}NDCG@10 on test data: {runs[model].result['test']['ndcg@10']:.3f}")

# %%
Shelf(shop, runs["tasteful"].recommend(["customer-7"], k=8)["item"].to_pylist(), "for customer-7")
