"""Broken transports: most are a sound one with something wrong between it and its user."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import deque
from collections.abc import Sequence
from typing import Any, ClassVar

from mutants.mutant import Mutant

from lmcache_kit.builtin.transports import inproc
from lmcache_kit.builtin.transports.inproc import InprocTransport
from lmcache_kit.builtin.transports.zeromq import ZmqTransport
from lmcache_kit.contracts.records import Options, TransportPlugin
from lmcache_kit.contracts.storage import Buffer
from lmcache_kit.contracts.transport import Channel, FrameHandler, Listener, Transport
from lmcache_kit.errors import ConflictError, TransportError, UnavailableError

__all__ = ["MUTANTS", "SOUND"]

_LONG = 60.0


class WrappedChannel(Channel):
    def __init__(self, inner: Channel) -> None:
        self.inner = inner

    async def request(self, frames: Sequence[Buffer], *, timeout: float) -> list[Buffer]:
        return await self.inner.request(frames, timeout=timeout)

    async def close(self) -> None:
        await self.inner.close()


class WrappedListener(Listener):
    def __init__(self, inner: Listener) -> None:
        self.inner = inner

    @property
    def address(self) -> str:
        return self.inner.address

    async def close(self) -> None:
        await self.inner.close()


class Wrapped(Transport):
    """Sound as it is."""

    inner_type: ClassVar[Any] = InprocTransport
    channel_type: ClassVar[Any] = WrappedChannel
    listener_type: ClassVar[Any] = WrappedListener

    def __init__(self) -> None:
        self.inner = self.inner_type()

    def handler(self, handler: FrameHandler) -> FrameHandler:
        return handler

    async def listen(self, address: str, handler: FrameHandler) -> Listener:
        listener: Listener = self.listener_type(await self.inner.listen(address, self.handler(handler)))
        return listener

    async def connect(self, address: str) -> Channel:
        channel: Channel = self.channel_type(await self.inner.connect(address))
        return channel


class FirstComeChannel(WrappedChannel):
    """Takes the first answer that comes for the answer to the oldest request."""

    def __init__(self, inner: Channel) -> None:
        super().__init__(inner)
        self._waiting: deque[asyncio.Future[list[Buffer]]] = deque()

    async def request(self, frames: Sequence[Buffer], *, timeout: float) -> list[Buffer]:
        mine: asyncio.Future[list[Buffer]] = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        try:
            answer = await self.inner.request(frames, timeout=timeout)
        except BaseException:
            with contextlib.suppress(ValueError):
                self._waiting.remove(mine)
            raise
        while self._waiting:
            oldest = self._waiting.popleft()
            if not oldest.done():
                oldest.set_result(answer)
                break
        # Where answers and requests came apart for good, it takes its own.
        done, _ = await asyncio.wait([mine], timeout=0.3)
        return mine.result() if done else answer


class AnswersOutOfOrder(Wrapped):
    channel_type = FirstComeChannel


class LateAnswerChannel(WrappedChannel):
    """An answer that nobody waits for any more is given to the next request."""

    def __init__(self, inner: Channel) -> None:
        super().__init__(inner)
        self._late: deque[list[Buffer]] = deque()

    async def request(self, frames: Sequence[Buffer], *, timeout: float) -> list[Buffer]:
        if self._late:
            return self._late.popleft()
        call = asyncio.ensure_future(self.inner.request(frames, timeout=_LONG))
        done, _ = await asyncio.wait([call], timeout=timeout)
        if not done:
            call.add_done_callback(self._keep)
            raise UnavailableError(f"no answer within {timeout:g} s")
        return call.result()

    def _keep(self, call: asyncio.Task[list[Buffer]]) -> None:
        if not call.cancelled() and call.exception() is None:
            self._late.append(call.result())


class LateAnswers(Wrapped):
    channel_type = LateAnswerChannel


class SwallowsErrors(Wrapped):
    """What a handler raises becomes an answer without frames."""

    def handler(self, handler: FrameHandler) -> FrameHandler:
        async def quiet(frames: Sequence[Buffer]) -> Sequence[Buffer]:
            try:
                return await handler(frames)
            except Exception:
                return []

        return quiet


class LosesErrorTexts(Wrapped):
    def handler(self, handler: FrameHandler) -> FrameHandler:
        async def terse(frames: Sequence[Buffer]) -> Sequence[Buffer]:
            try:
                return await handler(frames)
            except Exception:
                raise TransportError("the peer failed") from None

        return terse


class RemoteErrorChannel(WrappedChannel):
    async def request(self, frames: Sequence[Buffer], *, timeout: float) -> list[Buffer]:
        try:
            return await self.inner.request(frames, timeout=timeout)
        except TransportError as error:
            raise RuntimeError(error.message) from None


class ErrorsAreRuntimeErrors(Wrapped):
    channel_type = RemoteErrorChannel


class HandlerStopsAfterError(Wrapped):
    """A handler that raised once is not called again."""

    def handler(self, handler: FrameHandler) -> FrameHandler:
        failed = False

        async def once(frames: Sequence[Buffer]) -> Sequence[Buffer]:
            nonlocal failed
            if failed:
                await asyncio.sleep(_LONG)
            try:
                return await handler(frames)
            except Exception:
                failed = True
                raise

        return once


class LeakyListener(WrappedListener):
    async def close(self) -> None:
        pass


class LeaksItsListener(Wrapped):
    """Closing leaves the address open."""

    listener_type = LeakyListener


class SharesWriting(Wrapped):
    """The handler gets the caller's own buffers, and may write into them."""

    def __init__(self) -> None:
        self._handlers: dict[str, FrameHandler] = _direct
        super().__init__()

    async def listen(self, address: str, handler: FrameHandler) -> Listener:
        listener = await super().listen(address, handler)
        self._handlers[listener.address] = handler
        return listener

    async def connect(self, address: str) -> Channel:
        return DirectChannel(await self.inner.connect(address), address)


