"""What a pod says through Dagster Pipes, read from the exchange.

Dagster's own reader of files waits eleven seconds for the last word of a pod that was terminated,
which never comes: a cancelled run would stand there as if it did not end.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg
from dagster_pipes import PipesParams

from trade_pipeline.compute.runpod.errors import RunPodError
from trade_pipeline.compute.runpod.exchange import Exchange
from trade_pipeline.compute.runpod.pod_messages import FOLDER


class PodMessages(dg.PipesMessageReader):
    """Messages of one pod, in their order.

    Args:
        exchange: of the job.
        pod_name: of the pod.
        interval_s: between looks.
    """

    def __init__(self, exchange: Exchange, pod_name: str, interval_s: float) -> None:
        self._exchange, self._pod_name, self._interval_s = exchange, pod_name, interval_s

    @contextmanager
    def read_messages(self, handler: dg.PipesMessageHandler) -> Iterator[PipesParams]:
        """Hand on what comes while the block runs, and at its end what is there by then.

        Yields:
            where the pod writes, below the exchange's root.
        """
        over = threading.Event()
        thread = threading.Thread(target=self._read, args=(handler, over), daemon=True)
        thread.start()
        try:
            yield {FOLDER: f"jobs/{self._exchange.job}/{self._pod_name}/messages"}
        finally:
            over.set()
            thread.join()

    def no_messages_debug_text(self) -> str:
        """For the warning about a task that never opened Pipes."""
        return f"Looked for messages of pod {self._pod_name} on the exchange."

    def _read(self, handler: dg.PipesMessageHandler, over: threading.Event) -> None:
        number = 1
        while True:
            last_look = over.is_set()  # the pod has ended, so no file comes after this look
            while (messages := self._file(number)) is not None:
                number += 1
                for message in messages:
                    self._hand_on(message, handler)
            if last_look:
                return
            over.wait(self._interval_s)

    def _file(self, number: int) -> list[Any] | None:
        try:
            return self._exchange.messages(self._pod_name, number)
        except RunPodError:  # the pod's watch says so, if it lasts
            return None

    def _hand_on(self, message: Any, handler: dg.PipesMessageHandler) -> None:
        try:
            handler.handle_message(message)
        except Exception:  # what a pod says may be anything; the next message is read all the same
            handler.report_pipes_framework_exception(type(self).__name__, sys.exc_info())
