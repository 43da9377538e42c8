"""What a search leaves behind: search.parquet, best.yaml, summary.json, TensorBoard with HParams, and plots."""

from __future__ import annotations

import functools
import importlib
import statistics
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from m3dist.config import digest, to_yaml
from m3dist.search.ledger import Ledger, Trial
from m3dist.search.proposals import study_of
from m3dist.search.space import Plan
from m3dist.search.trial import cost
from m3dist.storage.folders import Folder


def check_libraries() -> None:
    """Raises ValueError when what a search needs beside training is not installed."""
    for name in ("optuna", "matplotlib"):
        try:
            importlib.import_module(name)
        except ImportError:
            raise ValueError(f'{name} is not installed; a search needs it: pip install "m3dist[search]"') from None
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)


def write_table(plan: Plan, ledger: Ledger) -> None:
    """search.parquet: every trial, with its values under value.NAME (text where a value is no plain number)."""
    rows = ledger.rows()
    if not rows:
        return
    for row, trial in zip(rows, ledger.trials.values(), strict=True):
        row["saved_epochs"], row["saved_seconds"] = _saved(plan, trial)
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


def trial_board(plan: Plan, ledger: Ledger, trial: Trial) -> None:
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


def importance(plan: Plan, ledger: Ledger) -> dict[str, float]:
    """Share of the metric's variation among good trials that each value explains (PED-ANOVA, Watanabe et al. 2023).

    A trial counts with its best value wherever it ended. Values that only some trials have are left out, and
    nothing is said of fewer than four trials or of trials that are all alike.
    """
    import optuna

    study = optuna.create_study(direction="maximize" if plan.search.mode == "max" else "minimize")
    for frozen in study_of(plan, ledger).trials:
        known = frozen.value if frozen.value is not None else _last(frozen.intermediate_values)
        if known is not None and frozen.params:
            study.add_trial(
                optuna.trial.create_trial(params=frozen.params, distributions=frozen.distributions, value=known)
            )
    if len({t.value for t in study.trials}) < 4:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PED-ANOVA is marked experimental
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        try:
            return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
        except (ValueError, RuntimeError):  # every trial has the same values
            return {}


def _last(curve: dict[int, float]) -> float | None:
    return curve[max(curve)] if curve else None


def plots(plan: Plan, ledger: Ledger) -> dict[str, Any]:
    """Figures by name: metric against budget, importance of each value, parallel coordinates."""
    from matplotlib.figure import Figure

    figures: dict[str, Any] = {}
    if ledger.best_so_far:
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        seconds, epochs, values = zip(*ledger.best_so_far, strict=True)
        axes.step([*epochs, ledger.epochs], [*values, values[-1]], where="post")
        axes.set(xlabel="epochs trained by all trials", ylabel=f"best validation {plan.metric}")
        top = axes.secondary_yaxis("right", functions=(lambda x: x, lambda x: x))
        top.set_yticks([])
        axes.set_title(f"{len(ledger.trials)} trials, {max(*seconds, ledger.seconds):.0f} s")
        figures["budget"] = figure
    if shares := importance(plan, ledger):
        figure = Figure(figsize=(7, 0.4 * len(shares) + 1.2), layout="constrained")
        axes = figure.subplots()
        names = list(shares)[::-1]
        axes.barh(names, [shares[name] for name in names])
        axes.set(xlabel=f"importance for {plan.metric}")
        figures["importance"] = figure
    if any(trial.metric is not None for trial in ledger.trials.values()):
        figures["parallel"] = _parallel(plan, ledger)
    return figures


