"""Belonging to a controller: registration, heartbeats, and starting over when either side was away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

import zmq.asyncio

from lmcache_kit.clock import Clock
from lmcache_kit.errors import ConfigError, LMCacheKitError, UnavailableError
from lmcache_kit.instance.config.model import ControllerSpec
from lmcache_kit.instance.worker.addresses import parse_address
from lmcache_kit.instance.worker.push_channel import PushChannel
from lmcache_kit.instance.worker.request_channel import RequestChannel
from lmcache_kit.messages import (
    HeartbeatMsg,
    HeartbeatRetMsg,
    RegisterMsg,
    RegisterRetMsg,
    WorkerReplyMsg,
    WorkerRequestMsg,
)

__all__ = ["Membership"]

log = logging.getLogger(__name__)

REQUEST_SECONDS = 5.0
FIRST_RETRY_SECONDS = 0.2
SLOWEST_RETRY_SECONDS = 5.0
PUSHED_REGISTRATION_TRIES = 3
"""Unanswered requests after which registration is pushed, as controllers of LMCache 0.3 expect it."""
HEARTBEAT_FAILURES = 3
"""Heartbeats without an answer after which the worker registers again."""


class Membership:
    """Keeps one worker registered.

    Args:
        context: where sockets are made.
        spec: how to reach the controller.
        identity: the fields of registration and heartbeat.
        push: where registration goes when the controller has no reply socket.
        on_joined: called after every registration; a controller that was joined anew knows nothing of the contents.
        on_sync_asked: called when the controller asks for a full sync.
        clock: calendar time of the last heartbeat.
    """

    def __init__(
        self,
        context: zmq.asyncio.Context,
        spec: ControllerSpec,
        identity: Callable[[], dict[str, Any]],
        push: PushChannel,
        *,
        on_joined: Callable[[], None],
        on_sync_asked: Callable[[str], None],
        clock: Clock,
    ) -> None:
        self._context = context
        self._spec = spec
        self._identity = identity
        self._push = push
        self._on_joined = on_joined
        self._on_sync_asked = on_sync_asked
        self._clock = clock
        self._replies = RequestChannel(context, spec.reply)
        self._heartbeats = self._replies
        self._again = asyncio.Event()
        self._cut = False
        self.registered = False
        self.pushed_only = False
        """Whether the controller took a pushed registration and has no reply socket."""
        self.registrations = 0
        self.heartbeats = 0
        self.last_heartbeat_unix: float | None = None

    def reconnected(self) -> None:
        """The connection to the controller was made anew: register again."""
        self._again.set()
        # What was asked before went to a controller that may be gone, and would only be waited for in vain.
        self._replies.interrupt()
        self._heartbeats.interrupt()

    async def request(self, message: WorkerRequestMsg) -> WorkerReplyMsg:
        """Ask the controller. Raises LMCacheKitError."""
        return await self._ask(self._replies, message)

    def set_cut(self, cut: bool) -> None:
        """Reach no controller while ``cut``: requests fail at once, those under way as well. Idempotent."""
        if cut and not self._cut:
            self._replies.interrupt()
            self._heartbeats.interrupt()
        self._cut = cut

    async def _ask(self, channel: RequestChannel, message: WorkerRequestMsg) -> WorkerReplyMsg:
        if self._cut:
            raise UnavailableError("the link to the controller is cut")
        return await channel.request(message, timeout=REQUEST_SECONDS)

    async def run(self) -> None:
        """Register, then send heartbeats; returns when the worker must register again."""
        self._again.clear()
        await self._register()
        self.registrations += 1
        self._on_joined()
        interval = self._spec.heartbeat_seconds
        if self.pushed_only:
            # Perhaps its reply socket opens later; until then there is nothing to beat.
            await self._wait(interval or SLOWEST_RETRY_SECONDS)
            return
        pause, failures = self._spec.first_heartbeat_seconds, 0
        while not await self._wait(pause if interval else None):
            pause = interval
            try:
                reply = await self._ask(self._heartbeats, HeartbeatMsg(**self._identity()))
            except LMCacheKitError as error:
                failures += 1
                log.info("heartbeat %d of %d failed: %s", failures, HEARTBEAT_FAILURES, error.detail)
                if failures >= HEARTBEAT_FAILURES:
                    log.warning("the controller does not answer heartbeats; registering again")
                    return
                continue
            failures = 0
            self.heartbeats += 1
            self.last_heartbeat_unix = self._clock.unix()
            if isinstance(reply, HeartbeatRetMsg) and reply.commands:
                self._on_sync_asked(reply.commands[0].reason or "no reason given")

    async def _wait(self, seconds: float | None) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._again.wait()
        return self._again.is_set()

    async def _register(self) -> None:
        pause, tries = FIRST_RETRY_SECONDS, 0
        while True:
            try:
                reply = await self.request(RegisterMsg(**self._identity()))
            except UnavailableError as error:
                tries += 1
                if tries == 1 and not self.pushed_only:
                    log.warning("not registered: %s; the instance serves, and tries again", error.detail)
                if (self.pushed_only or tries >= PUSHED_REGISTRATION_TRIES) and await self._register_by_pushing():
                    return
            except LMCacheKitError as error:
                log.warning("the controller refused the registration: %s", error.detail)
                pause = SLOWEST_RETRY_SECONDS
            else:
                self._joined(reply)
                return
            self.registered = self.pushed_only = False
            if await self._wait(pause):  # connected anew: what failed before says nothing any more
                self._again.clear()
                pause = FIRST_RETRY_SECONDS
            else:
                pause = min(pause * 2, SLOWEST_RETRY_SECONDS)

    async def _register_by_pushing(self) -> bool:
        if not await self._push.try_send([RegisterMsg(**self._identity())]):
            return False
        if not self.pushed_only:
            log.warning("the controller answers on its pull port only: registered by pushing, as LMCache 0.3 does")
        self.registered = self.pushed_only = True
        return True

    def _joined(self, reply: WorkerReplyMsg) -> None:
        channel = self._replies
        url = reply.extra_config.get("heartbeat_url") if isinstance(reply, RegisterRetMsg) else None
        if url:
            try:
                address = parse_address("heartbeat_url", url, any_host=self._spec.reply.host)
            except ConfigError as error:
                log.warning("heartbeats go to the reply socket: %s", error.detail)
            else:
                same = address == self._heartbeats.address
                channel = self._heartbeats if same else RequestChannel(self._context, address)
        if self._heartbeats not in (channel, self._replies):
            self._heartbeats.close()
        self._heartbeats = channel
        self.registered, self.pushed_only = True, False
        log.info("registered with the controller at %s", self._spec.reply.text)

    def close(self) -> None:
        """Close the sockets; idempotent."""
        self.registered = False
        self._heartbeats.close()
        self._replies.close()
