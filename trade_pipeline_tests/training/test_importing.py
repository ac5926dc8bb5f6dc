"""Policies from elsewhere: taken when all about them holds, else refused in a sentence."""

import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.tensorboard import SummaryWriter

from trade_pipeline.storage.archives import Limits, pack
from trade_pipeline.storage.bundles import INDEX, BundleError, current, seal, stored, verify
from trade_pipeline.storage.frames import write_frame
from trade_pipeline.storage.location import ArtifactLocation, StorageError
from trade_pipeline.training.dataset import write_dataset
from trade_pipeline.training.importing import (
    QUARANTINE,
    PolicyImportError,
    import_policy,
    verify_policy,
    verify_stranger,
)
from trade_pipeline.training.policy import DETERMINISTIC, PolicyRunner
from trade_pipeline.training.trainer import train
from trade_pipeline_tests.training import synthetic
from trade_pipeline_tests.training.policies import observations, write_bundle


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ArtifactLocation:
    """A policy bundle of another store; tests copy it."""
    location = write_bundle(tmp_path_factory.mktemp("made"), "policy")
    events(location.path)
    seal(location, DETERMINISTIC)
    return location


@pytest.fixture
def given_bundle(made: ArtifactLocation, tmp_path: Path) -> ArtifactLocation:
    location = ArtifactLocation(tmp_path, "given")
    shutil.copytree(made.path, location.path)
    return location


@pytest.fixture
def key(tmp_path: Path) -> ArtifactLocation:
    return ArtifactLocation(tmp_path / "store", "imported/theirs")


def events(folder: Path) -> None:
    """TensorBoard's own file, and a table."""
    with SummaryWriter(str(folder / "tb")) as writer:
        for step in range(3):
            writer.add_scalar("loss", 0.5, step)
            writer.add_histogram("actions", np.arange(5.0), step)
    frame = pl.DataFrame({"frames": [1, 2], "loss": [0.5, 0.4]})
    write_frame(ArtifactLocation(folder, "diagnostics.parquet"), frame)


def quarantined(store: Path) -> list[str]:
    folder = store / QUARANTINE
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("packed", [True, False], ids=["zip", "folder"])
def test_a_good_policy_is_imported_and_acts_as_where_it_came_from(
    given_bundle: ArtifactLocation, key: ArtifactLocation, packed: bool
) -> None:
    source = given_bundle.path
    if packed:
        source = given_bundle.store / "policy.zip"
        pack(given_bundle, source)
    location = import_policy(source, key)
    assert location == current(key)
    assert verify(location) == verify(given_bundle)
    ours, theirs = PolicyRunner.load(location), PolicyRunner.load(given_bundle)
    for one in observations():
        np.testing.assert_array_equal(ours.outputs(one), theirs.outputs(one))
    assert quarantined(key.store) == []
    assert import_policy(source, key) == location  # again changes nothing


def test_what_the_trainer_writes_is_taken(tmp_path: Path, key: ArtifactLocation) -> None:
    experiment = synthetic.experiment()
    environment, algorithm = experiment.variant("base")
    trained = train(
        dataset=synthetic.dataset(),
        environment=environment,
        algorithm=algorithm,
        trial=experiment.trials()["base.f0.s0"],
        staging=ArtifactLocation(tmp_path, "trained"),
        report=lambda progress: None,
        clock=lambda: 0.0,
    )
    location = import_policy(trained.reference.location.path, key)
    assert location.path.name == trained.reference.version


def test_a_dataset_is_verified_anywhere_but_not_imported(
    tmp_path: Path, key: ArtifactLocation
) -> None:
    reference = write_dataset(synthetic.dataset(), ArtifactLocation(tmp_path, "dataset"))
    pack(reference.location, tmp_path / "dataset.zip")
    index = verify_stranger(tmp_path / "dataset.zip", tmp_path / "workplace")
    assert index["version"] == reference.version
    with pytest.raises(StorageError, match=r"is unknown; taken are bundle\.json, policy\."):
        import_policy(tmp_path / "dataset.zip", key)


@pytest.mark.parametrize(
    "name", ["theirs", "aapl_ppo/policy/base.f0.s0", "imported", "imported/a/b", "quarantine/a"]
)
def test_only_imported_keys_are_taken(
    given_bundle: ArtifactLocation, tmp_path: Path, name: str
) -> None:
    with pytest.raises(PolicyImportError, match="are kept as imported/<name>"):
        import_policy(given_bundle.path, ArtifactLocation(tmp_path / "store", name))
    assert not (tmp_path / "store").exists()


