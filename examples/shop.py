"""A made shop whose items have titles and pictures that one can look at, and whose customers' tastes are known.

An item is one of six kinds of things in one of eight colours and one of five patterns; its picture shows all three and
its title says them. A customer likes two colours, two kinds and one pattern. `make` writes what a shop would have:
interactions.csv, items.csv, pictures/, and features of pictures and titles, row i for item i of items.csv.

Shapes: U customers, I items.
"""

from __future__ import annotations

import base64
import csv
import struct
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

COLOURS = {
    "red": (200, 40, 40), "orange": (235, 140, 30), "yellow": (235, 205, 50), "green": (60, 150, 70),
    "blue": (50, 90, 190), "purple": (130, 70, 160), "grey": (130, 130, 130), "brown": (120, 80, 50),
}  # fmt: skip
PATTERNS = ("plain", "striped", "dotted", "checked", "framed")
KINDS = ("mug", "lamp", "cushion", "clock", "vase", "rug")
SIDE = 48  # pixels of a picture
QUICK: dict[str, Any] = {  # a run of seconds on this shop
    "backbone": {"loss": "softmax", "dim": 32},
    "align": {"epochs": 3},
    "invariance": {"rounds": 1, "environment_steps": 16, "mask_steps": 32},
    "merge": {"epochs": 12, "masks": "learned"},
}
Item = tuple[str, str, str]  # colour, pattern, kind


def make(folder: str | Path, users: int = 300, seed: int = 0) -> Path:
    """Write the shop's files into `folder`, 20 interactions for each of so many customers."""
    folder, rng = Path(folder), np.random.default_rng(seed)
    items = [(colour, pattern, kind) for colour in COLOURS for pattern in PATTERNS for kind in KINDS]
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    pixels = [picture(item) for item in items]
    for at, image in enumerate(pixels):
        (folder / "pictures" / f"item-{at}.png").write_bytes(png(image))
    with (folder / "items.csv").open("w", newline="") as out:
        csv.writer(out).writerows(
            [("item_id", "title"), *((f"item-{at}", " ".join(item).capitalize()) for at, item in enumerate(items))]
        )
    small = np.stack([image.reshape(8, SIDE // 8, 8, SIDE // 8, 3).mean((1, 3)).ravel() for image in pixels]) / 255
    np.save(folder / "picture.npy", small.astype(np.float32))
    words = [*COLOURS, *PATTERNS, *KINDS]
    np.save(folder / "title.npy", np.array([[word in item for word in words] for item in items], dtype=np.float32))
    liked_UI = tastes(items, users, rng)
    with (folder / "interactions.csv").open("w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(("user_id", "item_id", "timestamp"))
        for user in range(users):
            value = liked_UI[user] + rng.gumbel(size=len(items))
            for day, item in enumerate(np.argsort(-value)[:20]):
                rows.writerow((f"customer-{user}", f"item-{item}", 1_700_000_000 + 86_400 * day))
    return folder


def tastes(items: Sequence[Item], users: int, rng: np.random.Generator) -> np.ndarray:
    """How much each customer likes each item, [U, I]."""
    liked = np.zeros((users, len(items)))
    for user in range(users):
        colours = rng.choice(list(COLOURS), 2, replace=False)
        kinds, pattern = rng.choice(KINDS, 2, replace=False), rng.choice(PATTERNS)
        liked[user] = [2.5 * (c in colours) + 2.0 * (k in kinds) + 1.5 * (p == pattern) for c, p, k in items]
    return liked


def picture(item: Item) -> np.ndarray:
    """Pixels of an item, uint8 [SIDE, SIDE, 3]."""
    colour, pattern, kind = item
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    middle = SIDE // 2
    inside = {
        "mug": ((abs(x - 20) < 13) & (abs(y - 26) < 15)) | (abs(np.hypot(x - 34, y - 26) - 8) < 2.5),
        "lamp": ((y > 6) & (y < 26) & (abs(x - middle) < y / 2 + 3)) | ((y >= 26) & (y < 42) & (abs(x - middle) < 3)),
        "cushion": (abs(x - middle) < 19) & (abs(y - middle) < 15),
        "clock": np.hypot(x - middle, y - middle) < 19,
        "vase": (y > 6) & (y < 43) & (abs(x - middle) < 9 + 6 * np.sin(y / 7)),
        "rug": (abs(x - middle) < 22) & (abs(y - 32) < 9),
    }[kind]
    light = {
        "plain": np.zeros_like(x, dtype=bool),
        "striped": (x // 4) % 2 == 0,
        "dotted": np.hypot(x % 8 - 4, y % 8 - 4) < 2,
        "checked": (x // 6 + y // 6) % 2 == 0,
        "framed": np.hypot(x - middle, y - middle) > 13,
    }[pattern]
    image = np.full((SIDE, SIDE, 3), 250, dtype=np.uint8)
    full = np.array(COLOURS[colour])
    image[inside] = full
    image[inside & light] = (full + 2 * 255) // 3
    return image


def png(image: np.ndarray) -> bytes:
    """An RGB image as a PNG file."""
    height, width, _ = image.shape
    rows = b"".join(b"\0" + row.tobytes() for row in image)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows, 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


class Shelf:
    """Items of a shop side by side: pictures in a notebook, titles elsewhere."""

    def __init__(self, shop: Path, items: Iterable[str], caption: str = ""):
        self.shop, self.items, self.caption = shop, [*items], caption
        with (shop / "items.csv").open() as file:
            self.titles = {row["item_id"]: row["title"] for row in csv.DictReader(file)}

    def _repr_html_(self) -> str:
        cells = []
        for item in self.items:
            data = base64.b64encode((self.shop / "pictures" / f"{item}.png").read_bytes()).decode()
            cells.append(f'<td><img src="data:image/png;base64,{data}"><br>{self.titles[item]}</td>')
        return f"<p>{self.caption}</p><table><tr>{''.join(cells)}</tr></table>"

    def __repr__(self) -> str:
        return f"{self.caption}: {', '.join(self.titles[item] for item in self.items)}"


def m3dist(*words: object) -> None:
    """Run a command of m3dist, in this process. Raises what the command does."""
    from m3dist.cli.main import cli

    cli.main([str(word) for word in words], standalone_mode=False)
