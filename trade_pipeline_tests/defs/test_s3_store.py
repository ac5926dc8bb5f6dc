"""A deployment whose store is in a bucket, as Dagster runs it: another machine goes on with it."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from trade_pipeline.defs.bucket import AnyS3Resource, mirror_of
from trade_pipeline.defs.build import build_definitions
from trade_pipeline.defs.io_managers import BundlesIOManager, DocumentsIOManager, FramesIOManager
from trade_pipeline.settings.bucket import BucketSettings
from trade_pipeline.settings.project import Places
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training.ledger import entries
from trade_pipeline_tests.buckets import KINDS, Bucket
from trade_pipeline_tests.deployment import Deployment
from trade_pipeline_tests.small_project import materialize

TRIAL = "base.f0.s0"
SERIES = ["made.ALPHA.1d", "made.BETA.1d"]


@pytest.fixture(params=sorted(KINDS))
def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with KINDS[request.param]() as made:
        for name, value in made.environment().items():
            monkeypatch.setenv(name, value)
        yield made


def managers(store: Path, bucket: Bucket | None) -> dict[str, Any]:
    place: dict[str, Any] = {"store": str(store)}
    if bucket is not None:
        place |= {"s3": bucket.uri, "s3_url": bucket.front.url}
    return {
        "frames": FramesIOManager(**place),
        "documents": DocumentsIOManager(**place),
        "bundles": BundlesIOManager(**place),
    }


def chain(store: Path, seen: list[Any]) -> list[dg.AssetsDefinition]:
    """One asset of each kind under keys that the store knows, and one that reads all of them."""

    @dg.asset(io_manager_key="frames", key=["features", "tiny"], partitions_def=parts)
    def features() -> dict[str, pl.DataFrame]:
        return {key: pl.DataFrame({"close": [float(len(key))]}) for key in SERIES}

    @dg.asset(io_manager_key="documents", key=["manifest"], partitions_def=parts)
    def manifest() -> dict[str, Any]:
        return {key: {"days": len(key)} for key in SERIES}

    @dg.asset(io_manager_key="bundles", key=["alone", "dataset"])
    def dataset() -> Any:
        folder = bundles.staging(store, "dataset")
        (folder.path / "bars").write_bytes(b"bars")
        return bundles.seal(folder, {"bars"})

    whole = dg.AllPartitionMapping()

    @dg.asset(
        key=["last"],
        ins={
            "features": dg.AssetIn(["features", "tiny"], partition_mapping=whole),
            "manifest": dg.AssetIn(["manifest"], partition_mapping=whole),
            "dataset": dg.AssetIn(["alone", "dataset"]),
        },
    )
    def last(features: pl.DataFrame, manifest: Any, dataset: Any) -> None:
        seen.append((features["close"].to_list(), manifest, files(dataset)))

    return [features, manifest, dataset, last]


parts = dg.StaticPartitionsDefinition(SERIES)


def files(location: ArtifactLocation) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in location.path.iterdir()}


def run(
    assets: list[dg.AssetsDefinition], keys: list[str], resources: dict[str, Any], ranged: bool
) -> bool:
    tags = {}
    if ranged:
        tags = {
            "dagster/asset_partition_range_start": SERIES[0],
            "dagster/asset_partition_range_end": SERIES[-1],
        }
    with dg.DagsterInstance.ephemeral() as instance:
        return dg.materialize(
            assets,
            selection=dg.AssetSelection.assets(*(dg.AssetKey(key.split("/")) for key in keys)),
            resources=resources,
            instance=instance,
            tags=tags,
            raise_on_error=False,
        ).success


PARTITIONED, SINGLE = ["features/tiny", "manifest"], ["alone/dataset"]


def test_what_one_machine_materializes_another_loads(bucket: Bucket, tmp_path: Path) -> None:
    seen: list[Any] = []
    one, two = tmp_path / "one", tmp_path / "two"
    resources = {**managers(one, bucket), "io_manager": dg.mem_io_manager}
    assert run(chain(one, seen), PARTITIONED, resources, ranged=True)
    assert run(chain(one, seen), SINGLE, resources, ranged=False)
    for store in (one, two):
        resources = {**managers(store, bucket), "io_manager": dg.mem_io_manager}
        assert run(chain(store, seen), ["last"], resources, ranged=False)
    assert seen[0] == seen[1]
    assert seen[0][:2] == ([13.0, 12.0], [{"days": 13}, {"days": 12}])


def test_a_store_that_is_full_fails_the_step(bucket: Bucket, tmp_path: Path) -> None:
    bucket.front.break_next("refuse", "PUT", "features/tiny", 507)
    resources = managers(tmp_path, bucket)
    assert not run(chain(tmp_path, []), ["features/tiny"], resources, ranged=True)


def test_without_a_bucket_nothing_is_asked_and_nothing_noted(tmp_path: Path) -> None:
    seen: list[Any] = []
    resources = {**managers(tmp_path, None), "io_manager": dg.mem_io_manager}
    assert run(chain(tmp_path, seen), PARTITIONED, resources, ranged=True)
    assert run(chain(tmp_path, seen), [*SINGLE, "last"], resources, ranged=False)
    assert len(seen) == 1
    left = [path.name for path in tmp_path.rglob(".*") if not path.name.endswith(".lock")]
    assert left == []


def test_a_new_machine_with_the_whole_store_makes_the_same_dataset(
    bucket: Bucket, imported: Deployment, tmp_path: Path
) -> None:
    settings = BucketSettings(uri=bucket.uri, url=bucket.front.url)
    mirror_of(settings, imported.places.store).push_folder("")
    places = Places(configs=imported.places.configs, store=tmp_path / "elsewhere")
    mirror_of(settings, places.store).pull_folder("")
    made = bundles.current_version(
        layout.experiment_bundle(imported.places.store, "alone", "dataset")
    )
    assert made is not None
    home = layout.experiment_bundle(places.store, "alone", "dataset")
    assert bundles.verify(bundles.current(home))["version"] == made
    definitions = build_definitions(places)
    resources = {**(definitions.resources or {}), **managers(places.store, bucket)}
    home.child("current.json").path.unlink()
    with dg.DagsterInstance.ephemeral() as instance:
        assert dg.materialize(
            [*(definitions.assets or [])],
            selection=dg.AssetSelection.assets(["alone", "dataset"]),
            resources=resources,
            instance=instance,
        ).success
    assert bundles.current_version(home) == made


def test_the_client_is_of_dagster_aws_and_asks_only_what_every_s3_knows(bucket: Bucket) -> None:
    client = AnyS3Resource(endpoint_url=bucket.front.url).get_client()
    client.put_object(Bucket=bucket.name, Key="key", Body=b"content")
    ((_, target, headers),) = bucket.front.seen
    assert target.startswith(f"/{bucket.name}/key")
    assert not [name for name in headers if "checksum" in name.lower() or "trailer" in name.lower()]


def test_a_deployment_with_a_bucket_goes_on_on_another_machine(
    bucket: Bucket, imported: Deployment, tmp_path: Path
) -> None:
    """Steps that read the store's folder themselves find there what another machine has made."""
    settings = BucketSettings(uri=bucket.uri, url=bucket.front.url)
    configs = imported.places.configs
    one, two = (Places(configs, tmp_path / name, settings) for name in ("one", "two"))
    shutil.copytree(imported.places.store, one.store)
    with dg.DagsterInstance.ephemeral() as instance:
        assert materialize(one, instance, "alone/dataset").success
        assert materialize(two, instance, "alone/policy", "alone/backtest", first=TRIAL).success
        assert materialize(one, instance, "alone/backtest", first=TRIAL).success
    kinds = ("policy", "backtest")
    homes = [
        [layout.experiment_bundle(places.store, "alone", kind, TRIAL) for kind in kinds]
        for places in (one, two)
    ]
    first, second = ([bundles.current_version(home) for home in machine] for machine in homes)
    assert first == second and None not in first
    assert len(entries(one.store)) == len(entries(two.store)) == 1
