"""Checksums that find damage: CRC-32, which sees every flipped bit and every burst of up to 32, at the speed of a disk.

They are no protection against somebody who means harm and can write them, too.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

KEY = "crc32"  # of a mapping, under which its own checksum stands
_BLOCK = 1 << 20  # bytes read at once


def of(data: Any, before: int = 0) -> int:
    """Of bytes, or of what holds bytes. before: of what stands before them."""
    return zlib.crc32(data, before)


def of_file(path: Path) -> str:
    """Of all bytes of a file, as 8 hexadecimal digits."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            value = of(block, value)
    return f"{value:08x}"


def stamped(values: dict[str, Any]) -> dict[str, Any]:
    """A mapping of JSON values with its checksum."""
    return {**values, KEY: _of_json(json.loads(json.dumps(values)))}


def checked(values: Any) -> Any:
    """What `stamped` was given; values without a checksum as they are. Raises ValueError where it does not fit."""
    if not isinstance(values, dict) or KEY not in values:
        return values
    rest = {key: value for key, value in values.items() if key != KEY}
    if values[KEY] != _of_json(rest):
        raise ValueError("its checksum does not fit its content")
    return rest


def _of_json(values: Any) -> str:
    return f"{of(json.dumps(values, sort_keys=True).encode()):08x}"