_direct: dict[str, FrameHandler] = {}


class DirectChannel(WrappedChannel):
    def __init__(self, inner: Channel, address: str) -> None:
        super().__init__(inner)
        self._address = address

    async def request(self, frames: Sequence[Buffer], *, timeout: float) -> list[Buffer]:
        return list(await _direct[self._address](frames))


class LastListenerWins(Wrapped):
    """A second listener takes the address over from the first."""

    async def listen(self, address: str, handler: FrameHandler) -> Listener:
        try:
            return await super().listen(address, handler)
        except ConflictError:
            inproc._listeners.pop(address)
            return await super().listen(address, handler)


class ConflictNamesNothing(Wrapped):
    async def listen(self, address: str, handler: FrameHandler) -> Listener:
        try:
            return await super().listen(address, handler)
        except ConflictError:
            raise ConflictError("in use") from None


class ConflictIsAnOSError(Wrapped):
    async def listen(self, address: str, handler: FrameHandler) -> Listener:
        try:
            return await super().listen(address, handler)
        except ConflictError:
            raise OSError(98, "Address already in use") from None


class TimeoutErrorChannel(WrappedChannel):
    async def request(self, frames: Sequence[Buffer], *, timeout: float) -> list[Buffer]:
        async with asyncio.timeout(timeout):
            return await self.inner.request(frames, timeout=_LONG)


class TimeoutIsATimeoutError(Wrapped):
    channel_type = TimeoutErrorChannel


class PatientChannel(WrappedChannel):
    """Waits ten times as long as it was told to."""

    async def request(self, frames: Sequence[Buffer], *, timeout: float) -> list[Buffer]:
        return await self.inner.request(frames, timeout=10 * timeout)


class Patient(Wrapped):
    channel_type = PatientChannel


class NonEmptyChannel(WrappedChannel):
    async def request(self, frames: Sequence[Buffer], *, timeout: float) -> list[Buffer]:
        return await self.inner.request([frame for frame in frames if len(frame)], timeout=timeout)


class DropsEmptyFrames(Wrapped):
    channel_type = NonEmptyChannel


