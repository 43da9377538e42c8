"""`m3dist reproduce table3 --data DIR`"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

STUDIES = ("table3", "table4", "table5", "figure3", "figure4", "shift")


@click.command(name="reproduce")
@click.argument("studies", nargs=-1, required=True, type=click.Choice(STUDIES), metavar="STUDY...")
@click.option("--data", required=True, type=click.Path(), help="A prepared data set.")
@click.option("--out", type=click.Path(path_type=Path), help="Tables, figures and runs.  Default: studies/NAME.")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option(
    "--budget", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True, help="Scales all epochs."
)
@click.option(
    "--trials", type=click.IntRange(1, 4), default=1, show_default=True, help="Learning rates tried per method."
)
@click.option("--environments", default="5,10,15,20,25", show_default=True, help="Of figure4.")
@click.option("--temporal", type=click.Path(), help="Of shift: the same data prepared with --split temporal.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A config value of every run; repeat it.")
@click.option("--method", "only", multiple=True, metavar="NAME", help="Rows of table3 and shift; repeat it.")
@click.option("--quiet", is_flag=True)
def command(studies: tuple[str, ...], environments: str, temporal: str | None, out: Path | None, **given: Any) -> None:
    """Reproduce the paper's tables 3 to 5 and figures 3 and 4 (STUDY), or `shift`: test data unlike the training data.

    Finished runs are skipped, so an interrupted study goes on where it was, and studies share what they train.
    """
    from m3dist.data.dataset import Dataset
    from m3dist.storage.folders import Folder
    from m3dist.storage.owner import alone
    from m3dist.study import studies as found
    from m3dist.study.methods import TABLE3
    from m3dist.study.runs import Study

    counts = _counts(environments)
    names = [method.name for method in TABLE3]
    for name in given["only"]:
        if name not in names:
            raise ValueError(f"--method {name}: no such row; expected one of {'; '.join(names)}")
    study = Study(out=out or Path("studies") / Path(given["data"]).name, **given)
    _ = study.dataset  # a bad path is one clear error before anything is written
    if temporal:
        Dataset(temporal)
    with alone(Folder(study.out)):
        for name in studies:
            if name == "figure4":
                click.echo(found.figure4(study, counts))
            elif name == "shift":
                for kind in ("popularity", "flip", *(["time"] if temporal else [])):
                    click.echo(found.shifted(study, kind, temporal or ""))
            else:
                click.echo(getattr(found, name)(study))


def _counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1:
        raise ValueError(f"--environments: expected positive numbers with commas between, got {text!r}")
    return counts