def _parallel(plan: Plan, ledger: Ledger) -> Any:
    """One line per trial through its values, coloured by its metric; a value that a trial lacks breaks the line."""
    import math

    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    names = list(plan.space)
    figure = Figure(figsize=(max(7, 1.5 * len(names)), 5), layout="constrained")
    axes = figure.subplots()
    lines = [(t.metric, t) for t in ledger.trials.values() if t.metric is not None]
    lines.sort(key=lambda line: line[0])
    norm = Normalize(lines[0][0], lines[-1][0])
    colours = colormaps["viridis" if plan.search.mode == "max" else "viridis_r"]

    def height(name: str, value: Any) -> float:
        dimension = plan.space[name]
        if value is None:
            return math.nan
        if dimension.finite is not None:
            return dimension.finite.index(value) / max(len(dimension.finite) - 1, 1)
        low, high = dimension.ends()
        if dimension.log_uniform is not None:
            return (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
        return (value - low) / (high - low)

    for metric, trial in lines:
        heights = [height(name, trial.values.get(name)) for name in names]
        finished = trial.status == "finished"
        axes.plot(
            range(len(names)), heights, color=colours(norm(metric)), alpha=0.9 if finished else 0.35,
            linewidth=1.6 if finished else 0.8, marker="o", markersize=3,
        )  # fmt: skip
    for at, name in enumerate(names):
        dimension = plan.space[name]
        axes.axvline(at, color="0.8", linewidth=0.8, zorder=0)
        labels = dimension.finite if dimension.finite is not None else dimension.ends()
        for value in labels:
            text = f"{value:.3g}" if isinstance(value, float) else str(value)
            axes.annotate(text, (at, height(name, value)), xytext=(4, 2), textcoords="offset points", fontsize=7)
    axes.set_xticks(range(len(names)), names, rotation=20, ha="right", fontsize=8)
    axes.set_yticks([])
    figure.colorbar(ScalarMappable(norm, colours), ax=axes, label=f"validation {plan.metric}")
    return figure


def _saved(plan: Plan, trial: Trial) -> tuple[int, float]:
    """Epochs and seconds that a trial's reused stages took those who trained them."""
    assert plan.base.artifacts is not None
    costs = [cost(Path(plan.base.artifacts), stage, trial.keys[stage]) for stage in trial.reused]
    return int(sum(c["epochs"] for c in costs)), sum(c["seconds"] for c in costs)


def savings(plan: Plan, ledger: Ledger) -> dict[str, Any]:
    """What stage reuse saved."""
    stages: dict[str, int] = {}
    for trial in ledger.trials.values():
        for stage in trial.reused:
            stages[stage] = stages.get(stage, 0) + 1
    saved = [_saved(plan, trial) for trial in ledger.trials.values()]
    return {
        "stages": stages,
        "epochs": sum(epochs for epochs, _ in saved),
        "seconds": round(sum(seconds for _, seconds in saved), 1),
        "epochs_trained": ledger.epochs,
    }


def finish(plan: Plan, ledger: Ledger, passed_over: int, quiet: bool) -> dict[str, Any]:
    """Write everything that a finished search leaves; returns the content of summary.json."""
    from torch.utils.tensorboard import SummaryWriter

    folder = Folder(str(plan.out))
    write_table(plan, ledger)
    figures = plots(plan, ledger)
    with SummaryWriter(str(plan.out / "tb" / "search")) as board:
        for _, epochs, value in ledger.best_so_far:
            board.add_scalar(f"search/best {plan.metric}", value, epochs)
        for name, figure in figures.items():
            with folder.writing(f"plots/{name}.png") as path:
                figure.savefig(path, dpi=120, format="png")
            _canvas(figure)
            board.add_figure(name, figure, close=False)
    best = ledger.best()
    summary: dict[str, Any] = {
        "metric": plan.metric,
        "space": len(plan.space),
        "trials": ledger.counts(),
        "passed_over": passed_over,
        "seconds": round(ledger.seconds, 1),
        "reuse": savings(plan, ledger),
        "importance": importance(plan, ledger),
        "best": None,
    }
    if best is not None:
        summary["best"] = {"trial": best.id, "values": best.values, "validation": best.metric, "status": best.status}
        summary["final"] = {str(seed): result for seed, result in sorted(ledger.finals.items())}
        summary["test"] = _spread([result["test"] for result in ledger.finals.values()])
        summary["config"] = digest(plan.config(best.values).model_dump(mode="json"))
    folder.write_json("summary.json", summary)
    return summary


def _canvas(figure: Any) -> None:
    """TensorBoard draws through an Agg canvas."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)


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
    say = functools.partial(console.print, highlight=False, soft_wrap=True)
    reuse, best = summary["reuse"], summary["best"]
    counts = ", ".join(f"{n} {status}" for status, n in sorted(summary["trials"].items()))
    say(f"trials: {counts}; {reuse['epochs_trained']} epochs in {summary['seconds']:.0f} s")
    stages = ", ".join(f"{stage} {n} times" for stage, n in reuse["stages"].items()) or "nothing"
    say(
        f"reused: {stages}; saved {reuse['epochs']} epochs, {reuse['seconds']:.0f} s; passed over "
        f"{summary['passed_over']} proposals whose stage had been stopped"
    )
    if best is None:
        say("no trial reached its last stage; give the search more budget")
        return
    shown = ", ".join(
        f"{name}={x:.4g}" if isinstance(x, float) else f"{name}={x}" for name, x in best["values"].items()
    )
    say(f"best: {best['trial']}, validation {plan.metric} {best['validation']:.4f}: {shown}")
    if summary["test"]:
        test = summary["test"][plan.metric]
        say(f"test {plan.metric}: {test['mean']:.4f} +- {test['std']:.4f} over {len(summary['final'])} seeds")
    say(f"next: m3dist train {Path(plan.out) / 'best.yaml'}")
