"""What goes wrong with a store, in the contract's words, and a rest for a store that is away."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Iterator

from lmcache_kit.clock import Clock
from lmcache_kit.errors import CapacityError, LMCacheKitError, UnavailableError
from lmcache_kit_fsspec.credentials import Credentials

__all__ = ["Failures"]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Failures:
    """Wraps the exchanges with one store.

    Clients of object stores try several times before they give up, which takes seconds, and an instance may ask for
    many objects: after a failure, exchanges fail at once for ``pause`` seconds.

    Args:
        where: the store, as messages call it.
        timeout: seconds that an exchange may take, or None; for messages.
    """

    def __init__(
        self, where: str, credentials: Credentials, *, clock: Clock, pause: float = 0.0, timeout: float | None = None
    ) -> None:
        self._where = where
        self._credentials = credentials
        self._clock = clock
        self._pause = pause
        self._timeout = timeout
        self._rest_until = clock.now()
        self._last = ""

    @contextlib.contextmanager
    def exchange(self, doing: str, *, always: bool = False) -> Iterator[None]:
        """An exchange with the store, e.g. ``"read x from"``.

        ``always`` asks the store even while it rests. Raises UnavailableError, or CapacityError when it is full,
        instead of whatever the file system raises.
        """
        if not always and (left := self._rest_until - self._clock.now()) > 0:
            raise UnavailableError(
                f"cannot {doing} {self._where}: {self._last}", hint=f"the store is tried again in {left:.1f} s"
            )
        try:
            yield
        except LMCacheKitError:
            raise
        except Exception as error:  # every file system has errors of its own
            reason = self._credentials.hide(self._reason(error))
            if isinstance(error, OSError) and error.errno in _FULL:
                raise CapacityError(
                    f"cannot {doing} {self._where}: {reason}", hint="free space there or lower the tier's capacity"
                ) from None
            self._last = reason
            self._rest_until = self._clock.now() + self._pause
            raise UnavailableError(
                f"cannot {doing} {self._where}: {reason}",
                hint="check that the store runs, that the bucket or folder exists, and the credentials",
            ) from None
        self._rest_until = self._clock.now()

    def _reason(self, error: Exception) -> str:
        if isinstance(error, asyncio.TimeoutError | TimeoutError) and not str(error):
            return f"no answer within {self._timeout:g} s" if self._timeout else "no answer in time"
        text = " ".join(str(getattr(error, "strerror", None) or error).split())
        return text or type(error).__name__
