"""One run of the comparison: every contender on every shape, and what was absent with the reason."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from gpu_contenders import Case, Contender, UnavailableError
from gpu_timing import batch_seconds, device_facts, single_seconds
from harness import Report

__all__ = ["Absent", "Run"]

Absent = list[dict[str, str]]

_MOST_TENSORS = 24
# Tensors in turn hold this many times the second-level cache together.
_CACHE_MULTIPLE = 4
_LONGEST_REASON = 300


class _Turns:
    """One direction of a contender, over several inputs in turn."""

    def __init__(
        self, contender: Contender, call: Callable[[Any], Any], inputs: Sequence[Any], idle: Callable[[], None]
    ):
        self._contender, self._call, self._inputs, self._idle = contender, call, inputs, idle
        self._last: Any = None

    def in_turn(self, index: int) -> None:
        self._last = self._call(self._inputs[index % len(self._inputs)])

    def same(self, index: int) -> None:
        self._last = self._call(self._inputs[0])

    def idle(self) -> None:
        """What was called last is handed over, and the device has done it: each takes its work in order."""
        self._contender.wait(self._last)
        self._idle()


class Run:
    """See the module.

    Args:
        report: takes the results.
        device: ``cuda`` or ``cpu``.
        seconds: for each figure.
        only: beginnings of the names of the contenders wanted; all when empty.
    """

    def __init__(self, report: Report, device: str, seconds: float, only: Sequence[str] = ()) -> None:
        self._report, self._device, self._seconds, self._only = report, device, seconds, tuple(only)
        self._cache_bytes = device_facts()["l2_bytes"] if device == "cuda" else 0
        self._reference: torch.Tensor | None = None
        self.absent: Absent = []
        self.failures = 0

    def attempt(self, case: Case, name: str, what: str, work: Callable[[], Any]) -> Any:
        """``work()``, or None with the reason noted. An unexpected failure is noted as such, and printed."""
        try:
            return work()
        except UnavailableError as error:
            reason = str(error)
        except Exception as error:
            traceback.print_exc()
            self.failures += 1
            reason = f"failed: {type(error).__name__}: {error}"
        reason = reason.partition("\n")[0][:_LONGEST_REASON]
        self.absent.append({"shape": str(case), "name": name, "what": what, "reason": reason})
        return None

    def run(self, case: Case, kv: torch.Tensor, contenders: Iterable[tuple[str, Callable[[], Contender]]]) -> None:
        """Measure ``contenders``, pairs of a name and what makes one, on ``kv``."""
        self._reference = None
        for name, make in contenders:
            if self._only and not name.startswith(self._only):
                continue
            self.attempt(case, name, "everything", lambda make=make: self._measure(case, make(), kv))
            if self._device == "cuda":
                torch.cuda.empty_cache()
        self._reference = None

    def _measure(self, case: Case, contender: Contender, kv: torch.Tensor) -> None:
        handle = contender.prepare(kv)
        encoded = contender.encode(handle)
        contender.wait(encoded)
        sizes = contender.sizes(encoded)
        decoded = contender.decode(encoded)
        contender.wait(decoded)
        self._idle()
        values = self.attempt(case, contender.name, "values", lambda: contender.restored(decoded))
        quality = self._quality(contender.name, values, kv) if values is not None else {"nmse": None}
        metrics, payload_bytes = self._through_bytes(case, contender, handle, values)
        device_bytes = sum(sizes.values())
        count = self._count(min(case.raw_bytes, device_bytes))
        handles = [handle, *(contender.prepare(kv.roll(shift, dims=3)) for shift in range(1, count))]
        coded = [contender.encode(each) for each in handles]
        for direction, turns in (
            ("encode", _Turns(contender, contender.encode, handles, self._idle)),
            ("decode", _Turns(contender, contender.decode, coded, self._idle)),
        ):
            metrics[f"{direction}_seconds"] = batch_seconds(turns.in_turn, turns.idle, self._seconds)
            metrics[f"{direction}_same_seconds"] = batch_seconds(turns.same, turns.idle, self._seconds)
            metrics[f"{direction}_single_seconds"] = single_seconds(turns.in_turn, turns.idle, self._seconds)
        stored = device_bytes if payload_bytes is None else payload_bytes
        self._report.add(
            contender.name,
            metrics,
            shape=str(case),
            covers=contender.covers,
            raw_bytes=case.raw_bytes,
            device_bytes=device_bytes,
            parts_bytes=sizes,
            payload_bytes=payload_bytes,
            ratio=case.raw_bytes / stored,
            bits_per_element=8 * stored / case.elements,
            tensors_in_turn=count,
            **quality,
        )

    def _quality(self, name: str, values: torch.Tensor, kv: torch.Tensor) -> dict[str, Any]:
        if values.shape != kv.shape or values.dtype != kv.dtype:
            raise RuntimeError(f"restored {values.dtype} {tuple(values.shape)} of {kv.dtype} {tuple(kv.shape)}")
        quality: dict[str, Any] = {"nmse": nmse(values, kv)}
        if name == "lmcache":
            self._reference = values
        elif name in ("ours, lmcache", "lmcache, chunks as layers") and self._reference is not None:
            # The same quantizer: every bit should be the same.
            quality["values_unlike_lmcache"] = unlike(values, self._reference)
        return quality

    def _through_bytes(
        self, case: Case, contender: Contender, handle: Any, values: torch.Tensor | None
    ) -> tuple[dict[str, list[float]], int | None]:
        """Timing of both ways through host memory, and the bytes; nothing where there is no such way."""

        def measured() -> tuple[dict[str, list[float]], int]:
            payloads = contender.to_bytes(handle)
            decoded = contender.from_bytes(payloads)
            contender.wait(decoded)
            self._idle()
            back = contender.restored(decoded)
            if values is None or unlike(back, values):
                raise RuntimeError("values that went through bytes differ from those that stayed on the device")
            return {
                "to_bytes_seconds": single_seconds(lambda _: contender.to_bytes(handle), self._idle, self._seconds),
                "from_bytes_seconds": single_seconds(
                    lambda _: contender.wait(contender.from_bytes(payloads)), self._idle, self._seconds
                ),
            }, sum(memoryview(payload).nbytes for payload in payloads)

        found = self.attempt(case, contender.name, "bytes", measured)
        return ({}, None) if found is None else found

    def _idle(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()

    def _count(self, smallest: int) -> int:
        return max(1, min(_MOST_TENSORS, math.ceil(_CACHE_MULTIPLE * self._cache_bytes / max(1, smallest))))


def nmse(values: torch.Tensor, exact: torch.Tensor) -> float:
    """Mean squared error over the mean square of ``exact``, summed in float64 layer by layer."""
    error = square = 0.0
    for one, other in zip(values.flatten(0, 1), exact.flatten(0, 1), strict=True):
        error += float((one.double() - other.double()).square().sum())
        square += float(other.double().square().sum())
    return error / square


def unlike(values: torch.Tensor, others: torch.Tensor) -> int:
    """Number of bfloat16 values that differ in any bit."""
    return int((values.contiguous().view(torch.int16) != others.contiguous().view(torch.int16)).sum())
