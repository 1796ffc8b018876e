"""Types of the fields that trace rows have."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

__all__ = ["Count", "Id", "Length", "Time"]

_LARGEST = 2**31 - 1

Time = Annotated[float, Meta(ge=0)]
Length = Annotated[int, Meta(ge=1, le=_LARGEST)]
Count = Annotated[int, Meta(ge=0, le=_LARGEST)]
Id = Annotated[int, Meta(ge=0, le=2**63 - 1)]