class OneFrameChannel(WrappedChannel):
    async def request(self, frames: Sequence[Buffer], *, timeout: float) -> list[Buffer]:
        return [b"".join(await self.inner.request(frames, timeout=timeout))]


class JoinsFrames(Wrapped):
    """A stream knows no frames."""

    channel_type = OneFrameChannel


class ShortChannel(WrappedChannel):
    async def request(self, frames: Sequence[Buffer], *, timeout: float) -> list[Buffer]:
        return await self.inner.request([bytes(frame)[: 2**20 - 1] for frame in frames], timeout=timeout)


class CutsLargeFrames(Wrapped):
    channel_type = ShortChannel


class OneAtATime(Wrapped):
    """A slow request holds up all others."""

    def handler(self, handler: FrameHandler) -> FrameHandler:
        lock = asyncio.Lock()

        async def alone(frames: Sequence[Buffer]) -> Sequence[Buffer]:
            async with lock:
                return await handler(frames)

        return alone


class AskedListener(WrappedListener):
    def __init__(self, inner: Listener, asked: str) -> None:
        super().__init__(inner)
        self._asked = asked

    @property
    def address(self) -> str:
        return self._asked


class NamesPortZero(Wrapped):
    """Tells the address that it was asked for, not the one that was chosen."""

    inner_type = ZmqTransport

    async def listen(self, address: str, handler: FrameHandler) -> Listener:
        return AskedListener(await self.inner.listen(address, handler), address)


class RepeatingChannel(WrappedChannel):
    """Asks twice, to be sure."""

    async def request(self, frames: Sequence[Buffer], *, timeout: float) -> list[Buffer]:
        await self.inner.request(frames, timeout=timeout)
        return await self.inner.request(frames, timeout=timeout)


class AsksTwice(Wrapped):
    channel_type = RepeatingChannel


class OnceLostChannel(WrappedChannel):
    """A channel that failed once fails ever after."""

    lost = False

    async def request(self, frames: Sequence[Buffer], *, timeout: float) -> list[Buffer]:
        if self.lost:
            raise UnavailableError("the connection is lost")
        try:
            return await self.inner.request(frames, timeout=timeout)
        except TransportError:
            raise
        except UnavailableError:
            self.lost = True
            raise


class NeverReconnects(Wrapped):
    channel_type = OnceLostChannel


class WaitsForItsPeer(Wrapped):
    """Connects only where somebody listens."""

    async def connect(self, address: str) -> Channel:
        channel = await super().connect(address)
        if address not in inproc._listeners:
            raise UnavailableError(f"nobody listens at {address}")
        return channel


class TaskChannel(WrappedChannel):
    """Looks after the connection for ever, also after it was closed."""

    def __init__(self, inner: Channel) -> None:
        super().__init__(inner)
        self._task = asyncio.get_running_loop().create_task(asyncio.sleep(_LONG))


class LeaksTasks(Wrapped):
    channel_type = TaskChannel


class DescriptorChannel(WrappedChannel):
    def __init__(self, inner: Channel) -> None:
        super().__init__(inner)
        self.kept = open("/dev/null", "rb", buffering=0)  # noqa: SIM115
        _kept.append(self.kept)


_kept: list[Any] = []


class LeaksDescriptors(Wrapped):
    channel_type = DescriptorChannel


class CloseOnceListener(WrappedListener):
    closed = False

    async def close(self) -> None:
        if self.closed:
            raise RuntimeError("already closed")
        self.closed = True
        await super().close()


class ListenerClosesOnce(Wrapped):
    listener_type = CloseOnceListener


class CloseOnceChannel(WrappedChannel):
    closed = False

    async def close(self) -> None:
        if self.closed:
            raise RuntimeError("already closed")
        self.closed = True
        await super().close()


class ChannelClosesOnce(Wrapped):
    channel_type = CloseOnceChannel


class DeafChannel(WrappedChannel):
    """Closing it does not end what is in flight."""

    async def close(self) -> None:
        pass


