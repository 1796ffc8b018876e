"""docs/reference/configuration.md, made from the tables that the code itself uses.

``python -m lmcache_kit.instance.config.reference`` prints it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec.structs import fields

from lmcache_kit.instance.config.extension import SECTION, Extension, LinkOptions, TierOptions, TransportOptions
from lmcache_kit.instance.config.keys import ALIASES, ENGINE_KEYS, OLD_KEYS, ConfigKey

__all__ = ["reference"]

_INTRODUCTION = f"""\
# Configuration of an instance

<!-- Made by: python -m lmcache_kit.instance.config.reference. Do not edit by hand; a test compares. -->

An instance reads LMCache's engine configuration as it is: a flat YAML mapping, from `--config FILE` or from the file
that `LMCACHE_CONFIG_FILE` names. A variable `LMCACHE_` + the key in capitals overrides the file, e.g.
`LMCACHE_CHUNK_SIZE=128`. Lists are written as a YAML list, as one value, or as text with commas (`8001,8002`).

Every key of LMCache 0.5.6 is either honoured or answered with one warning that names it. A key that is set to LMCache's
own default never warns. A key that LMCache does not know is refused, and the nearest known key is named. What LMCache
has no key for stands under `{SECTION}`.

Sizes in GB are multiples of 1024³ bytes, as in LMCache. Relative paths start at the folder of the configuration file,
or at the current folder when there is no file. `localhost` means 127.0.0.1.

## Where the defaults differ from LMCache's

| key | LMCache | here | why |
| --- | --- | --- | --- |
| `save_unfull_chunk` | false | true | a prompt of 12 tokens is found again, as LMCache's documents show it |
| `lmcache_instance_id` | random | `lmcache_default_instance` | found again at restart; required with a controller |
| `controller_reply_url` | required with a controller | the pull port plus 1 | the documents name one port only |
| `lmcache_worker_ports` | required with a controller | a free port | the port is announced at registration |
| `lmcache_worker_heartbeat_time` | no heartbeats | 5 s | without them a restart of the controller may go unnoticed |
| `pin_timeout_sec` | 300 | pins hold until released | a pin that ends silently is no pin |

"""

_SECTION_INTRODUCTION = f"""\
## Our own settings: `{SECTION}`

```yaml
extra_config:
  lmcache_kit:
    tiers:
      - {{kind: memory, capacity: 64MiB, eviction: arc}}
      - {{kind: disk, capacity: 1GiB, method: zstd, options: {{path: kv}}}}
    placement: write_back
    transport: {{kind: zmq, bandwidth: 1Gbps, latency: 2ms}}
```

This mapping is strict: an unknown key is refused with its path and the nearest known key. With `tiers`, the keys
`max_local_cpu_size`, `local_disk`, `max_local_disk_size`, `remote_url` and `remote_serde` must not be set.
"""


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value!r}`" if isinstance(value, str) and value != value.strip() else f"`{value}`"


def _rows(keys: list[ConfigKey]) -> Iterator[str]:
    spelled: dict[str, list[str]] = {}
    for alias, name in ALIASES.items():
        spelled.setdefault(name, []).append(alias)
    for key in keys:
        also = "".join(f"<br>also `{alias}`" for alias in spelled.get(key.name, []))
        default = _shown(key.default) if key.ours is None else f"{_shown(key.ours)} (LMCache: {_shown(key.default)})"
        yield f"| `{key.name}`{also} | {key.kind} | {default} | {_cell(key.note)} |"


def _table(keys: list[ConfigKey], last: str) -> str:
    return "\n".join([f"| key | kind | default | {last} |", "| --- | --- | --- | --- |", *_rows(keys)]) + "\n"


def _meanings(struct: type[msgspec.Struct]) -> dict[str, str]:
    """Field texts of the ``Args:`` section of a struct's docstring."""
    text = inspect.getdoc(struct) or ""
    _, _, arguments = text.partition("Args:\n")
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", arguments, re.MULTILINE)
    return {name: " ".join(meaning.split()) for name, meaning in found}


def _struct(title: str, struct: type[msgspec.Struct]) -> str:
    meanings = _meanings(struct)
    lines = [f"### {title}", "", "| key | default | meaning |", "| --- | --- | --- |"]
    for field in fields(struct):
        if field.default is not msgspec.NODEFAULT:
            default = _shown(field.default)
        else:
            default = "required" if field.default_factory is msgspec.NODEFAULT else "empty"
        meaning = _cell(meanings[field.name]).replace("``", "`")
        lines.append(f"| `{field.name}` | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def reference() -> str:
    """The whole page."""
    every = list(ENGINE_KEYS.values())
    honoured = [key for key in [*every, *OLD_KEYS.values()] if key.honoured]
    others = [key for key in [*every, *OLD_KEYS.values()] if not key.honoured]
    return "\n".join(
        [
            _INTRODUCTION + "## Keys that are honoured\n",
            _table(honoured, "how"),
            "## Keys that have no effect\n",
            "Each is answered with one warning, which says what the last column says.\n",
            _table(others, "why, and what instead"),
            _SECTION_INTRODUCTION,
            _struct("Top level", Extension),
            _struct("`tiers`: a list, fastest first", TierOptions),
            _struct("`transport`", TransportOptions),
            _struct("`links`: by the peer's URL", LinkOptions),
        ]
    )


if __name__ == "__main__":
    print(reference(), end="")
