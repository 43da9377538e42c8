"""`python -m benchmarks [SECTION]...`: what every part of m3dist costs here, as ratios measured in one run."""

from __future__ import annotations

import importlib
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console

from benchmarks import gpu, growth, measure, peers, steps, versus, whole
from benchmarks.measure import Report, Roof, Row
from benchmarks.sizes import SIZES, made
from benchmarks.subjects import Subject
from m3dist.config import load
from m3dist.distributed import devices
from m3dist.training.allocator import keep_freed_memory


@dataclass
class Options:
    """What some sections need besides."""

    data: Path | None
    pythons: tuple[str, ...]
    peers: tuple[str, ...]
    limits: peers.Limits
    values: tuple[str, ...]


SECTIONS = {
    "steps": "every stage's step: rate, share of the roof, peak memory",
    "losses": "the steps of stages 1 and 3 under the softmax and under UltraGCN's loss",
    "plain": "the same work by a plain implementation",
    "launches": "launches, waits and copies of every stage's step and of an evaluation block, on a stand-in for a GPU",
    "gpu": "every stage's step captured and not, plain torch at the same batch, all users ranked, a run on --data",
    "growth": "against users, items, environments, modalities",
    "peers": "other libraries on --data: seconds per epoch, and to a given validation NDCG@10",
    "whole": "where the wall-clock of `m3dist train` on --data goes",
}
NEED_DATA = ("peers", "whole")
ON_GPUS = ("steps", "losses", "plain", "gpu")
AT_TIKTOK = ("losses", "launches", "gpu")  # at that size alone, where none is named


def rows(section: str, sizes: list[str], limits: Roof, folder: Path, options: Options) -> Iterator[Row]:
    def subjects(name: str) -> Subject:
        return Subject(made(SIZES[name], folder / name), device=limits.device)

    if section == "steps":
        for name in sizes:
            yield from steps.measure(subjects(name), name, limits)
    if section == "losses":
        for name in sizes:
            yield from steps.losses(subjects(name), name)
    if section == "plain":
        for name in sizes:
            yield from versus.measure(subjects(name), name)
    if section == "launches":
        from benchmarks import launches

        for name in sizes:
            yield from launches.measure(made(SIZES[name], folder / name), name)
    if section == "gpu":
        for name in sizes:
            yield from gpu.measure(subjects(name), name, options.data)
    if section == "growth":
        yield from growth.measure(folder)
    if section == "peers" and options.data is not None:
        yield from peers.measure(options.data, options.pythons, options.limits, options.peers, options.values)
    if section == "whole" and options.data is not None:
        yield from whole.measure(options.data)


@click.command(help=__doc__)
@click.argument("sections", nargs=-1, metavar="[SECTION]...")
@click.option("--size", "sizes", multiple=True, help=f"Only this one of {', '.join(SIZES)}; may be repeated.")
@click.option(
    "--device", type=click.Choice(["cpu", "cuda", "auto"]), default="cpu", show_default=True,
    help=f"Where {', '.join(ON_GPUS)} run; on a GPU nothing else is measured. auto: a GPU where there is one.",
)  # fmt: skip
@click.option(
    "--data", type=click.Path(path_type=Path), help=f"A prepared data set, for {' and '.join(NEED_DATA)}, and for gpu."
)
@click.option("--python", "pythons", multiple=True, help="A Python that has some of the peers; may be repeated.")
@click.option("--peer", "some", multiple=True, help="Only this peer; may be repeated.")
@click.option("--budget", default=60.0, show_default=True, help="Seconds that a peer trains at most.")
@click.option("--target", default=0.18, show_default=True, help="The validation NDCG@10 that peers race to.")
@click.option(
    "--set", "values", multiple=True, metavar="KEY=VALUE",
    help="A config value of ours beside the peers and of the plain one; may be repeated.",
)  # fmt: skip
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the numbers here.")
@click.option("--compare", "old", type=click.Path(path_type=Path), help="A file that --json wrote: show new / old.")
def main(
    sections: tuple[str, ...], sizes: tuple[str, ...], device: str, data: Path | None, pythons: tuple[str, ...],
    some: tuple[str, ...], budget: float, target: float, values: tuple[str, ...], path: Path | None, old: Path | None,
) -> None:  # fmt: skip
    console = Console()
    keep_freed_memory()  # as a run does
    options = Options(data, pythons or (sys.executable,), some, peers.Limits(budget, target), values)
    try:
        chosen, chosen_sizes = measure.only(SECTIONS, sections, "section"), measure.only(SIZES, sizes, "size")
        measure.only([*peers.OURS, *peers.THEIRS], some, "peer")
        if data is None:
            if needy := [name for name in sections if name in NEED_DATA]:
                raise ValueError(f"{', '.join(needy)}: give --data a folder that `m3dist prepare` made")
            chosen = [name for name in chosen if name not in NEED_DATA]
        device = devices.found(device).type
        if device == "cuda":
            if elsewhere := [name for name in sections if name not in ON_GPUS]:
                raise ValueError(f"{', '.join(elsewhere)}: measured on the CPU alone; leave --device cuda out")
            chosen = [name for name in chosen if name in ON_GPUS]
        load(None, values)
        before = Report.read(old) if old else None
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if "launches" in chosen:  # registers a device: before autograd first runs, and never beside a real GPU
        importlib.import_module("benchmarks.launches")
    limits = measure.roof(device)
    report = Report(measure.machine(limits))
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for section in chosen:
            some_sizes = ["tiktok"] if section in AT_TIKTOK and not sizes else chosen_sizes
            for row in rows(section, some_sizes, limits, Path(folder), options):
                report.rows.append(row)
                shown = ", ".join(f"{name} {value:,.3g}" for name, value in row.values.items()) or row.note
                console.print(
                    f"[{time.perf_counter() - began:4.0f} s] {row.what}: {shown}", highlight=False, markup=False
                )
            if path:  # what was measured stays, whatever a later section does
                report.write(path)
    measure.show(report, console)
    if before:
        measure.compare(before, report, console)


if __name__ == "__main__":
    main()