def reseal(folder: Path) -> None:
    """As somebody would who wants a changed bundle to look right."""
    location = ArtifactLocation(folder.parent, folder.name)
    seal(location, [name for name in DETERMINISTIC if (folder / name).exists()])


def rewritten(member: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        document = json.loads((folder / member).read_text())
        change(document)
        (folder / member).write_text(json.dumps(document))
        reseal(folder)

    return spoil


def retensored(
    change: Callable[[dict[str, np.ndarray]], object], member: str = "policy.safetensors"
) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = safetensors.numpy.load_file(folder / member)
        change(tensors)
        safetensors.numpy.save_file(tensors, folder / member)
        reseal(folder)

    return spoil


def replaced(member: str, content: bytes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / member).write_bytes(content)
        reseal(folder)

    return spoil


def gone(member: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / member).unlink()
        reseal(folder)

    return spoil


def flipped(folder: Path) -> None:
    path = folder / "policy.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def counted_otherwise(folder: Path) -> None:
    location = ArtifactLocation(folder.parent, folder.name)
    seal(location, ["normalizer.json", "spec.json"])


def not_a_number(tensors: dict[str, np.ndarray]) -> None:
    tensors["action.bias"] = np.full_like(tensors["action.bias"], np.nan)


DEEP = b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
# What verifies as a bundle of anything, but is no policy that can be used: it stays to be seen.
BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "a changed byte": (flipped, r"'policy\.safetensors' is not the file that was sealed"),
    "no index": (lambda folder: (folder / INDEX).unlink(), r"there is no bundle\.json"),
    "version of other members": (counted_otherwise, "its version is made of"),
    "no learner": (gone("learner.safetensors"), "its version is made of"),
    "no weights": (gone("policy.safetensors"), "its version is made of"),
    "weights not finite": (
        retensored(not_a_number),
        r"'policy\.safetensors' holds tensor 'action\.bias' with values that are not finite",
    ),
    "learner not finite": (
        retensored(lambda t: t.update(more=np.array([np.inf])), "learner.safetensors"),
        r"'learner\.safetensors' holds tensor 'more'",
    ),
    "one weight more": (
        retensored(lambda tensors: tensors.update(more=np.zeros(3, np.float32))),
        "weight more is none of the network's",
    ),
    "weights of another size": (
        rewritten("spec.json", lambda spec: spec["network"].update(hidden=[8, 7])),
        "the network has",
    ),
    "a network too large": (
        rewritten("spec.json", lambda spec: spec["network"].update(hidden=[2**20, 2**20])),
        "cannot act",
    ),
    "an unknown key": (
        rewritten("spec.json", lambda spec: spec.update(import_path="os.system")),
        "import_path",
    ),
    "no action": (rewritten("spec.json", lambda spec: spec.pop("action")), "action"),
    "scaling of other features": (
        rewritten("normalizer.json", lambda scaling: scaling.update(mean=[[0.0]])),
        "mean",
    ),
    "no JSON": (replaced("normalizer.json", b"{"), r"'normalizer\.json' cannot be read as JSON"),
    "JSON too deep": (replaced("provenance.json", DEEP), "cannot be read as JSON"),
    "JSON of another kind": (replaced("provenance.json", b"[]"), "no object"),
    "JSON too large": (
        replaced("provenance.json", b"{" + b" " * (17 * 2**20) + b"}"),
        "larger than",
    ),
    "no tensors": (replaced("learner.safetensors", b"hello, world"), "is no safetensors file"),
    "no table": (replaced("diagnostics.parquet", b"PAR1 and no more"), "is no parquet file"),
    "numpy's objects": (replaced("diagnostics.parquet", b"\x93NUMPY\x01\x00"), "is no parquet"),
    "no text": (replaced("job.log", b"\xff\xfe\x00"), "is no UTF-8 text"),
    "a terminal's commands": (replaced("job.log", b"\x1b[2J"), "holds control characters"),
    "no events": (replaced("tb/events.out", b"hello, TensorBoard"), "no file of TensorBoard"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_policy_that_does_not_hold_stays_in_quarantine_where_nothing_uses_it(
    given_bundle: ArtifactLocation, key: ArtifactLocation, case: str
) -> None:
    spoil, message = BAD[case]
    spoil(given_bundle.path)
    with pytest.raises(PolicyImportError, match=message) as refusal:
        import_policy(given_bundle.path, key)
    assert "not imported" in str(refusal.value)
    kept = quarantined(key.store)
    assert len(kept) == 1
    assert f"It stays in {key.store / QUARANTINE / kept[0]}, where nothing uses it" in str(
        refusal.value
    )
    assert not key.path.exists()
    for name in (f"{QUARANTINE}/{kept[0]}", QUARANTINE):
        with pytest.raises(BundleError, match="no version is current"):
            stored(ArtifactLocation(key.store, name))
    with pytest.raises(PolicyImportError, match=message):  # again, and it is there once
        import_policy(given_bundle.path, key)
    assert quarantined(key.store) == kept
    with pytest.raises(StorageError, match=message) as refusal:
        verify_stranger(given_bundle.path, key.store / "workplace")
    assert str(given_bundle.path) in str(refusal.value)
    assert "workplace" not in str(refusal.value)


def archived(spoil: Callable[[zipfile.ZipFile], object]) -> Callable[[Path, Path], None]:
    """Write a zip of the bundle and one more thing."""

    def write(folder: Path, path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for member in sorted(folder.rglob("*")):
                if member.is_file():
                    archive.write(member, member.relative_to(folder).as_posix())
            spoil(archive)

    return write


def nested() -> bytes:
    inside = io.BytesIO()
    with zipfile.ZipFile(inside, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02.")
    return inside.getvalue()


# What is not even unpacked: nothing of it stays.
UNSAFE: dict[str, tuple[Callable[[zipfile.ZipFile], object], str]] = {
    "unknown": (lambda archive: archive.writestr("setup.py", "import os"), r"'setup\.py' is unk"),
    "pickle by name": (lambda archive: archive.writestr("model.pkl", "x"), r"'model\.pkl' is unk"),
    "outside": (lambda archive: archive.writestr("../../evil", "x"), "cannot be a member"),
    "a pickle": (
        lambda archive: archive.writestr("tb/events.out.x", b"\x80\x04\x95."),
        "is a pickle",
    ),
    "a zip": (lambda archive: archive.writestr("tb/events.out.x", nested()), "is a zip inside"),
    "too large": (
        lambda archive: archive.writestr("tb/events.out.x", os.urandom(2**20 + 1)),
        "larger than",
    ),
    "a bomb": (
        lambda archive: archive.writestr("tb/events.z", bytes(2**20 + 1), compress_type=8),
        "larger than|unpacks to more",
    ),
}


@pytest.mark.parametrize("case", UNSAFE)
def test_nothing_stays_of_an_unsafe_archive(
    given_bundle: ArtifactLocation, key: ArtifactLocation, case: str
) -> None:
    spoil, message = UNSAFE[case]
    path = given_bundle.store / "policy.zip"
    archived(spoil)(given_bundle.path, path)
    with pytest.raises(StorageError, match=message):
        import_policy(path, key, Limits(2**20, 2**22, 20, 10))
    assert quarantined(key.store) == []
    assert {one.name for one in given_bundle.store.iterdir()} <= {"given", "policy.zip", "store"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    member=st.sampled_from([*DETERMINISTIC, "diagnostics.parquet", "provenance.json"]),
    at=st.integers(0, 2_000),
    content=st.binary(min_size=1, max_size=4),
)
def test_any_bytes_verify_or_are_refused_in_a_sentence(
    given_bundle: ArtifactLocation, member: str, at: int, content: bytes
) -> None:
    path = given_bundle.path / member
    before = path.read_bytes()
    at %= len(before)
    path.write_bytes(before[:at] + content + before[at + len(content) :])
    try:
        reseal(given_bundle.path)
        verify_policy(given_bundle)
    except StorageError as error:
        assert str(given_bundle) in str(error)
    finally:
        path.write_bytes(before)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.just([]),
    st.just({}),
    st.lists(st.integers(-1, 2**40), max_size=3),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(data=st.data())
def test_any_value_in_a_document_verifies_or_is_refused_in_a_sentence(
    given_bundle: ArtifactLocation, data: st.DataObject
) -> None:
    path = given_bundle.path / data.draw(st.sampled_from(["spec.json", "normalizer.json"]))
    before = path.read_text()
    document = place = json.loads(before)
    while True:
        chosen = data.draw(
            st.sampled_from(sorted(place) if isinstance(place, dict) else [*range(len(place))])
        )
        inner = place[chosen]
        if not (isinstance(inner, dict | list) and inner and data.draw(st.booleans())):
            break
        place = inner
    place[chosen] = data.draw(VALUES)
    path.write_text(json.dumps(document))
    try:
        reseal(given_bundle.path)
        verify_policy(given_bundle)
    except StorageError as error:
        assert str(given_bundle) in str(error)
    finally:
        path.write_text(before)
