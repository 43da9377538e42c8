"""`m3dist prepare FORMAT SRC DST`: turn published data into a prepared data set and say what is in it."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any, Literal, get_origin

import click

from m3dist import config
from m3dist.data import importers

_NUMBERS = (float, float, float)


def _named_paths(ctx: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, Path]:
    """NAME=PATH options as a dict."""
    out: dict[str, Path] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not (name and equals and path):
            raise click.BadParameter(f"{value!r}: expected NAME=PATH")
        if name in out:
            raise click.BadParameter(f"{name!r} is given twice")
        out[name] = Path(path)
    return out


def _option(flag: str, what: str, **more: Any) -> click.Option:
    return click.Option([flag], help=what, **more)


def _named(flag: str, name: str, what: str) -> click.Option:
    return click.Option([flag, name], multiple=True, callback=_named_paths, metavar="NAME=PATH", help=what)


def _column(flag: str, what: str) -> click.Option:
    return click.Option([flag], metavar="NAME", help=what)


def _options() -> dict[str, click.Option]:
    """Every option of an importer by its name in importers.options."""
    path = click.Path(path_type=Path)
    count = click.IntRange(min=0)
    made = [
        _column("--user-column", "Default: user_id, userID, user, uid, reviewerID and their like."),
        _column("--item-column", "Default: item_id, itemID, item, movieId, asin and their like."),
        _column("--rating-column", "Used with --threshold.  Default: rating, score, stars, overall."),
        _option("--threshold", "Keep interactions rated at least this.  Default: keep all.", type=float),
        _column("--time-column", "For --split leave-last-out and temporal.  Default: timestamp, time, date."),
        _option(
            "--time-format", "Of times that are no ISO 8601 and no numbers, as strptime: %m/%d/%Y.", metavar="TEXT"
        ),
        _column("--split-column", "Holds train, val, test or 0, 1, 2.  Default: x_label or split."),
        click.Option(["--no-header"], is_flag=True, help="Text tables without header; columns are named 1, 2, ..."),
        _option(
            "--delimiter", "Separator of text tables: tab, comma, space, '::', ...  Default: by a vote.", metavar="TEXT"
        ),
        _option(
            "--quote",
            "How text tables quote cells (inside: doubled, or behind a backslash).  Default: as the file shows.",
            type=click.Choice(["double", "single", "backslash", "none"]),
        ),
        _option(
            "--encoding", "Of text tables, such as latin-1.  Default: UTF-8, or UTF-16 by its mark.", metavar="NAME"
        ),
        _option(
            "--ids",
            "What ids are: integers must all be; text takes them as they are written.",
            type=click.Choice(["auto", "integers", "text"]),
            default="auto",
        ),
        _option(
            "--on-bad-row",
            "A row without an id, with an unreadable value, of another length: refuse it, or drop and count it.",
            type=click.Choice(["error", "drop"]),
            default="error",
        ),
        _option("--items", "Items table; its row i is row i of features by position.", type=path),
        _column("--items-id", "The id column of the items table and of feature tables.  Default: item_id, id, ..."),
        _option("--first-item", "Item id of row 0 of features by position.", type=int, default=0),
        _named(
            "--feature",
            "features",
            "A modality's file (or FILE#ARRAY), in place of those found in SRC (relative paths: here, then SRC).",
        ),
        _named("--present", "present", "A modality's .npy of booleans: which items have it."),
        _option("--split", "For data without a split.", type=click.Choice(["random", "leave-last-out", "temporal"])),
        _option("--ratios", "Shares of train, val and test.", type=_NUMBERS, default=(0.8, 0.1, 0.1)),
        _option("--seed", "Of --split random and --cold.", type=count, default=0),
        _option(
            "--cold",
            "With --split: hold out this share of the items, half of them new in val, half in test.",
            type=click.FloatRange(0, 1, max_open=True),
            default=0.0,
        ),
        click.Option(
            ["--at-least-one"],
            is_flag=True,
            help="With --split random: one in val and in test of users who have three.",
        ),
        _option("--test-from", "With --split temporal: where test begins, a date or a number.", metavar="DATE"),
        _option("--val-from", "With --test-from: where val begins.  Default: by its share.", metavar="DATE"),
        click.Option(["--file-order"], is_flag=True, help="Rows stand in order of time; no column says it."),
        _option(
            "--min-user", "Keep users with at least so many interactions (k-core, until stable).", type=count, default=0
        ),
        _option("--min-item", "Keep items with at least so many interactions.", type=count, default=0),
        _option("--users", "Number of users.  Default: the highest user id and one.", type=click.IntRange(min=1)),
    ]
    return {str(option.name): option for option in made}


def _written() -> list[click.Parameter]:
    """What every format has: how the data set is written."""
    return [
        _option(
            "--overlap",
            "A pair in two splits: refuse, or keep it in train before val before test.",
            type=click.Choice(["error", "drop"]),
            default="error",
        ),
        _option(
            "--zero-rows",
            "A feature row of zeros: a value, an item that lacks the modality, or an error.",
            type=click.Choice(["keep", "missing", "error"]),
            default="keep",
        ),
        _option(
            "--engine",
            "ray: files are read and split by tasks of a Ray cluster, for sources that outgrow one machine.",
            type=click.Choice(["local", "ray"]),
            default="local",
        ),
        click.Option(["--dry-run"], is_flag=True, help="Show how the first rows are read, and write nothing."),
    ]


class _Formats(click.Group):
    """One command per importer, made when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return ["auto", *importers.IMPORTERS, "synthetic", "download"]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name == "synthetic":
            return _synthetic_command()
        if name == "download":
            return importlib.import_module("m3dist.cli.download").command
        if name == "auto":
            takes = frozenset(_options())
            return _command(name, "Recognise the layout of SRC, say what was taken for what, and import it.", takes)
        if name not in importers.IMPORTERS:
            return None
        module = importers.importer(name)
        names = {"no_header" if option == "header" else option for option in module.TAKES}
        return _command(name, inspect.getdoc(module) or "", frozenset(names))


