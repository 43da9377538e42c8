"""`python -m benchmarks [SECTION]...`: what every part of m3dist costs here, as ratios measured in one run."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
from rich.console import Console

from benchmarks import measure, steps, versus
from benchmarks.measure import Report, Roof, Row
from benchmarks.sizes import SIZES, made
from benchmarks.subjects import Subject

SECTIONS = {
    "steps": "every stage's step: rate, share of the roof, peak memory",
    "plain": "the same work by a plain implementation",
}


def rows(section: str, sizes: list[str], limits: Roof, folder: Path) -> Iterator[Row]:
    subjects: Callable[[str], Subject] = lambda name: Subject(made(SIZES[name], folder / name))  # noqa: E731
    if section == "steps":
        for name in sizes:
            yield from steps.measure(subjects(name), name, limits)
    if section == "plain":
        for name in sizes:
            yield from versus.measure(subjects(name), name)


@click.command(help=__doc__)
@click.argument("sections", nargs=-1, metavar="[SECTION]...")
@click.option("--size", "sizes", multiple=True, help=f"Only this one of {', '.join(SIZES)}; may be repeated.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the numbers here.")
@click.option("--compare", "old", type=click.Path(path_type=Path), help="A file that --json wrote: show new / old.")
def main(sections: tuple[str, ...], sizes: tuple[str, ...], path: Path | None, old: Path | None) -> None:
    console = Console()
    try:
        chosen, chosen_sizes = measure.only(SECTIONS, sections, "section"), measure.only(SIZES, sizes, "size")
        before = Report.read(old) if old else None
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    limits = measure.roof()
    report = Report(measure.machine(limits))
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for section in chosen:
            for row in rows(section, chosen_sizes, limits, Path(folder)):
                report.rows.append(row)
                shown = ", ".join(f"{name} {value:,.3g}" for name, value in row.values.items())
                console.print(
                    f"[{time.perf_counter() - began:4.0f} s] {row.what}: {shown}", highlight=False, markup=False
                )
    measure.show(report, console)
    if before:
        measure.compare(before, report, console)
    if path:
        report.write(path)


if __name__ == "__main__":
    main()
