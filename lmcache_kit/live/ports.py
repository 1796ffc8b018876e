"""TCP ports: free ones for settings that leave the choice to us, and an early word about those that are taken."""

from __future__ import annotations

import contextlib
import socket

from lmcache_kit.errors import ConflictError, UnavailableError

__all__ = ["PortPicker"]

_ATTEMPTS = 200


class PortPicker:
    """Hands out each port once.

    A port is free when it could be bound a moment ago; somebody else may still take it first, which then shows as
    the failed start of the process that wanted it.
    """

    def __init__(self) -> None:
        self._taken: set[int] = set()

    def pick(self, wanted: int, *, host: str, setting: str, span: int = 1) -> int:
        """``wanted``, or a free port when it is 0; with ``span`` n, the first of n consecutive ones.

        Raises ConflictError naming ``setting`` when ``wanted`` is in use.
        """
        if wanted:
            for port in range(wanted, wanted + span):
                problem = "is used twice in this scenario" if port in self._taken else _problem(host, port)
                if problem is not None:
                    more = f" (it takes {wanted} to {wanted + span - 1})" if span > 1 else ""
                    raise ConflictError(
                        f"port {port} on {host} {problem}{more}",
                        hint=f"change {setting}, or choose a free port with --set {setting}=0",
                    )
            self._taken.update(range(wanted, wanted + span))
            return wanted
        for _ in range(_ATTEMPTS):
            first = _free(host)
            ports = range(first, first + span)
            if (
                ports[-1] <= 65535
                and not self._taken & set(ports)
                and all(_problem(host, port) is None for port in ports)
            ):
                self._taken.update(ports)
                return first
        raise UnavailableError(f"no {span} free ports in a row on {host}", hint=f"name one with {setting}")


def _free(host: str) -> int:
    with _socket(host) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _problem(host: str, port: int) -> str | None:
    """Why the port cannot be bound, or None."""
    if port > 65535:
        return "does not exist"
    with _socket(host) as probe:
        # As the servers do, so that a port in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError:
            return "may not be opened by this user"
        except OSError:
            return "is in use"
    return None


def _socket(host: str) -> contextlib.closing[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return contextlib.closing(socket.socket(family, socket.SOCK_STREAM))
