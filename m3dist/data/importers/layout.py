"""Which file of a folder is what: tables of interactions, the items table, features."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from m3dist.data.dataset import SPLITS, DataError
from m3dist.data.importers import files
from m3dist.data.importers.featurefiles import ARRAY_SUFFIXES, looks_like_features
from m3dist.data.importers.opening import SUFFIXES, is_part_folder, open_table
from m3dist.data.importers.options import Options, Text
from m3dist.data.importers.table import ITEM, USER, Table

STEMS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test",)}
NAMED = ("interactions", "ratings", "inter")
ITEM_STEMS = ("items", "item")
OTHER_STEMS = ("users", "user", "provenance", "readme", "license", "licence")
UNSPLIT = "all"
_FEATURE_WORDS = ("feat", "feats", "feature", "features", "emb", "embs", "embedding", "embeddings", "vectors")


@dataclass
class Layout:
    """Which file is what. interactions: split (or "all") -> table.

    folder: where has_*.npy and other files may lie.
    titles: a table of items that gives titles and nothing else, and how it is written.
    lenient: modalities that are left out with a note where their file holds no features.
    """

    format: str
    interactions: dict[str, Path]
    items: Path | None = None
    features: dict[str, Path] = field(default_factory=dict)
    folder: Path | None = None
    titles: Path | None = None
    titles_text: Text = field(default_factory=Text)
    lenient: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def find_layout(src: Path, options: Options) -> Layout:
    """Recognise the files of a folder by their names, and where these do not tell by their columns."""
    given = options.files
    if src.is_file() or is_part_folder(src):
        return Layout("tables", {UNSPLIT: src}, given.items, given.features)
    if not src.is_dir():
        raise DataError(f"{src}: no such file or folder")
    items = given.items or _find(src, ITEM_STEMS, (".item",))
    taken = {files.real(path) for path in (items, *given.features.values(), *given.present.values()) if path}
    tables = [path for path in sorted(src.iterdir()) if is_table(path) and files.real(path) not in taken]
    interactions = _splits(src, tables)
    if 0 < len(interactions) < 3 and not (options.plan.split and set(interactions) == {"train"}):
        missing = next(split for split in SPLITS if split not in interactions)
        have = " and ".join(path.name for path in interactions.values())
        raise DataError(
            f"{src.name}: has {have} but no {missing} table ({' or '.join(STEMS[missing])} with one of "
            f"{', '.join(SUFFIXES)}); give all three, or one table and --split"
        )
    if len(interactions) < 3:
        interactions = {UNSPLIT: interactions.get("train") or _only_table(src, tables, options)}
    taken |= {files.real(path) for path in interactions.values()}
    return Layout("tables", interactions, items, given.features or find_features(src, taken, options), src)


def items_layout(src: Path, options: Options) -> Layout:
    """A folder of items alone: their table, where there is one, and features."""
    if not src.is_dir():
        raise DataError(f"{src}: no such folder; expected one with features and an items table")
    items = options.files.items or _find(src, ITEM_STEMS, (".item",))
    taken = {files.real(items)} if items else set()
    found = options.files.features or find_features(src, taken, options)
    return Layout("items", {}, items, found, src)


def is_table(path: Path) -> bool:
    """Whether a file's name is a table's, or a folder is one table."""
    if path.name.startswith((".", "_")):
        return False
    return is_part_folder(path) if path.is_dir() else files.suffix(path) in SUFFIXES


def modality(path: Path) -> str:
    """visual_small.npy, visual_feat.npy and feat_visual.npy are all modality `visual`."""
    parts = [part for part in files.stem(path).replace("-", "_").split("_") if part]
    return next((part for part in parts if part.lower() not in _FEATURE_WORDS), files.stem(path))


def find_features(src: Path, taken: set[Path], options: Options) -> dict[str, Path]:
    """Feature files of a folder: arrays, Parquet, and tables of item ids and vectors."""
    out: dict[str, Path] = {}
    for path in sorted(src.iterdir()):
        if files.real(path) in taken or path.name.startswith((".", "_", "has_")) or not _may_be_features(path, options):
            continue
        name = modality(path)
        if name in out:
            raise DataError(
                f"{src.name}: {out[name].name} and {path.name} are both modality {name!r}; "
                "choose with --feature NAME=PATH"
            )
        out[name] = path
    return out


def _may_be_features(path: Path, options: Options) -> bool:
    if path.is_file() and files.suffix(path) in ARRAY_SUFFIXES:
        return True
    stem = files.stem(path).lower()
    if not is_table(path) or stem.startswith(OTHER_STEMS) or stem in (*NAMED, *ITEM_STEMS):
        return False
    try:
        table = open_table(path, Text(encoding=options.text.encoding))
    except DataError:
        return False
    if table.holds(USER):
        return False
    return files.suffix(path) == ".parquet" or looks_like_features(table, options.columns)


def _find(src: Path, stems: tuple[str, ...], suffixes: tuple[str, ...] = ()) -> Path | None:
    """The one table in `src` with one of these stems, or one of these suffixes."""
    found = [
        path
        for path in sorted(src.iterdir())
        if is_table(path) and (files.stem(path).lower() in stems or files.suffix(path) in suffixes)
    ]
    if len(found) > 1:
        raise DataError(
            f"{src.name}: holds both {found[0].name} and {found[1].name}; keep one, or name it with --items"
        )
    return found[0] if found else None


def _splits(src: Path, tables: list[Path]) -> dict[str, Path]:
    """Tables named train, val and test, or x.train.inter and so on."""
    out: dict[str, Path] = {}
    for split, stems in STEMS.items():
        exact = [path for path in tables if files.stem(path).lower() in stems]
        found = exact or [path for path in tables if files.stem(path).lower().split(".")[-1] in stems]
        if len(found) > 1:
            raise DataError(f"{src.name}: holds both {found[0].name} and {found[1].name}; keep one")
        if found:
            out[split] = found[0]
    return out


def _only_table(src: Path, tables: list[Path], options: Options) -> Path:
    """The one table of interactions: by its name, or the only one with users and items."""
    named = [path for path in tables if files.stem(path).lower() in NAMED]
    if len(named) == 1:
        return named[0]
    tables = [path for path in tables if not files.stem(path).lower().startswith((*OTHER_STEMS, *ITEM_STEMS))]
    if len(tables) > 1:
        with_both = [path for path in tables if _has_interactions(path, options)]
        tables = with_both or tables
    if len(tables) == 1:
        return tables[0]
    if tables:
        raise DataError(
            f"{src.name}: expected train, val and test tables or one table of interactions, found "
            f"{', '.join(path.name for path in tables)}; give the file itself in place of the folder"
        )
    names = [path.name for path in sorted(src.iterdir())]
    raise DataError(
        f"{src.name}: expected train, val and test tables or one table of interactions ({', '.join(SUFFIXES)}), found "
        f"no table among {', '.join(names[:5]) or 'no files'}{' and others' if len(names) > 5 else ''}"
    )


def _has_interactions(path: Path, options: Options) -> bool:
    try:
        table: Table = open_table(path, options.text)
    except DataError:
        return False
    mine = options.columns
    user = mine.user_column in table.columns if mine.user_column else table.holds(USER)
    return user and (mine.item_column in table.columns if mine.item_column else table.holds(ITEM))