def _command(name: str, text: str, takes: frozenset[str]) -> click.Command:
    offered = _options()
    params: list[click.Parameter] = [
        click.Argument(["src"], type=click.Path(path_type=Path, resolve_path=True)),
        click.Argument(["dst"], type=click.Path(path_type=Path)),
        *(option for key, option in offered.items() if key in takes),
        *_written(),
    ]

    def run(**given: Any) -> None:
        _prepare(name, **given)

    return click.Command(name, callback=run, params=params, help=text, context_settings={"show_default": True})


@click.group(cls=_Formats, context_settings={"show_default": True})
def command() -> None:
    """Import a data set in one of these FORMATs: validate it, number its ids, write it as DST.

    Nothing is left at DST when the data is refused.
    """


def _prepare(name: str, src: Path, dst: Path, dry_run: bool, **given: Any) -> None:
    from m3dist.cli import prepare_report as report
    from m3dist.data.importers import common
    from m3dist.data.importers.options import Options

    engine = given.pop("engine")
    if name == "auto":
        name, why = importers.recognise(src)
        report.say(f"{src.name} is read as {name}: {why}")
        given = _taken(name, given)
    written = {key: given.pop(key) for key in ("overlap", "zero_rows")}
    if given.pop("no_header", False):
        given["header"] = False
    for key in ("features", "present"):
        given[key] = {modality: _beside(path, src) for modality, path in given.get(key, {}).items()}
    if given.get("items"):
        given["items"] = _beside(given["items"], src)
    if engine == "ray" and not dry_run:
        from m3dist.distributed import prepare

        report.report(dst, prepare.prepare(name, src, dst, Options.of(**given, **written)))
        return
    source = importers.importer(name).read(src, Options.of(preview=report.PREVIEW if dry_run else None, **given))
    if dry_run:
        report.preview(source)
    else:
        report.report(dst, common.write(source, dst, **written))


def _taken(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The options that an importer takes; refuses others that were given."""
    takes = importers.importer(name).TAKES | {"overlap", "zero_rows"}
    context = click.get_current_context()
    out = {}
    for key, value in given.items():
        if ("header" if key == "no_header" else key) in takes:
            out[key] = value
        elif context.get_parameter_source(key) == click.core.ParameterSource.COMMANDLINE:
            raise ValueError(f"--{key.replace('_', '-')} does not belong to {name}, as which this source is read")
    return out


def _beside(path: Path, src: Path) -> Path:
    """A path given by the user: as it is, or inside the source folder; FILE#ARRAY likewise."""
    file = path.with_name(path.name.partition("#")[0] or path.name)
    exists = path.exists() or file.exists()
    return src / path if not exists and ((src / path).exists() or (src / file).exists()) else path


def _synthetic(dst: Path, seed: int, **given: Any) -> None:
    """Planted data: features with invariant and spurious dimensions, and interactions from known environments."""
    from m3dist.cli.prepare_report import report
    from m3dist.data import synthetic as planted

    report(dst, planted.write(dst, config.validate(given, "synthetic", config.Synthetic), seed))


def _synthetic_command() -> click.Command:
    return click.Command(
        "synthetic",
        callback=_synthetic,
        params=[
            click.Argument(["dst"], type=click.Path(path_type=Path)),
            *_section_options(config.Synthetic),
            click.Option(["--seed"], type=click.IntRange(min=0), default=0, show_default=True),
        ],
        help=_synthetic.__doc__,
    )


def _section_options(section: type[config.Section]) -> list[click.Option]:
    """One option per field of a config section; the section validates the values."""
    options = []
    for name, field in section.model_fields.items():
        kind: Any = click.STRING
        if get_origin(field.annotation) is Literal:
            kind = click.Choice(list(field.annotation.__args__))  # type: ignore[union-attr]
        elif type(field.default) in (int, float, bool):
            kind = type(field.default)
        flag = f"--{name.replace('_', '-')}"
        options.append(click.Option([flag], type=kind, default=field.default, show_default=True))
    return options
