"""Puts payloads into every file of a store and runs all that reads it; says which ran.

A program of its own, because a payload that runs could spoil the tests:
`python -m trade_pipeline_tests.planting STORE PAYLOADS MARKER`. STORE holds `what.json`, a list of
kind, key of what is loaded, and folder that is copied; PAYLOADS one file each; a payload that runs
leaves the file MARKER. Prints JSON: attempts that loaded and that were refused, and what ran.
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

lifted: list[Any] = []


def watch(event: str, arguments: Any) -> None:
    """Others unpickle, too, such as numba its cache; the payloads ask for `exec`."""
    if event == "pickle.find_class" and arguments[1] == "exec":
        lifted.append(arguments)


sys.addaudithook(watch)

from trade_pipeline.settings.base import read_yaml  # noqa: E402
from trade_pipeline.storage import archives, bundles  # noqa: E402
from trade_pipeline.storage.documents import read_json  # noqa: E402
from trade_pipeline.storage.frames import (  # noqa: E402
    read_frames,
    read_hash,
    read_metadata,
    read_whole,
)
from trade_pipeline.storage.location import ArtifactLocation  # noqa: E402
from trade_pipeline.training import importing  # noqa: E402
from trade_pipeline.training.checkpoint import Checkpoints  # noqa: E402
from trade_pipeline.training.dataset import load_dataset  # noqa: E402
from trade_pipeline.training.onnx_export import write_onnx  # noqa: E402
from trade_pipeline.training.policy import PolicyRunner  # noqa: E402
from trade_pipeline.training.sb3_export import write_sb3  # noqa: E402

FIRST = "pickle5"
UNSEALED = (bundles.INDEX, bundles.POINTER)
Load = Callable[[], object]


def fresh(work: Path, name: str) -> Path:
    """An empty place in the working folder."""
    shutil.rmtree(work / name, ignore_errors=True)
    return work / name


def policy(at: ArtifactLocation) -> Iterator[Load]:
    work = at.store
    packed = work / "packed.zip"
    yield lambda: PolicyRunner.load(at)
    yield lambda: importing.verify_stored(at)
    yield lambda: importing.verify_stranger(at.path, fresh(work, "workplace"))
    for source in (at.path, packed):
        if source == packed:
            yield lambda: archives.pack(at, packed)
        other = ArtifactLocation(fresh(work, "other"), "imported/a")
        yield lambda source=source, other=other: importing.import_policy(source, other)
    yield lambda: write_onnx(at, "0" * 32, work / "policy.onnx")
    yield lambda: write_sb3(at, work / "policy.zip")


def dataset(at: ArtifactLocation) -> Iterator[Load]:
    yield lambda: load_dataset(at).features.sum()
    yield lambda: load_dataset(at, check=False).features.sum()
    yield lambda: importing.verify_stored(at)
    yield lambda: importing.verify_stranger(at.path, fresh(at.store, "workplace"))


def checkpoint(at: ArtifactLocation) -> Iterator[Load]:
    key = ArtifactLocation(at.store, at.key.rpartition("/")[0])
    yield lambda: Checkpoints(key, "f").load()
    yield lambda: bundles.verify(bundles.current(key))


def file(at: ArtifactLocation) -> Iterator[Load]:
    for read in (read_whole, read_metadata, read_hash, read_json):
        yield lambda read=read: read(at)
    yield lambda: read_frames([at, at])
    yield lambda: read_yaml(at.path)


KINDS = {"policy": policy, "dataset": dataset, "checkpoint": checkpoint, "file": file}


def reseal(at: ArtifactLocation) -> ArtifactLocation:
    """Write an index that fits what was planted, as somebody would who means harm."""
    index = read_json(at.child(bundles.INDEX))
    made_of = [one["name"] for one in index["members"] if one["deterministic"]]
    version = bundles.seal(at, made_of).version
    pointer = at.path.parent / bundles.POINTER
    if not pointer.exists():
        return at
    at.path.rename(at.path.parent / version)
    pointer.write_text(json.dumps({"version": version}))
    return ArtifactLocation(at.store, f"{at.key.rpartition('/')[0]}/{version}")


def main(store: Path, payloads: Path, marker: Path) -> None:
    """Plant each payload in each file, with the old index and with one that fits."""
    work = store / "work"
    counts, ran = {"loaded": 0, "refused": 0}, []
    for kind, key, root in json.loads((store / "what.json").read_text()):
        paths = sorted(p.relative_to(store) for p in (store / root).rglob("*") if p.is_file())
        for path in paths:
            for payload in sorted(payloads.iterdir()):
                # The old index refuses all alike: one payload shows it.
                for sealed in (False, True) if payload.name == FIRST else (True,):
                    at = ArtifactLocation(work, path.as_posix() if kind == "file" else key)
                    shutil.copytree(store / root, fresh(work, root))
                    (work / path).write_bytes(payload.read_bytes())
                    if sealed and kind != "file" and path.name not in UNSEALED:
                        at = reseal(at)
                    for number, load in enumerate(KINDS[kind](at)):
                        try:
                            load()
                            counts["loaded"] += 1
                        except Exception:
                            counts["refused"] += 1
                        if marker.exists() or lifted:
                            ran.append([str(path), payload.name, sealed, number])
                            marker.unlink(missing_ok=True)
                            lifted.clear()
    print(json.dumps({**counts, "ran": ran}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