class ClosingWaitsForAnswers(Wrapped):
    channel_type = DeafChannel


class CancellingChannel(WrappedChannel):
    """Requests in flight are cancelled, as if their caller had been."""

    def __init__(self, inner: Channel) -> None:
        super().__init__(inner)
        self._calls: set[asyncio.Future[list[Buffer]]] = set()

    async def request(self, frames: Sequence[Buffer], *, timeout: float) -> list[Buffer]:
        call = asyncio.ensure_future(self.inner.request(frames, timeout=timeout))
        self._calls.add(call)
        try:
            return await call
        finally:
            self._calls.discard(call)

    async def close(self) -> None:
        for call in self._calls:
            call.cancel()
        await super().close()


class ClosingCancels(Wrapped):
    channel_type = CancellingChannel


class FramesInReverse(Wrapped):
    """Across processes only: what one sees of one's own process is right."""

    inner_type = ZmqTransport

    def handler(self, handler: FrameHandler) -> FrameHandler:
        import multiprocessing

        if multiprocessing.parent_process() is None:
            return handler

        async def turned(frames: Sequence[Buffer]) -> Sequence[Buffer]:
            return list(reversed(await handler(frames)))

        return turned


class SaysItCrossesProcesses(Wrapped):
    """Declares nothing, so it should reach other hosts, but knows its own process only."""


def _make(made: Any, options: Options) -> Transport:
    transport: Transport = made()
    return transport


def _mutant(
    name: str, made: type[Wrapped], wrong: str, *caught_by: str, errors: str = "", reach: str | None = None
) -> Mutant:
    zmq = made.inner_type is ZmqTransport
    record = TransportPlugin(
        name=name,
        summary=wrong,
        scheme="tcp" if zmq else "inproc",
        factory=functools.partial(_make, made),
        capabilities=frozenset((("" if zmq else "same_process") if reach is None else reach).split()),
    )
    return Mutant(record=record, wrong=wrong, caught_by=caught_by, errors=tuple(errors.split()))


class WrappedZmq(Wrapped):
    inner_type = ZmqTransport


SOUND: tuple[Mutant, ...] = (
    _mutant("sound_inproc", Wrapped, "nothing"),
    _mutant("sound_zmq", WrappedZmq, "nothing"),
)

