"""Which stored objects an operation concerns; planning never waits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lmcache_kit.errors import ConflictError, NotFoundError
from lmcache_kit.instance.core.tiers import Entry, TierState

__all__ = ["entries_in_method", "readable_entries"]


def readable_entries(tier: TierState, names: Sequence[str] | None) -> list[Entry]:
    """The readable objects among ``names``, or all of the tier's for None. Raises NotFoundError for none."""
    if names is None:
        entries = [entry for entry in tier.listed() if tier.ready(entry.name) is not None]
    else:
        entries = [entry for name in names if (entry := tier.ready(name)) is not None]
    if not entries:
        what = "holds nothing" if names is None else "holds none of these tokens"
        raise NotFoundError(f"{tier.location} {what}", hint="look the tokens up to see where they are")
    return entries


def entries_in_method(tier: TierState, entries: Sequence[Entry], method: str) -> list[Entry]:
    """Those of ``entries`` that are in ``method``. Raises ConflictError, naming what they are in, for none."""
    planned = [entry for entry in entries if entry.codec in (method, "")]
    if not planned:
        others = Counter(entry.codec for entry in entries)
        listed = ", ".join(f"{count} in {codec!r}" for codec, count in sorted(others.items()))
        raise ConflictError(
            f"no chunk of these tokens in {tier.location} is compressed with {method!r}",
            hint=f"of {len(entries)} chunks there are {listed}",
        )
    return planned
