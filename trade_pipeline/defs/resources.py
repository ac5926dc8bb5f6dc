"""Resources of a deployment: the store, and the machines that tasks run on."""

from pathlib import Path
from typing import Any

import dagster as dg

from trade_pipeline.compute.local import LocalCompute
from trade_pipeline.defs.io_managers import (
    BundlesIOManager,
    DocumentsIOManager,
    FramesIOManager,
)
from trade_pipeline.settings.compute import LocalComputeSettings


class Store(dg.ConfigurableResource[Any]):
    """Folder that holds every artefact."""

    folder: str

    @property
    def path(self) -> Path:
        """The folder as a path."""
        return Path(self.folder)


def build_resources(store: Path, compute: dict[str, LocalComputeSettings]) -> dict[str, Any]:
    """All resources by the key that assets ask for; one `compute_<name>` a compute file."""
    folder = str(store)
    return {
        "store": Store(folder=folder),
        "frames": FramesIOManager(store=folder),
        "documents": DocumentsIOManager(store=folder),
        "bundles": BundlesIOManager(store=folder),
        **{
            compute_key(name): LocalCompute(timeout_s=settings.timeout_s)
            for name, settings in compute.items()
        },
    }


def compute_key(name: str) -> str:
    """Resource key of a file of configs/compute."""
    return f"compute_{name}"
