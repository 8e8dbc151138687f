"""File work off the event loop: one thread that does it in order."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Writer:
    """Runs calls in one thread, in the order in which they were given.

    So whatever was given before a checkpoint is on disk before the checkpoint is committed. The event loop stays free
    meanwhile. An error of background work ends the run: `watch` raises it, and so does every later call.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._error: BaseException | None = None
        self._failed = asyncio.Event()
        self._raised = False

    def submit(self, work: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Do `work` in the background."""
        self._raise_error()
        loop = asyncio.get_running_loop()
        future = self._thread.submit(work, *args, **kwargs)
        future.add_done_callback(lambda done: loop.call_soon_threadsafe(self._keep_error, done))

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do `work` after everything given before, and return its result."""
        self._raise_error()
        result = await asyncio.wrap_future(self._thread.submit(work, *args, **kwargs))
        self._raise_error()
        return result

    async def watch(self) -> None:
        """Never returns. Raises the first error of background work."""
        await self._failed.wait()
        self._raise_error()

    async def close(self) -> None:
        """Wait until everything is done, and end the thread. Raises an error that was not raised before."""
        await asyncio.wrap_future(self._thread.submit(lambda: None))
        self._thread.shutdown()
        if not self._raised:
            self._raise_error()

    def _keep_error(self, done: "Future[object]") -> None:
        error = done.exception()
        if error is not None and self._error is None:
            self._error = error
            self._failed.set()

    def _raise_error(self) -> None:
        if self._error is not None:
            self._raised = True
            raise self._error
