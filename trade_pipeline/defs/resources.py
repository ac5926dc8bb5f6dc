"""Resources of a deployment: the store, and the machines that tasks run on."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from trade_pipeline.compute.local import LocalCompute
from trade_pipeline.compute.runpod.resource import RunPodCompute
from trade_pipeline.defs.io_managers import (
    BundlesIOManager,
    DocumentsIOManager,
    FramesIOManager,
)
from trade_pipeline.settings.bucket import BucketSettings
from trade_pipeline.settings.compute import ComputeSettings, LocalComputeSettings
from trade_pipeline.settings.project import Places

if TYPE_CHECKING:
    from trade_pipeline.storage.mirror import Mirror


class Store(dg.ConfigurableResource[Any]):
    """Folder that holds every artefact; with a bucket, what a run begins and ends in step with.

    Attributes:
        s3: `s3://bucket/prefix`, of which the folder is a cache.
        s3_url: endpoint of an S3 that is not AWS's.
    """

    folder: str
    s3: str | None = None
    s3_url: str | None = None

    @property
    def path(self) -> Path:
        """The folder as a path."""
        return Path(self.folder)

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Fetch what other machines have made since."""
        if self.s3 is not None:
            self._mirror().pull_folder("")

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """Send what no IO manager has sent, such as the ledger of trials."""
        if self.s3 is not None:
            self._mirror().push_folder("")

    def _mirror(self) -> "Mirror":
        from trade_pipeline.defs.bucket import mirror_of

        assert self.s3 is not None
        return mirror_of(BucketSettings(uri=self.s3, url=self.s3_url), self.path)


def build_resources(
    places: Places, compute: dict[str, ComputeSettings], base: Path
) -> dict[str, Any]:
    """All resources by the key that assets ask for; one `compute_<name>` a compute file.

    Args:
        places: folder of every artefact, and its bucket.
        compute: by name of the file.
        base: folder that paths inside configs/ are relative to.
    """
    folder, bucket = str(places.store), places.bucket
    s3 = {} if bucket is None else {"s3": bucket.uri, "s3_url": bucket.url}
    return {
        "store": Store(folder=folder, **s3),
        "frames": FramesIOManager(store=folder, **s3),
        "documents": DocumentsIOManager(store=folder, **s3),
        "bundles": BundlesIOManager(store=folder, **s3),
        **{
            compute_key(name): _compute(settings, folder, str(base))
            for name, settings in compute.items()
        },
    }


def _compute(settings: ComputeSettings, store: str, base: str) -> Any:
    if isinstance(settings, LocalComputeSettings):
        return LocalCompute(timeout_s=settings.timeout_s)
    return RunPodCompute(settings=settings.model_dump_json(), store=store, base=base)


def compute_key(name: str) -> str:
    """Resource key of a file of configs/compute."""
    return f"compute_{name}"
