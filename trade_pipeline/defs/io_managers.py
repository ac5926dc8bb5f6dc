"""IO managers: thin adapters from assets to the store.

Start at `location_of`, the one place that maps an asset's key and partition to the store.
"""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl

from trade_pipeline.settings.bucket import BucketSettings
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.bundles import BundleReference
from trade_pipeline.storage.documents import read_json, write_json
from trade_pipeline.storage.frames import read_frames, write_frame
from trade_pipeline.storage.location import ArtifactLocation

if TYPE_CHECKING:
    from trade_pipeline.storage.mirror import Mirror


def location_of(store: Path, asset_key: dg.AssetKey, partition: str | None) -> ArtifactLocation:
    """Where an asset's partition is stored.

    Raises:
        KeyError: the asset is none of this project's.
    """
    match asset_key.path, partition:
        case ["ohlcv"], dg.MultiPartitionKey() as key:
            dimensions = key.keys_by_dimension
            return layout.ohlcv(store, dimensions["series"], int(dimensions["year"]))
        case ["manifest"], str(series):
            return layout.manifest(store, series)
        case ["features", feature_set], str(series):
            return layout.features(store, feature_set, series)
        case ["leaderboard"], None:
            return layout.leaderboard(store)
        case ["storage_use"], None:
            return layout.storage_use(store)
        case ["pod_costs"], None:
            return layout.pod_costs(store)
        case ["volume_storage"], None:
            return layout.volume_storage(store)
        case [experiment, kind], trial:
            return layout.experiment_bundle(store, experiment, kind, trial)
    raise KeyError(f"asset {asset_key.to_user_string()} has no place in the store")


class _StoreIOManager(dg.ConfigurableIOManager):
    """What the IO managers share: the store's folder, and one value or one a partition."""

    store: str
    s3: str | None = None  # s3://bucket/prefix, of which the store's folder is then a cache
    s3_url: str | None = None  # endpoint of an S3 that is not AWS's

    @abstractmethod
    def _write(self, location: ArtifactLocation, value: Any) -> None: ...

    @abstractmethod
    def _read(self, locations: list[ArtifactLocation]) -> Any: ...

    def _push(self, mirror: "Mirror", location: ArtifactLocation) -> None:
        mirror.push(location)

    def _pull(self, mirror: "Mirror", location: ArtifactLocation) -> None:
        mirror.pull(location)

    def _mirror(self) -> "Mirror | None":
        if self.s3 is None:
            return None
        from trade_pipeline.defs.bucket import mirror_of  # dagster-aws takes a second

        return mirror_of(BucketSettings(uri=self.s3, url=self.s3_url), Path(self.store))

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Write one value, or a mapping from partition key to value when a run has several."""
        mirror = self._mirror()
        if not context.has_asset_partitions:
            self._commit(mirror, location_of(Path(self.store), context.asset_key, None), obj)
            return
        keys = list(context.asset_partition_keys)
        values = obj if isinstance(obj, Mapping) and set(obj) == set(keys) else None
        if values is None and len(keys) > 1:
            raise ValueError(
                f"{context.asset_key.to_user_string()} must return a mapping with exactly the "
                f"run's {len(keys)} partition keys"
            )
        for key in keys:
            location = location_of(Path(self.store), context.asset_key, key)
            self._commit(mirror, location, obj if values is None else values[key])

    def load_input(self, context: dg.InputContext) -> Any:
        """Read the partitions that the downstream asset depends on, in order."""
        keys: list[str | None] = [None]
        if context.has_asset_partitions:
            keys = list(context.asset_partition_keys)
        locations = [location_of(Path(self.store), context.asset_key, key) for key in keys]
        mirror = self._mirror()
        if mirror is not None:
            for location in locations:
                self._pull(mirror, location)
        return self._read(locations)

    def _commit(self, mirror: "Mirror | None", location: ArtifactLocation, value: Any) -> None:
        self._write(location, value)
        if mirror is not None:
            self._push(mirror, location)


class FramesIOManager(_StoreIOManager):
    """Parquet frames; several partitions load as one frame."""

    def _write(self, location: ArtifactLocation, value: pl.DataFrame) -> None:
        write_frame(location, value)

    def _read(self, locations: list[ArtifactLocation]) -> pl.DataFrame:
        return read_frames(locations)


class DocumentsIOManager(_StoreIOManager):
    """JSON documents; several partitions load as a list."""

    def _write(self, location: ArtifactLocation, value: Any) -> None:
        write_json(location, value)

    def _read(self, locations: list[ArtifactLocation]) -> Any:
        documents = [read_json(location) for location in locations]
        return documents[0] if len(documents) == 1 else documents


class BundlesIOManager(_StoreIOManager):
    """Bundles: verifies what was staged, moves it to its version, swaps `current.json`."""

    def _write(self, location: ArtifactLocation, value: BundleReference) -> None:
        bundles.commit(value, location)

    def _push(self, mirror: "Mirror", location: ArtifactLocation) -> None:
        mirror.push_bundle(location)

    def _pull(self, mirror: "Mirror", location: ArtifactLocation) -> None:
        mirror.pull_bundle(location)

    def _read(self, locations: list[ArtifactLocation]) -> Any:
        current = [bundles.current(location) for location in locations]
        return current[0] if len(current) == 1 else current
