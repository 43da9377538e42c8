"""`python -m benchmarks.search DATA`: ASHA with stage reuse against random search with neither, on a budget of epochs.

`late` searches the values of stages 2 and 3, `all` those of stage 1 too. Both searches draw with the same seeds, one
trial at a time on one thread, and end when the epochs that their trials trained reach the budget. Each seed gives the
best validation value of both, and how long both took to reach the random search's best, by wall clock and in epochs.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import yaml

# Small, so that a budget holds many trials. The learning rate is constant: while it falls (`decay: linear`), a rung in
# the middle of a fit ranks high rates too low, which gain most at the end, and ASHA stops what would have been best.
BASE: dict[str, Any] = {
    "backbone": {"loss": "softmax", "dim": 16, "content_dim": 16, "negatives": 64, "groups": 1},
    "align": {
        "dim": 16, "encoder": "linear", "epochs": 27, "batch_size": 4096, "contrastive_items": 64, "patience": 0,
        "decay": "none", "evaluate_every": 3,
    },
    "invariance": {"rounds": 1, "environments": 3, "batch_size": 8192, "negatives": 64},
    "merge": {"epochs": 27, "batch_size": 4096, "patience": 0, "decay": "none", "evaluate_every": 3},
    "evaluation": {"k": [10]},
}  # fmt: skip
LATE = {  # stages 2 and 3, once stage 1 is settled
    "invariance.gamma": {"log_uniform": [0.01, 5]},
    "invariance.rho": {"log_uniform": [0.01, 5]},
    "merge.lr": {"log_uniform": [0.001, 0.1]},
    "merge.init": {"choice": ["fresh", "align"]},
}
SPACES: dict[str, dict[str, Any]] = {
    "late": LATE,
    "all": LATE
    | {
        "align.lr": {"log_uniform": [0.001, 0.1]},
        "align.lambda_com": {"log_uniform": [0.01, 10]},
        "backbone.negative_weight": {"log_uniform": [1, 300]},
        "backbone.l2": {"log_uniform": [0.0001, 1]},
    },
}
ARMS: dict[str, dict[str, Any]] = {
    "random": {"scheduler": {"kind": "fifo"}, "reuse": {"on": False}},
    "asha": {"scheduler": {"kind": "asha", "grace": 3, "reduction": 3}, "reuse": {"on": True, "siblings": 4}},
}

Curve = list[tuple[float, int, float]]  # (seconds, epochs, best so far), where the best changed


@dataclass(frozen=True)
class Race:
    """One seed. A ratio is random search's time to its own best over ours to the same value; 0: never reached.

    whole_ratio: the same with all of random search's time, after which alone its best is known to be that.
    """

    seed: int
    random: float
    asha: float
    seconds_ratio: float
    epochs_ratio: float
    whole_ratio: float
    random_trials: int
    asha_trials: int
    random_seconds: float
    asha_seconds: float


def reached(curve: Curve, value: float) -> tuple[float, float]:
    """(seconds, epochs) at which a search knew a value that is not worse; inf where it never did."""
    return next(((seconds, float(epochs)) for seconds, epochs, best in curve if best >= value), (math.inf, math.inf))


def ratios(random: Curve, asha: Curve) -> tuple[float, float]:
    """How many times sooner the second search knew the best of the first, in (seconds, epochs)."""
    goal = random[-1][2]
    (slow, far), (fast, near) = reached(random, goal), reached(asha, goal)
    return slow / fast, far / near


@dataclass(frozen=True)
class Setting:
    """What both searches of a race have in common."""

    data: str
    space: str
    epochs: int
    seed: int
    folder: Path


def search(setting: Setting, arm: str) -> tuple[Curve, dict[str, Any]]:
    """Run one arm; its curve and summary."""
    from m3dist.search import driver, space
    from m3dist.search.ledger import Ledger

    name = f"{arm}-{setting.seed}"
    given = {"base": {**BASE, "data": setting.data}, "space": SPACES[setting.space], "concurrency": 1, **ARMS[arm]}
    given |= {"budget": {"epochs": setting.epochs}, "final_seeds": [], "seed": setting.seed}
    path = setting.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**given, "out": str(setting.folder / name)}))
    plan = space.load(path)
    summary = driver.run(plan, quiet=True)
    ledger = Ledger(plan)
    ledger.close()
    return ledger.best_so_far, summary


def race(setting: Setting) -> Race:
    """Run both arms; which goes first changes with the seed, so that neither is always the one on the warm machine."""
    curves, summaries = {}, {}
    for arm in sorted(ARMS, reverse=bool(setting.seed % 2)):
        curves[arm], summaries[arm] = search(setting, arm)
    if not all(curves.values()):
        raise click.UsageError(f"{setting.epochs} epochs are too few for one whole trial; raise --epochs")
    seconds_ratio, epochs_ratio = ratios(curves["random"], curves["asha"])
    whole_ratio = summaries["random"]["seconds"] / reached(curves["asha"], curves["random"][-1][2])[0]
    trials = {arm: sum(summary["trials"].values()) for arm, summary in summaries.items()}
    return Race(
        setting.seed, curves["random"][-1][2], curves["asha"][-1][2], seconds_ratio, epochs_ratio, whole_ratio,
        trials["random"], trials["asha"], summaries["random"]["seconds"], summaries["asha"]["seconds"],
    )  # fmt: skip


def table(races: list[Race]) -> str:
    """Markdown, with the medians over seeds in the last row."""
    shown = lambda x: f"{x:.1f}" if x else "not reached"  # noqa: E731
    lines = [
        "| seed | random: best | trials, seconds | ASHA + reuse: best | trials, seconds | times faster, wall clock | "
        "in epochs | than the whole random search, wall clock |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in races:
        lines.append(
            f"| {r.seed} | {r.random:.4f} | {r.random_trials}, {r.random_seconds:.0f} | {r.asha:.4f} | "
            f"{r.asha_trials}, {r.asha_seconds:.0f} | {shown(r.seconds_ratio)} | {shown(r.epochs_ratio)} | "
            f"{shown(r.whole_ratio)} |"
        )
    middle = {name: statistics.median(getattr(r, name) for r in races) for name in asdict(races[0])}
    lines.append(
        f"| median | {middle['random']:.4f} | | {middle['asha']:.4f} | | {shown(middle['seconds_ratio'])} | "
        f"{shown(middle['epochs_ratio'])} | {shown(middle['whole_ratio'])} |"
    )
    return "\n".join(lines)


@click.command(help=__doc__)
@click.argument("data")
@click.option("--space", type=click.Choice(list(SPACES)), default="late", show_default=True)
@click.option("--epochs", default=900, show_default=True, help="Of each search, over all its trials.")
@click.option("--seed", "seeds", multiple=True, type=int, default=(0, 1, 2), show_default=True, help="May be repeated.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Keep the races here, beside those of before.")
def main(data: str, space: str, epochs: int, seeds: tuple[int, ...], path: Path | None) -> None:
    import ray
    import torch

    torch.set_num_threads(1)
    ray.init(address="local", num_cpus=1, log_to_driver=False, logging_level="ERROR")
    races = [Race(**kept) for kept in json.loads(path.read_text())] if path and path.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            setting = Setting(data, space, epochs, seed, Path(folder))
            races = [r for r in races if r.seed != seed] + [race(setting)]
            if path:
                path.write_text(json.dumps([asdict(r) for r in races], indent=2) + "\n")
    click.echo(f"{space}: {epochs} epochs each, validation NDCG@10\n\n{table(races)}")


if __name__ == "__main__":
    main()
