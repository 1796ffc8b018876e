"""What ``kv_connector_extra_config`` may say; everything about the cache itself is in LMCache's configuration file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from lmcache_kit.errors import ConfigError, nearest
from lmcache_kit.units import parse_size

__all__ = ["ConnectorOptions", "read_options"]


class ConnectorOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of the connector.

    Args:
        staging: memory that KV passes through on its way between vLLM's blocks and the cache, e.g. ``2GiB``; chosen by
            the engine's batch size when left out.
        layerwise: copy layer by layer while the model runs. Left out: where no CUDA graph stands against it.
        lookup_timeout: seconds after which a request is computed without what the cache may still find.
        patience: seconds that the scheduler waits for the cache in a step before it asks again in the next one; a tenth
            of them while other requests are worked on.
    """

    staging: str | int | None = None
    layerwise: bool | None = None
    lookup_timeout: Annotated[float, Meta(gt=0)] = 5.0
    patience: Annotated[float, Meta(ge=0, le=1)] = 0.005

    def staging_bytes(self, usual: int) -> int:
        """The size of the staging memory. Raises ConfigError for text that is no size."""
        if self.staging is None:
            return usual
        return self.staging if isinstance(self.staging, int) else parse_size(self.staging)


def read_options(values: Mapping[str, Any]) -> ConnectorOptions:
    """The options of a plain mapping. Raises ConfigError naming the key, with the nearest known one."""
    known = ConnectorOptions.__struct_fields__
    for key in values:
        if key not in known:
            near = nearest(key, known)
            raise ConfigError(
                f"kv_connector_extra_config: unknown key {key!r}",
                hint=f"did you mean {near!r}?" if near else f"known keys are {', '.join(known)}",
            )
    try:
        options = msgspec.convert(dict(values), ConnectorOptions)
        if options.staging_bytes(1) < 1:
            raise ConfigError("staging must be at least one byte")
    except (msgspec.ValidationError, ConfigError) as error:
        raise ConfigError(f"kv_connector_extra_config: {error}") from None
    return options
