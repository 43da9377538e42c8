"""`python -m benchmarks [--json FILE]`: each row is a ratio of medians measured in this run."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.plain import PlainUltraGCN, ndcg
from m3dist import ranking
from m3dist.data.batches import Batch, Distinct, Sampler
from m3dist.models.ultragcn import UltraGCN, Weights, interaction_loss
from m3dist.parallel.tables import RowTable

SIZES = {"ml1m": (6036, 3081, 346501, 640), "tiktok": (36656, 76085, 726065, 384)}  # users, items, pairs, content
DIM, CONTENT, BATCH = 64, 64, 1024


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Median wall-clock seconds of a call, after one to warm up."""
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def roof() -> float:
    """float32 matrix product rate of this process, FLOP/s."""
    a, out = torch.randn(2048, 2048), torch.empty(2048, 2048)
    return 2 * 2048**3 / seconds(lambda: torch.mm(a, a, out=out), 5)


def backbone(name: str, rate: float) -> dict[str, float]:
    """Training steps: shared negatives and touched rows against the plain step with 50 negatives per positive."""
    users, items, pairs, width = SIZES[name]
    rng = np.random.default_rng(0)
    user, item = (torch.from_numpy(rng.integers(0, n, pairs)) for n in (users, items))
    content = torch.randn(items, width)
    degree = [torch.bincount(x, minlength=n) for x, n in ((user, users), (item, items))]
    weights = Weights(degree[0], degree[1], (1, 1, 1, 1), 1.0)

    def sampler(per_positive: bool, negatives: int) -> Sampler:
        return Sampler(
            user, item, items, batch_size=BATCH, negatives=negatives, per_positive=per_positive, seed=0, purpose="b"
        )

    plain = PlainUltraGCN(users, content, DIM, CONTENT)
    adam = torch.optim.Adam(plain.parameters(), lr=1e-3)
    theirs = sampler(True, 50)
    count = iter(range(10**9))

    def plain_step() -> None:
        batch: Batch = theirs(0, next(count))
        adam.zero_grad()
        plain.loss(batch.user_b, batch.item_b, batch.negative, weights.a_U, weights.c_I, 10.0).backward()
        adam.step()

    negatives = 1024
    model = UltraGCN(width, CONTENT)
    fused = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    generator = torch.Generator().manual_seed(0)
    user_table = RowTable.random(users, DIM + CONTENT, 0.01, generator)
    item_table = RowTable.random(items, DIM, 0.01, generator)
    distinct = Distinct(users), Distinct(items)
    ours = sampler(False, negatives)

    def step() -> None:
        batch = ours(0, next(count) % 100)
        user_R, (user_at,) = distinct[0](batch.user_b)
        item_R, (item_at, negative_at) = distinct[1](batch.item_b, batch.negative)
        user_Rd, item_Rd = user_table.pull(user_R), item_table.pull(item_R)
        rows = model.item_rows(item_Rd, content[item_R])
        fused.zero_grad()
        terms = interaction_loss(
            user_Rd[user_at],
            rows,
            item_at,
            negative_at,
            weights,
            batch.user_b,
            batch.item_b,
            batch.negative,
            BATCH,
            10.0,
        )
        sum(terms).backward()  # type: ignore[union-attr]
        fused.step()
        user_table.push(user_R, user_Rd, 1e-3)
        item_table.push(item_R, item_Rd, 1e-3)

    slow, fast = seconds(plain_step, 5), seconds(step, 20)
    flop = 3 * 2 * BATCH * negatives * (DIM + CONTENT) + 2 * 2 * (BATCH + negatives) * width * CONTENT
    return {
        "interactions/s": BATCH / fast,
        "times the plain step": slow / fast,
        "share of the roof": flop / fast / rate,
    }


def ranked(rate: float, users: int = 3000, items: int = 6710, d: int = 128) -> dict[str, float]:
    """Full ranking with masking, blocked, against a Python loop over users."""
    rng = np.random.default_rng(0)
    user_Ud, item_Id = torch.randn(users, d), torch.randn(items, d)
    seen_pairs = np.repeat(np.arange(users), 60), rng.integers(0, items, users * 60)
    held_pairs = np.repeat(np.arange(users), 10), rng.integers(0, items, users * 10)
    seen, held = ranking.Seen.of([seen_pairs], users), ranking.Seen.of([held_pairs], users)
    everyone = torch.arange(users)

    def ours() -> ranking.Metrics:
        return ranking.evaluate(lambda u: user_Ud[u] @ item_Id.T, everyone, seen, held, items, (10, 20), 256)[0]

    few = 300
    sets = [[set(part.tolist()) for part in x[1].reshape(users, -1)[:few]] for x in (seen_pairs, held_pairs)]

    def plain() -> float:
        return ndcg((user_Ud[:few] @ item_Id.T).numpy(), sets[0], sets[1], 20)

    fast, slow = seconds(ours, 5), seconds(plain, 2) * users / few
    flop = 2 * users * items * d
    return {"users/s": users / fast, "times the plain loop": slow / fast, "share of the roof": flop / fast / rate}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    rate = roof()
    rows = {"backbone step, ml1m size": backbone("ml1m", rate), "backbone step, tiktok size": backbone("tiktok", rate)}
    rows["ranking, 6,710 items"] = ranked(rate)
    arguments = parser.parse_args()
    table = Table(
        "what", "measure", "value", title=f"roof: {rate / 1e9:.0f} GFLOP/s, {torch.get_num_threads()} threads"
    )
    for what, values in rows.items():
        for name, value in values.items():
            table.add_row(what, name, f"{value:,.2f}")
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps({"roof": rate, **rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
