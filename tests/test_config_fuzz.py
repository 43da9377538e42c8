"""Any value of any key of a config gives a config, or one clear refusal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3dist import config as configs
from m3dist.config import Config, ConfigError

KEYS = [key for key in configs.known_keys() if key != "out"]
NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.sampled_from([0, -1, 1, 2**15, 2**31, 2**63, 1e38, 3e38, 1e308, 1e-320, float("nan"), float("inf")]),
)
PLAIN = st.one_of(
    NUMBERS, st.none(), st.booleans(), st.text(max_size=12), st.sampled_from(["auto", "${seed}", "~", "a: b"])
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(st.sampled_from(["stage", "zero_optimization", "CPU", "name", "pip"]), st.text(max_size=5)),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=6,
)


def refused(work: Callable[[], Any]) -> tuple[Any, str]:
    """What `work` returns, or what the ConfigError says that it raises."""
    try:
        return work(), ""
    except ConfigError as error:
        return None, str(error)


def taken(raw: dict[str, Any]) -> None:
    """Raises whatever is no ConfigError; that names the source."""
    config, error = refused(lambda: configs.validate(configs.read(raw, (), "mine"), "mine"))
    if error:
        assert error.startswith("mine")
    else:
        assert isinstance(config, Config)
        assert configs.validate(configs.read(config.model_dump(mode="json"), (), "again"), "again") == config


@settings(max_examples=500, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=3))
def test_values_of_the_schema(given_values: dict[str, Any]) -> None:
    raw: dict[str, Any] = {}
    for key, value in given_values.items():
        section, *rest = raw, *key.split(".")
        while len(rest) > 1:
            inner = section.setdefault(rest.pop(0), {})
            if not isinstance(inner, dict):
                return
            section = inner
        section[rest[0]] = value
    taken(raw)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(KEYS), st.text(max_size=20))
def test_words_of_a_command_line(key: str, text: str) -> None:
    _, error = refused(lambda: configs.load(None, [f"{key}={text}"]))
    assert not error or error.startswith("command line")


@pytest.mark.parametrize("value", [1, "x", [1], None])
def test_sections_of_deepspeed_have_their_type(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"deepspeed\.zero_optimization: expected a mapping"):
        configs.validate({"strategy": "deepspeed", "deepspeed": {"zero_optimization": value}})


def test_environments_fit_what_keeps_them() -> None:
    assert configs.load(None, ["invariance.environments=32767"]).invariance.environments == 32767
    with pytest.raises(ConfigError, match=r"invariance\.environments: .* less than or equal to 32767, got 32768"):
        configs.load(None, ["invariance.environments=32768"])
