"""Full syncs to a controller that lets no other sync begin before the last one ended, as LMCache 0.5's does."""

from __future__ import annotations

from typing import Any

import pytest

from lmcache_kit.errors import LMCacheKitError, UnavailableError
from lmcache_kit.instance.worker.full_sync import FullSync
from lmcache_kit.messages import (
    FullSyncBatchMsg,
    FullSyncEndMsg,
    FullSyncStartMsg,
    FullSyncStartRetMsg,
    FullSyncStatusRetMsg,
)


class Controller:
    """Keeps one sync at a time; ``lost`` requests are handled, and their answers lost."""

    def __init__(self) -> None:
        self.running: str | None = None
        self.keys: set[int] = set()
        self.lost = 0
        self.refuses = False

    async def request(self, message: Any) -> Any:
        answer = self._answer(message)
        if self.lost:
            self.lost -= 1
            raise UnavailableError("the answer was lost")
        return answer

    def _answer(self, message: Any) -> Any:
        if isinstance(message, FullSyncStartMsg):
            accepted = not self.refuses and self.running in (None, message.sync_id)
            if accepted:
                self.running, self.keys = message.sync_id, set()
            return FullSyncStartRetMsg(sync_id=message.sync_id, accepted=accepted, error_msg=None if accepted else "no")
        complete = self.running is None
        return FullSyncStatusRetMsg(
            sync_id=message.sync_id, is_complete=complete, global_progress=1.0, can_exit_freeze=complete
        )

    async def push(self, messages: Any) -> None:
        for message in messages:
            if message.sync_id != self.running:
                continue
            if isinstance(message, FullSyncBatchMsg):
                self.keys.update(message.keys)
            else:
                assert isinstance(message, FullSyncEndMsg)
                self.running = None


@pytest.mark.parametrize("broken", ["the answer is lost", "the batches cannot be sent"])
async def test_a_sync_that_was_broken_off_begins_again(broken: str) -> None:
    controller = Controller()
    sync = FullSync(instance_id="a", worker_id=0, request=controller.request, push=controller.push)
    if broken == "the answer is lost":
        controller.lost = 1
        with pytest.raises(UnavailableError):
            await sync.run("cpu", [1, 2])
    else:

        async def gone(messages: Any) -> None:
            raise UnavailableError("the controller went away")

        sync.push = gone
        with pytest.raises(UnavailableError):
            await sync.run("cpu", [1, 2])
        sync.push = controller.push
    assert controller.running is not None
    await sync.run("cpu", [2, 3])
    assert (controller.running, controller.keys) == (None, {2, 3})
    await sync.run("cpu", [4])
    assert controller.keys == {4}


async def test_a_refused_sync_is_an_error_with_the_reason() -> None:
    controller = Controller()
    controller.refuses = True
    sync = FullSync(instance_id="a", worker_id=0, request=controller.request, push=controller.push)
    for _ in range(2):
        with pytest.raises(LMCacheKitError, match="did not accept the full sync of cpu: no"):
            await sync.run("cpu", [1])
    controller.refuses = False
    await sync.run("cpu", [1])
    assert controller.keys == {1}
