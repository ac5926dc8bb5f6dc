"""What a pod says through Dagster Pipes, read from the exchange."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from dagster import PipesBlobStoreMessageReader
from dagster_pipes import PipesParams

from trade_pipeline.compute.runpod.errors import RunPodError
from trade_pipeline.compute.runpod.exchange import Exchange


class PodMessages(PipesBlobStoreMessageReader):
    """Messages of one pod, in their order.

    Args:
        exchange: of the job.
        pod_name: of the pod.
        interval_s: between looks.
    """

    def __init__(self, exchange: Exchange, pod_name: str, interval_s: float) -> None:
        super().__init__(interval=interval_s)
        self._exchange, self._pod_name = exchange, pod_name

    def messages_are_readable(self, params: PipesParams) -> bool:
        """Always: a look costs one request."""
        return True

    @contextmanager
    def get_params(self) -> Iterator[PipesParams]:
        """Where the pod writes, below the exchange's root."""
        yield {"folder": f"jobs/{self._exchange.job}/{self._pod_name}/messages"}

    def download_messages_chunk(self, index: int, params: PipesParams) -> str | None:
        """The file of messages of a number, or None while there is none."""
        with suppress(RunPodError):  # the pod's watch says so, if it lasts
            return self._exchange.message(self._pod_name, index)
        return None

    def no_messages_debug_text(self) -> str:
        """For the warning about a task that never opened Pipes."""
        return f"Looked for messages of pod {self._pod_name} on the exchange."
