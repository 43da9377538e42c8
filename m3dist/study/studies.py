"""What `m3dist reproduce` runs: each study trains what is missing and writes its table or figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from m3dist.config import Synthetic
from m3dist.data.dataset import Dataset
from m3dist.study import methods, report, shift, statistics
from m3dist.study.methods import INVRL, METRICS, NAIVE, OURS, TABLE3, TABLE4, TABLE5, Method
from m3dist.study.runs import K, Scores, Study, against


def table3(study: Study) -> Path:
    """All twelve methods."""
    rows = [study.popularity(), *_each(study, _usable(study, _chosen(study)))]
    return _table(study, "table3", "Table 3: all methods", rows)


def table4(study: Study) -> Path:
    """Without L_com, without L_MI, and the whole method."""
    rate = study.rate(OURS)  # one for all three rows
    rows = []
    for method in _usable(study, TABLE4):
        rows.append(_of(study, method, *rate))
    return _table(study, "table4", "Table 4: ablations of stage 1", rows)


def table5(study: Study) -> Path:
    """One set of trained recommenders, fused by every strategy."""
    _usable(study, (OURS,))
    return _table(study, "table5", "Table 5: fusion strategies", study.strategies(OURS, TABLE5))


def figure3(study: Study) -> Path:
    """P, R and NDCG against K for the UltraGCN family."""
    rows = _each(study, _usable(study, (NAIVE, INVRL, OURS)))
    panels: dict = {}
    table: list[report.Row] = []
    for name, metric in (("Precision", "precision"), ("Recall", "recall"), ("NDCG", "ndcg")):
        panels[f"{name}@K"] = {
            row.name: ([*K], [row.mean(f"{metric}@{k}") for k in K], [row.spread(f"{metric}@{k}") for k in K])
            for row in rows
        }
        for row in rows:
            table.append({"metric": name, "method": row.name, **{f"K={k}": row.mean(f"{metric}@{k}") for k in K}})
    report.write_table(study.out / "figure3", _title(study, "Figure 3: metrics against K"), table, _notes(study))
    report.plot_lines(study.out / "figure3.png", "K", panels)
    return study.out / "figure3.md"


def figure4(study: Study, environments: tuple[int, ...] = (5, 10, 15, 20, 25)) -> Path:
    """NDCG@10 against the number of environments."""
    lines = {}
    table: list[report.Row] = []
    for method in _usable(study, (INVRL, OURS)):
        rate = study.rate(method)
        rows = [_of(study, method, *rate, f"invariance.environments={n}") for n in environments]
        mean, spread = [row.mean("ndcg@10") for row in rows], [row.spread("ndcg@10") for row in rows]
        lines[method.name] = ([float(n) for n in environments], mean, spread)
        table += [
            {"method": method.name, "environments": n, "N@10": m, "sd over seeds": s}
            for n, m, s in zip(environments, mean, spread, strict=True)
        ]
    report.write_table(study.out / "figure4", _title(study, "Figure 4: number of environments"), table, _notes(study))
    report.plot_lines(study.out / "figure4.png", "environments", {"NDCG@10": lines}, width=4.5)
    return study.out / "figure4.md"


def shifted(study: Study, kind: str, temporal: str = "") -> Path:
    """Metrics on a shifted test set beside an unshifted one.

    kind: `popularity` (balanced over items) or `flip` (planted data, spurious influence reversed), where the same
    trained models rank both test sets; or `time`: `temporal` is the same data prepared with a temporal split, and
    models trained on either split are compared.
    """
    root = study.out / "data" / kind
    if kind == "flip":
        shift.planted_flip(root, Synthetic())
    elif kind == "popularity":
        shift.popularity_balanced(study.dataset, root)
    else:
        root = Path(temporal)
    dataset = Dataset(root)
    ids = np.asarray(dataset.user_ids.to_pylist(), dtype=object).astype(str)
    table: list[report.Row] = []
    drops: dict[str, np.ndarray] = {}
    for method in _usable(study, _chosen(study), dataset):
        b = study.scores(method, data=str(root))
        names_b = ids[b.users]
        if kind == "time":
            a = study.scores(method)
            names_a = np.asarray(study.dataset.user_ids.to_pylist(), dtype=object).astype(str)[a.users]
        else:
            held = [
                against(dataset, study.scorer(c), *shift.inside(root)) for c in study.configs(method, data=str(root))
            ]
            a = Scores.of(method.name, method.category, held, [])
            names_a = ids[a.users]
        both, at_a, at_b = np.intersect1d(names_a, names_b, return_indices=True)
        drops[method.name] = b.values["ndcg@10"]
        lost, low, high = statistics.drop(a.values["ndcg@10"][:, at_a], b.values["ndcg@10"][:, at_b])
        table.append(
            {
                "category": method.category,
                "method": method.name,
                "N@10 inside": a.mean("ndcg@10"),
                "N@10 shifted": b.mean("ndcg@10"),
                "sd over seeds": b.spread("ndcg@10"),
                "R@10 inside": a.mean("recall@10"),
                "R@10 shifted": b.mean("recall@10"),
                "drop of N@10": lost,
                "95 %": f"[{low:.3f}, {high:.3f}]",
                "users": len(both),
            }
        )
    _against_ours(table, drops)
    same = "inside: held-out interactions drawn like the training data; the same trained models rank both"
    notes = {
        "popularity": ["shifted: a tenth of all interactions, drawn with probability 1 / popularity of the item", same],
        "flip": ["planted data; shifted: the spurious dimensions act with their sign reversed", same],
        "time": [f"shifted: the test split of {temporal}, later than its training data; inside: that of {study.data}"],
    }[kind]
    notes += ["drop: 1 - shifted / inside over users who have both", *_notes(study)]
    name = dataset.name if kind == "flip" else study.dataset.name
    report.write_table(study.out / f"shift-{kind}", f"Shifted test data: {kind}, {name}", table, notes)
    return study.out / f"shift-{kind}.md"


def _chosen(study: Study) -> tuple[Method, ...]:
    """The rows of table 3 that were asked for."""
    return tuple(method for method in TABLE3 if not study.only or method.name in study.only)


def _usable(study: Study, wanted: tuple[Method, ...], dataset: Dataset | None = None) -> list[Method]:
    """The methods that the data allows. Raises ValueError when none is left."""
    modalities = (dataset or study.dataset).modalities
    kept = [method for method in wanted if modalities or not method.needs_features]
    if not kept:
        raise ValueError(f"{study.data}: this study needs item features and the data set has none")
    return kept


def _each(study: Study, wanted: list[Method]) -> list[Scores]:
    return [study.scores(method) for method in wanted]


def _of(study: Study, method: Method, *extra: str) -> Scores:
    results, tables = [], []
    for seed in range(study.seeds):
        config = study.config(method, seed, *extra)
        results.append(study.run(config))
        tables.append(study.users(config))
    return Scores.of(method.name, method.category, tables, results)


def _against_ours(table: list[report.Row], values: dict[str, np.ndarray]) -> None:
    """Add the comparison of N@10 with M3-InvRL to every row, corrected over the rows of the table."""
    ours = values.get(OURS.name)
    if ours is None:
        return
    others = [name for name in values if name != OURS.name]
    found = {name: statistics.compare(ours, values[name]) for name in others}
    corrected = dict(zip(others, statistics.holm([found[name].p for name in others]), strict=True))
    for row in table:
        name = str(row["method"])
        if name in found:
            c = found[name]
            row["M3-InvRL minus it, N@10"] = c.difference
            row["95 % interval"] = f"[{c.low:+.4f}, {c.high:+.4f}]"
            row["Holm p"] = f"{corrected[name]:.2g}"
        else:
            row |= {"M3-InvRL minus it, N@10": float("nan"), "95 % interval": "", "Holm p": ""}


def _table(study: Study, file: str, title: str, rows: list[Scores]) -> Path:
    dataset = study.dataset
    paper, caveat = methods.published_for(dataset.name, dataset.n_users, dataset.n_items)
    table: list[report.Row] = []
    best = {short: max(row.mean(metric) for row in rows) for short, metric in METRICS.items()}
    for row in rows:
        cells: report.Row = {"category": row.category, "method": row.name}
        for short, metric in METRICS.items():
            mean, spread = row.mean(metric), row.spread(metric)
            shown = f"{mean:.4f}" if np.isnan(spread) else f"{mean:.4f} ± {spread:.4f}"
            cells[short] = f"**{shown}**" if mean == best[short] else shown
        cells["ndcg_hits@10"] = row.mean("ndcg_hits@10")
        table.append(cells)
    _against_ours(table, {row.name: row.values["ndcg@10"] for row in rows})
    for row, cells in zip(rows, table, strict=True):
        tried = study.tried.get(row.name, [])
        if file == "table3":
            if study.trials > 1:
                cells["lr"] = f"{max(tried, key=lambda pair: pair[1])[0]:g}" if tried else ""
            cells["best epochs"] = " ".join(map(str, row.epochs))
        if paper:
            values = methods.PUBLISHED[paper].get(row.name, (float("nan"),) * 3)
            cells |= {f"published {short}": value for short, value in zip(METRICS, values, strict=True)}
    notes = [
        "mean over users and seeds ± standard deviation over seeds; bold: the best mean",
        "interval: 95 % paired bootstrap over users of seed means; p: paired t test over users, Holm over the table",
        *([f"published: {paper}, from the paper; {caveat}"] if paper else []),
        *_notes(study),
    ]
    report.write_table(study.out / file, _title(study, title), table, notes)
    return study.out / f"{file}.md"


def _title(study: Study, title: str) -> str:
    return f"{title} on {study.dataset.name}"


def _notes(study: Study) -> list[str]:
    notes = [f"{study.seeds} seed{'s' if study.seeds > 1 else ''}"]
    if study.budget != 1:
        notes.append(f"**quick look**: every number of epochs was scaled by {study.budget:g}")
    trials = max(1, study.trials)
    tuned = f"{trials} learning rates per method, chosen by validation data of seed 0" if trials > 1 else "none"
    notes.append(f"tuning: {tuned}")
    if study.overrides:
        notes.append(f"values: {' '.join(study.overrides)}")
    return notes
