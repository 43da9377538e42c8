"""Plain values of YAML files, with `key=value` overrides.

A value may repeat another one of the same config as `${key}`. Nothing else is looked up: no variable of the
environment, no file. The config of a run folder, which may be a stranger's, holds plain values only.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from m3dist import checksums, credentials

STAMP = "# crc32: "  # begins the last line of a run folder's config.yaml
LARGEST = 4 << 20  # bytes of a config; a larger file is none
_MOST = 100_000  # values of a config, those counted again that an alias repeats
_LOOKUP = re.compile(r"\$\{[^{}]*(?::|\$\{)")  # ${oc.env:HOME}, ${a.${b}}; not ${key}


class ConfigError(ValueError):
    """A config that cannot be used; the message lists every problem, one a line."""


def read(source: str | Path | dict[str, Any] | None, overrides: Sequence[str] = (), name: str = "") -> dict[str, Any]:
    """Plain values of a YAML file, or those given, with `key=value` overrides, whose values are YAML too.

    name: what messages call the source; default: the file. Raises ConfigError, also where there is no mapping, where a
    value would be looked up elsewhere, and where one holds credentials.
    """
    name = name or (str(source) if isinstance(source, str | Path) else "command line")
    for item in overrides:
        if "=" not in item:
            raise ConfigError(f"{item!r}: expected key=value")
    try:
        if isinstance(source, str | Path):
            base = OmegaConf.load(io.StringIO(_text(Path(source), name)))
        else:
            base = OmegaConf.create(source or {})
        if not isinstance(base, DictConfig):
            raise ConfigError(f"{name}: expected a mapping of keys to values")
        given = OmegaConf.from_dotlist(list(overrides))
        _check(name, base)
        _check("command line", given)
        raw = OmegaConf.to_container(OmegaConf.merge(base, given), resolve=True)
    except ConfigError:
        raise
    except FileNotFoundError:
        raise ConfigError(f"{name}: no such file; `m3dist init` copies examples") from None
    except RecursionError:
        raise ConfigError(f"{name}: values refer to each other in a circle, or are nested too deeply") from None
    except yaml.MarkedYAMLError as error:  # its whole text quotes the file, which may hold secrets
        where = f"{name}, line {error.problem_mark.line + 1}" if error.problem_mark else name
        raise ConfigError(f"{where}: not valid YAML: {error.problem}") from None
    except (OmegaConfBaseException, OSError, ValueError) as error:
        raise ConfigError(f"{name}: {' '.join(str(error).split())}") from None
    except Exception as error:  # a YAML parser's own error types
        raise ConfigError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from None
    assert isinstance(raw, dict)
    return {str(key): value for key, value in raw.items()}


def read_own(path: str | Path, name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Plain values of a config.yaml that m3dist wrote into a run folder, with `key=value` overrides of the user's own.

    name: of the file, for messages. Raises ConfigError where it is damaged, or asks for anything to be looked up.
    """
    try:
        text, stamp, stated = _text(Path(path), name).partition(STAMP)
        if stamp and stated.strip() != f"{checksums.of(text.encode()):08x}":
            raise ConfigError(
                f"{name}: damaged or changed (its checksum does not fit its content); train again with the values that "
                "you want, or delete its last line to have it as it is"
            )
        if "${" in text:
            raise ConfigError(f"{name}: holds ${{...}}, which no run folder does; it was changed, and is not read")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: {error}") from None
    return read(path, overrides, name)


def _text(path: Path, name: str) -> str:
    """The text of a config. Raises ConfigError where it would stand for more than any config holds."""
    with path.open("rb") as file:  # a device states no size
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ConfigError(f"{name}: is larger than {LARGEST >> 20} MiB, and no config")
    text = io.TextIOWrapper(io.BytesIO(data), "utf-8").read()
    with contextlib.suppress(yaml.YAMLError):  # told by whoever reads the values
        tree = yaml.compose(text, yaml.SafeLoader)
        if tree is not None and _count(tree, {}) > _MOST:
            raise ConfigError(f"{name}: stands for more than {_MOST:,} values, and no config does")
    return text


def _count(node: yaml.Node, counted: dict[int, int]) -> int:
    """Nodes below a node and itself, those behind aliases counted every time. Raises RecursionError in a circle."""
    if id(node) not in counted:
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            inner = [each for pair in node.value for each in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        counted[id(node)] = 1 + sum(_count(each, counted) for each in inner)
    return counted[id(node)]


def _check(source: str, values: Container) -> None:
    """Raises ConfigError where a value would be looked up elsewhere or holds credentials, without repeating it."""
    plain = OmegaConf.to_container(values, resolve=False)
    try:
        credentials.refuse_in(source, plain)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if key := next((key for key, text in _texts(plain) if _LOOKUP.search(text)), None):
        raise ConfigError(
            f"{source}: {key}: ${{...}} names another key of the config and nothing else, no variable of the "
            "environment; write the value itself"
        )


def _texts(values: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of every text among plain values."""
    if isinstance(values, dict):
        for name, inner in values.items():
            yield from _texts(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(values, list):
        for inner in values:
            yield from _texts(inner, key)
    elif isinstance(values, str):
        yield key, values
