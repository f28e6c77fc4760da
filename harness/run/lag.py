"""How late the measuring process itself was: the event loop's worst lag while an attempt ran."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import time
from collections.abc import AsyncIterator, Iterator

#: 50 wake-ups a second: often enough to see a lag that matters, at well under 1 % of a core.
_STEP_S = 0.02

#: How long a thread that computes (botocore reads an answer) may go on when the loop wants to. With Python's
#: own 5 ms the error of t4 is two to three times as large (p99, 20 in flight: benchmarks/README.md).
_SWITCH_S = 0.0005


@contextlib.contextmanager
def short_pauses() -> Iterator[None]:
    """Keep Python's garbage collector and threads from stopping the loop for long while this context is open.

    A full collection walks all objects, and botocore's models of EC2 are enough of them for 90 ms. What there
    is by now is set aside (``gc.freeze``), so that later collections walk only what the attempts make.
    """
    gc.collect()
    gc.freeze()
    switch_s = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(switch_s)
        gc.unfreeze()


class LagMeter:
    """``worst_ms``: the most by which a timer of this loop was late."""

    def __init__(self) -> None:
        self.worst_ms = 0.0

    @contextlib.asynccontextmanager
    async def measuring(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            due = time.monotonic() + _STEP_S
            await asyncio.sleep(_STEP_S)
            self.worst_ms = max(self.worst_ms, round((time.monotonic() - due) * 1000, 3))
