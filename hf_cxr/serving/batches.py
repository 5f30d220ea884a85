"""One model for many who ask at once: whatever waits is answered together. What is asked lives in `app.py`.

Gradio's own batches are not used: in one of them every call sees the session of the first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

MOST = 8
"""Studies that are answered together: more of them make the first wait, and gain little on a CPU."""


class Batcher:
    """Calls `pipe`, a pipeline or what answers like one, in a thread of its own, with up to `most` studies at once."""

    def __init__(self, pipe: Callable[..., Any], most: int = MOST) -> None:
        self.pipe, self.most = pipe, most
        self._waiting = SimpleQueue[tuple[dict[str, Any], Mapping[str, Any], Future]]()
        threading.Thread(target=self._work, daemon=True).start()

    def ask(self, study: Mapping[str, Any], **options: Any) -> Future[dict[str, Any]]:
        """The answer for a study, to come. One that cannot be read gives an answer with its `error`."""
        future: Future[dict[str, Any]] = Future()
        self._waiting.put((options, study, future))
        return future

    def _work(self) -> None:
        left: list[tuple[dict[str, Any], Mapping[str, Any], Future]] = []
        while True:
            left = left or [self._waiting.get()]
            with suppress(Empty):
                while len(left) < self.most:
                    left.append(self._waiting.get_nowait())
            options = left[0][0]
            now = [one for one in left if one[0] == options]
            left = [one for one in left if one[0] != options]
            now = [one for one in now if one[2].set_running_or_notify_cancel()]  # not of who has gone
            try:
                studies = [study for _, study, _ in now]
                answers = self.pipe(studies, batch_size=len(now), on_unreadable="skip", **options) if now else []
                for (_, _, future), answer in zip(now, answers, strict=True):
                    future.set_result(answer[0])
            except Exception as error:
                for _, _, future in now:
                    if not future.done():
                        future.set_exception(error)
