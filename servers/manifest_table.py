"""What every table of a manifest is: kebab-case keys, exact types, no key that is not declared.

Responsible for: the base class and the kinds of numbers and names that many tables share. Refuses: unknown keys, with the nearest one.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError


def _kebab(name: str) -> str:
    return name.replace("_", "-")


class Table(BaseModel):
    """A TOML table: kebab-case keys, exact types, no key that is not declared."""

    model_config = ConfigDict(alias_generator=_kebab, validate_by_name=False, strict=True, allow_inf_nan=False)
    path_keys: ClassVar[tuple[str, ...]] = ()
    more_numbers: ClassVar[bool] = False

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        known = [field.alias or name for name, field in cls.model_fields.items()]
        for key in data:
            number = isinstance(data[key], int | float) and not isinstance(data[key], bool)
            if key not in known and not (cls.more_numbers and number):
                close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
                hint = f"did you mean {close[0]}? " if close else ""
                raise PydanticCustomError(
                    "unknown_key",
                    "unknown key",
                    {"key": str(key), "hint": f"{hint}known keys: {', '.join(sorted(known))}"},
                )
        return data


Count = Annotated[int, Field(ge=1, le=1 << 31)]
Milliseconds = Annotated[int, Field(ge=1, le=86_400_000)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NotNegative = Annotated[float, Field(ge=0.0)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,47}$")]