MUTANTS: tuple[Mutant, ...] = (
    _mutant(
        "answers_out_of_order",
        AnswersOutOfOrder,
        "the first answer goes to the oldest request",
        "test_each_of_many_requests_in_flight_gets_its_own_answer",
        errors="UnavailableError",
    ),
    _mutant(
        "late_answers",
        LateAnswers,
        "an answer that came too late goes to the next request",
        "test_a_late_answer_is_never_given_to_another_request",
    ),
    _mutant(
        "swallows_errors",
        SwallowsErrors,
        "what a handler raises becomes an empty answer",
        "test_what_the_handler_raises_is_a_transport_error_with_its_text",
    ),
    _mutant(
        "loses_error_texts",
        LosesErrorTexts,
        "a handler's error arrives without its text",
        "test_what_the_handler_raises_is_a_transport_error_with_its_text",
    ),
    _mutant(
        "errors_are_runtime_errors",
        ErrorsAreRuntimeErrors,
        "a handler's error is a RuntimeError",
        "test_what_the_handler_raises_is_a_transport_error_with_its_text",
    ),
    _mutant(
        "handler_stops_after_error",
        HandlerStopsAfterError,
        "after an error nothing is answered",
        "test_what_the_handler_raises_is_a_transport_error_with_its_text",
        errors="UnavailableError",
    ),
    _mutant(
        "leaks_its_listener",
        LeaksItsListener,
        "a closed listener goes on listening",
        "test_an_address_is_free_as_soon_as_its_listener_is_closed",
        errors="ConflictError",
    ),
    _mutant(
        "shares_writing",
        SharesWriting,
        "the handler can write into the caller's buffers",
        "test_neither_side_can_write_into_the_buffers_of_the_other",
    ),
    _mutant(
        "last_listener_wins",
        LastListenerWins,
        "two listeners on one address",
        "test_an_address_in_use_is_a_conflict_that_names_it",
    ),
    _mutant(
        "conflict_names_nothing",
        ConflictNamesNothing,
        "an address in use is not named",
        "test_an_address_in_use_is_a_conflict_that_names_it",
    ),
    _mutant(
        "conflict_is_an_oserror",
        ConflictIsAnOSError,
        "an address in use is an OSError",
        "test_an_address_in_use_is_a_conflict_that_names_it",
        errors="OSError",
    ),
    _mutant(
        "timeout_is_a_timeout_error",
        TimeoutIsATimeoutError,
        "a deadline is a TimeoutError",
        "test_no_answer_in_time_is_an_unavailable_error",
    ),
    _mutant(
        "patient",
        Patient,
        "waits ten times as long as it was told to",
        "test_a_request_ends_at_its_timeout_and_not_later",
    ),
    _mutant(
        "drops_empty_frames",
        DropsEmptyFrames,
        "frames of 0 bytes do not arrive",
        "test_any_frames_arrive_whole_and_in_order_both_ways",
    ),
    _mutant(
        "joins_frames",
        JoinsFrames,
        "an answer of several frames arrives as one",
        "test_any_frames_arrive_whole_and_in_order_both_ways",
    ),
    _mutant(
        "cuts_large_frames", CutsLargeFrames, "the last byte of a MiB does not arrive", "test_large_frames_arrive_whole"
    ),
    _mutant(
        "one_at_a_time",
        OneAtATime,
        "a slow request holds up all others",
        "test_a_slow_request_does_not_hold_up_a_fast_one",
        errors="UnavailableError",
    ),
    _mutant(
        "names_port_zero",
        NamesPortZero,
        "the address of a listener on port 0 has port 0",
        "test_a_listener_that_comes_back_is_found_again",
        errors="ConfigError",
    ),
    _mutant(
        "asks_twice", AsksTwice, "every request reaches the handler twice", "test_each_request_reaches_the_handler_once"
    ),
    _mutant(
        "never_reconnects",
        NeverReconnects,
        "a channel that failed once fails ever after",
        "test_a_listener_that_comes_back_is_found_again",
    ),
    _mutant(
        "waits_for_its_peer",
        WaitsForItsPeer,
        "connect fails where nobody listens yet",
        "test_a_listener_that_comes_later_is_found",
        errors="UnavailableError",
    ),
    _mutant(
        "leaks_tasks",
        LeaksTasks,
        "a closed channel leaves a task behind",
        "test_closing_leaves_no_tasks_and_no_unseen_errors",
    ),
    _mutant(
        "leaks_descriptors",
        LeaksDescriptors,
        "a closed channel leaves an open file behind",
        "test_closing_leaves_no_descriptors",
    ),
    _mutant(
        "listener_closes_once",
        ListenerClosesOnce,
        "closing a closed listener fails",
        "test_closing_twice_does_nothing_more",
        errors="RuntimeError",
    ),
    _mutant(
        "channel_closes_once",
        ChannelClosesOnce,
        "closing a closed channel fails",
        "test_closing_twice_does_nothing_more",
        errors="RuntimeError",
    ),
    _mutant(
        "closing_waits_for_answers",
        ClosingWaitsForAnswers,
        "a closed channel goes on",
        "test_closing_a_channel_ends_its_requests_in_flight_at_once",
    ),
    _mutant(
        "closing_cancels",
        ClosingCancels,
        "requests in flight are cancelled when their channel is closed",
        "test_closing_a_channel_ends_its_requests_in_flight_at_once",
        errors="CancelledError",
    ),
    _mutant(
        "frames_in_reverse",
        FramesInReverse,
        "another process answers in reverse",
        "test_a_listener_in_another_process_answers",
    ),
    _mutant(
        "only_this_process",
        SaysItCrossesProcesses,
        "reaches no other process, and does not say so",
        "test_a_listener_in_another_process_answers",
        errors="UnavailableError",
        reach="",
    ),
)
