"""Which value of a config is the likeliest cause of a training that diverged."""

from __future__ import annotations

from collections.abc import Iterator

from m3dist.config import Backbone, Fit
from m3dist.section import Section

_HARMLESS = {"level", "tau", "effect", "init", "gate_noise", "moved"}  # cannot make weights or losses grow
_SLOWER = 100.0  # times as far above its default must a weight or a spread be as a rate to be named before it


def suspect(stage: str, *sections: Section) -> str:
    """The key of the value that is furthest above its default, of what the stage and its model are set by.

    stage: stands for the section of a bare Fit. sections: that of the stage first; between equals the first is named.
    """
    above = [found for section in sections for found in _above(stage, section)]
    return max(above, key=lambda found: found[1])[0]


def _above(stage: str, section: Section) -> Iterator[tuple[str, float]]:
    """The keys of a section's rates, weights and spreads, and how far above its default each is."""
    name = stage if type(section) is Fit else type(section).__name__.lower().removeprefix("resolved")
    usual: Section = Backbone() if isinstance(section, Backbone) else type(section)()
    if isinstance(section, Backbone) and section.loss != "auto":
        section, usual = section.resolved, Backbone(loss=section.loss).resolved
    for key in type(section).model_fields:
        value, default = getattr(section, key), getattr(usual, key)
        if isinstance(value, float) and isinstance(default, float) and key not in _HARMLESS:
            rate = key == "lr" or key.endswith(("_lr", "_rate"))
            yield f"{name}.{key}", value / (default or 1.0) / (1.0 if rate else _SLOWER)
