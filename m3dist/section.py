"""The base of every config section: frozen pydantic models that refuse unknown keys."""

from __future__ import annotations

import pydantic


class Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
