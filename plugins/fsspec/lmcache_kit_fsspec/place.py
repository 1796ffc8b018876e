"""Where the objects are, and what is known of that file system's manners."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from fsspec import get_filesystem_class
from fsspec.registry import known_implementations

from lmcache_kit.errors import ConfigError, nearest

__all__ = ["SUFFIX", "Place", "Replace"]

Replace = Literal["put", "rename"]

SUFFIX = ".blob"
"""Ends every object's file name: ``.`` and ``..`` become ordinary names."""

_NAME = re.compile(r"[0-9a-z._-]{1,128}")

# A file system is listed only when its makers promise it: an upload appears whole, or a rename replaces whole.
_REPLACE: dict[str, Replace] = {
    **dict.fromkeys(("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory"), "put"),
    **dict.fromkeys(("file", "local", "sftp", "ssh"), "rename"),
}
# s3fs asks for the size and reads large objects in ranges, several at a time: two exchanges where one will do, and
# a replacement in between would give half of each object.
_READ_ARGUMENTS: dict[str, dict[str, Any]] = {"s3": {"max_concurrency": 1}, "s3a": {"max_concurrency": 1}}


@dataclass(frozen=True, slots=True)
class Place:
    """A folder of a file system.

    Args:
        protocol: fsspec's name of the file system.
        url: as given, without what must not be shown.
        root: path of the folder inside the file system, without a slash at its end.
        replace: how an object is replaced at once.
        read_arguments: given to every read.
    """

    protocol: str
    url: str
    root: str
    replace: Replace
    read_arguments: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, url: str, *, below: str = "", replace: Literal["auto", "put", "rename"] = "auto") -> Place:
        """The place that a url names, in the folder ``below`` of it.

        Raises ConfigError for a url that cannot be used, an unknown protocol, one whose package is not installed, and
        one that is not known to replace objects at once.
        """
        protocol, separator, rest = url.partition("://")
        if not separator or not protocol:
            raise ConfigError("the url names no protocol", hint="write it like s3://bucket/prefix or file:///folder")
        if "::" in url:
            # A cache in front of a store answers what it has, not what the store holds.
            raise ConfigError("a chain of protocols is not supported", hint="give the url of the store itself")
        if found := sorted(set(url) & set("*?[]#")):
            raise ConfigError(f"the url may not hold {' '.join(found)}", hint="fsspec takes them for patterns")
        if protocol in ("file", "local") and not rest.startswith(("/", "~")):
            raise ConfigError("the folder of the url is not absolute", hint="write it like file:///folder")
        filesystem = _filesystem_class(protocol)
        root = str(filesystem._strip_protocol(url)).rstrip("/")
        if not root and protocol != "memory":
            raise ConfigError("the url names no folder or bucket", hint=f"write it like {protocol}://NAME/prefix")
        known = _REPLACE.get(protocol) if replace == "auto" else replace
        if known is None:
            raise ConfigError(
                f"{protocol} is not known to replace an object at once",
                hint="set replace to put or rename if one of them does there; a reader must never see half an object",
            )
        if below:
            root, url = f"{root}/{below}", f"{url.rstrip('/')}/{below}"
        return cls(protocol, url, root, known, _READ_ARGUMENTS.get(protocol, {}))

    def path(self, name: str) -> str:
        """Path of an object."""
        return f"{self.root}/{name}{SUFFIX}"

    def name(self, path: str) -> str | None:
        """Name of the object at a path, or None when it is none of ours."""
        folder, _, file_name = path.rstrip("/").rpartition("/")
        name = file_name.removesuffix(SUFFIX)
        # Some list absolute paths, some without the slash in front.
        if folder.strip("/") != self.root.strip("/") or not file_name.endswith(SUFFIX) or not _NAME.fullmatch(name):
            return None
        return name


def _filesystem_class(protocol: str) -> Any:
    try:
        return get_filesystem_class(protocol)
    except ValueError:
        near = nearest(protocol, known_implementations)
        raise ConfigError(
            f"fsspec knows no protocol {protocol!r}", hint=f"did you mean {near}?" if near else "e.g. s3, gs, file"
        ) from None
    except ImportError as error:
        raise ConfigError(f"the protocol {protocol!r} needs another package", hint=str(error)) from None
