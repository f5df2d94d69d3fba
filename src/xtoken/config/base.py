"""What every section of a run file shares: strict types, no unknown keys, no later changes."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
AtLeastOne = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """A mapping of the run file. Types are taken as written: `"10"` is text, not a number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    def ignored(self) -> dict[str, str]:
        """Return the settings that would have no effect beside the others: name -> why.

        One that is given all the same is refused; those that have their default are left out of
        the resolved file.
        """
        return {}
