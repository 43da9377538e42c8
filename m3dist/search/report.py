"""What a search leaves behind: search.parquet, best.yaml, summary.json, TensorBoard with HParams, and plots."""

from __future__ import annotations

import importlib
import statistics
from collections import Counter
from pathlib import Path
from shlex import quote
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from m3dist.config import digest, to_yaml
from m3dist.search import optuna_study
from m3dist.search.ledger import Ledger, Trial
from m3dist.search.space import Plan
from m3dist.storage.folders import Folder
from m3dist.terminal import printable
from m3dist.training.tracking import RunFailed


def check_libraries() -> None:
    """Raises ValueError when what a search needs beside training is not installed."""
    for name in ("optuna", "matplotlib"):
        try:
            importlib.import_module(name)
        except ImportError:
            raise ValueError(f'{name} is not installed; a search needs it: pip install "m3dist[search]"') from None


def write_table(plan: Plan, ledger: Ledger) -> None:
    """search.parquet: every trial, with its values under value.NAME (text where a value is no plain number)."""
    rows = ledger.rows()
    if not rows:
        return
    columns: dict[str, Any] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError):  # values of several kinds
            columns[name] = pa.array([None if x is None else str(x) for x in values])
    with Folder(str(plan.out)).writing("search.parquet") as path:
        pq.write_table(pa.table(columns), path)


def write_best(plan: Plan, best: Trial) -> None:
    """best.yaml, for `m3dist train`; it trains in a folder of its own, from the search's stages."""
    config = plan.config(best.values).model_copy(update={"out": str(plan.out / "best")})
    Folder(str(plan.out)).write_text("best.yaml", to_yaml(config))


def so_far(plan: Plan, ledger: Ledger) -> None:
    """What an interrupted search leaves: the trials that it knows, and the best of them."""
    write_table(plan, ledger)
    if (best := ledger.best()) is not None:
        write_best(plan, best)


def trial_board(plan: Plan, trial: Trial) -> None:
    """A trial's values and result for TensorBoard's HPARAMS tab, and the curve of the search."""
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    values = {name: x if isinstance(x, int | float | str | bool) else str(x) for name, x in trial.values.items()}
    metric = f"hparam/{plan.metric}"
    with SummaryWriter(str(plan.out / "tb" / trial.id)) as board:
        assert board.file_writer is not None
        for summary in hparams(values, {metric: None, "hparam/epochs": None}):
            board.file_writer.add_summary(summary)
        for position, value in trial.curve:
            board.add_scalar(f"search/{plan.metric}", value, position)
        if trial.metric is not None:
            board.add_scalar(metric, trial.metric, 0)
        board.add_scalar("hparam/epochs", trial.epochs, 0)
        board.add_text("search/outcome", f"{trial.status} {trial.reason}")


def savings(ledger: Ledger) -> dict[str, Any]:
    """What stage reuse saved."""
    saved = [ledger.saved(trial) for trial in ledger.trials.values()]
    return {
        "stages": dict(Counter(stage for trial in ledger.trials.values() for stage in trial.reused)),
        "epochs": sum(epochs for epochs, _ in saved),
        "seconds": round(sum(seconds for _, seconds in saved), 1),
        "epochs_trained": ledger.epochs,
    }


def finish(plan: Plan, ledger: Ledger, skipped: int) -> dict[str, Any]:
    """Write everything that a finished search leaves; returns the content of summary.json.

    skipped: proposals that an earlier trial made pointless.
    """
    write_table(plan, ledger)
    _write_board(plan, ledger)
    best = ledger.best()
    summary: dict[str, Any] = {
        "metric": plan.metric,
        "space": len(plan.space),
        "trials": ledger.counts(),
        "skipped": skipped,
        "seconds": round(ledger.seconds, 1),
        "reuse": savings(ledger),
        "importance": optuna_study.importance(plan, ledger),
        "failures": dict(Counter(trial.reason for trial in ledger.trials.values() if trial.status == "failed")),
        "best": None,
    }
    if best is not None:
        summary["best"] = {"trial": best.id, "values": best.values, "validation": best.metric, "status": best.status}
        summary["final"] = {str(seed): result for seed, result in sorted(ledger.finals.items())}
        summary["test"] = _spread([result["test"] for result in ledger.finals.values()])
        summary["config"] = digest(plan.config(best.values).model_dump(mode="json"))
    Folder(str(plan.out)).write_json("summary.json", summary)
    return summary


def fruitless(summary: dict[str, Any]) -> Exception:
    """The error of a search that measured no trial in its last stage."""
    failures = summary["failures"]
    if not failures:
        return ValueError("no trial reached its last stage; give the search more budget")
    reason = max(failures, key=failures.__getitem__)
    kind = FloatingPointError if all(each.startswith(FloatingPointError.__name__) for each in failures) else RunFailed
    return kind(f"no trial succeeded, {sum(failures.values())} failed: {reason}; trials/*/error.txt says more")


def _write_board(plan: Plan, ledger: Ledger) -> None:
    """The curve of the whole search and its plots, for TensorBoard and as files."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(plan.out / "tb" / "search")) as board:
        for _, epochs, value in ledger.best_so_far:
            board.add_scalar(f"search/best {plan.metric}", value, epochs)
        for name, figure in optuna_study.plots(plan, ledger).items():
            with Folder(str(plan.out)).writing(f"plots/{name}.png") as path:
                figure.savefig(path, dpi=120, format="png", bbox_inches="tight")
            board.add_figure(name, figure)


def _spread(results: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and sample standard deviation over the seeds."""
    if not results:
        return {}
    out = {}
    for name in results[0]:
        values = [result[name] for result in results]
        out[name] = {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else 0.0}
    return out


def show(plan: Plan, summary: dict[str, Any], console: Any) -> None:
    """The outcome in a few lines."""

    def say(text: str) -> None:
        console.print(printable(text), highlight=False, soft_wrap=True, markup=False)

    reuse, best = summary["reuse"], summary["best"]
    counts = ", ".join(f"{n} {status}" for status, n in sorted(summary["trials"].items()))
    say(f"trials: {counts}; {reuse['epochs_trained']} epochs in {summary['seconds']:.0f} s")
    stages = ", ".join(f"{stage} {n} times" for stage, n in reuse["stages"].items()) or "nothing"
    say(
        f"reused: {stages}; saved {reuse['epochs']} epochs, {reuse['seconds']:.0f} s; skipped "
        f"{summary['skipped']} proposals whose stage had been stopped"
    )
    if best is None:
        return
    shown = ", ".join(
        f"{name}={x:.4g}" if isinstance(x, float) else f"{name}={x}" for name, x in best["values"].items()
    )
    say(f"best: {best['trial']}, validation {plan.metric} {best['validation']:.4f}: {shown}")
    if summary["test"]:
        test = summary["test"][plan.metric]
        seeds = len(summary["final"])
        spread = f" +- {test['std']:.4f} over {seeds} seeds" if seeds > 1 else ", one seed"
        say(f"test {plan.metric}: {test['mean']:.4f}{spread}")
    best, here = Path(plan.out) / "best.yaml", Path.cwd()
    say(f"next: m3dist train {quote(str(best.relative_to(here) if best.is_relative_to(here) else best))}")
