"""What all sections of a spec have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]


class Spec(BaseModel):
    """Base of all spec sections: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, ser_json_inf_nan="constants")

    @model_validator(mode="before")
    @classmethod
    def _fill_sections(cls, data: Any) -> Any:
        """Complete a section given in part, or as null, from that section's own default.

        Without this, `finetune: {trial: {epochs: 2}}` would silently swap the trial's learning rate for TrainSpec's.
        """
        if not isinstance(data, Mapping):
            return data
        filled = dict(data)
        for key, field in cls.model_fields.items():
            default = None if field.is_required() else field.get_default(call_default_factory=True)
            if isinstance(default, Spec) and (filled.get(key) is None or isinstance(filled[key], Mapping)):
                filled[key] = {**default.model_dump(exclude_unset=True), **(filled.get(key) or {})}
        return filled
