"""No code path of the package unpickles an artefact.

Three proofs: a payload that runs when it is unpickled is planted in everything that is loaded, and
never runs; no asset is read by an IO manager that pickles; the source has no call that could.
"""

import ast
import io
import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import polars as pl
import pytest
import torch

import trade_pipeline
from trade_pipeline.definitions import defs
from trade_pipeline.storage import bundles
from trade_pipeline.storage.documents import write_json
from trade_pipeline.storage.frames import write_frame
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training.checkpoint import Checkpoints
from trade_pipeline.training.dataset import write_dataset
from trade_pipeline.training.policy import DETERMINISTIC
from trade_pipeline_tests.training import synthetic
from trade_pipeline_tests.training.policies import write_bundle

PACKAGE = Path(trade_pipeline.__file__).parent
UNPICKLING = {
    *("pickle", "_pickle", "pickletools", "cloudpickle", "dill", "joblib", "shelve", "marshal"),
    *("jsonpickle", "copyreg"),
}
# For writing SB3's own format; neither of them reads.
ALLOWED_IMPORTS = {
    ("cloudpickle", "register_pickle_by_value"),
    ("cloudpickle", "unregister_pickle_by_value"),
}
LOADING = {
    *("load", "loads", "load_all", "unsafe_load", "unsafe_load_all", "full_load", "Unpickler"),
    *("read_pickle", "deserialize", "load_from_zip_file", "load_from_pkl", "load_replay_buffer"),
    *("CmaEsSampler", "JournalStorage"),  # Optuna's, which keep their state as pickles
}


class Payload:
    """Unpickled, it leaves a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return exec, (f"open({self.marker!r}, 'w').close()",)


def pickled(payload: Payload, protocol: int) -> bytes:
    return pickle.dumps(payload, protocol)


def torch_file(payload: Payload) -> bytes:
    file = io.BytesIO()
    torch.save({"weight": payload}, file)
    return file.getvalue()


def numpy_array(payload: Payload) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([payload], dtype=object), allow_pickle=True)
    return file.getvalue()


def numpy_arrays(payload: Payload) -> bytes:
    """With every name that a checkpoint might ask for."""
    file = io.BytesIO()
    arrays = {str(n): np.array([payload], dtype=object) for n in range(4)}
    np.savez(file, allow_pickle=True, **arrays)
    return file.getvalue()


def joblib_file(payload: Payload) -> bytes:
    file = io.BytesIO()
    joblib.dump(payload, file, compress=3)
    return file.getvalue()


def tagged_yaml(payload: Payload) -> bytes:
    code = f"open({payload.marker!r}, 'w').close()"
    return f"!!python/object/apply:builtins.exec [{code!r}]\n".encode()


PAYLOADS: dict[str, Callable[[Payload], bytes]] = {
    "pickle0": lambda payload: pickled(payload, 0),
    "pickle5": lambda payload: pickled(payload, 5),
    "torch": torch_file,
    "npy": numpy_array,
    "npz": numpy_arrays,
    "joblib": joblib_file,
    "yaml": tagged_yaml,
}

# What would run each of them: planted, they are live.
CARELESS = """
import sys, pickle, numpy, torch, joblib, yaml
from pathlib import Path
folder, marker = map(Path, sys.argv[1:])
loads = {
    "pickle0": lambda file: pickle.load(file),
    "pickle5": lambda file: pickle.load(file),
    "torch": lambda file: torch.load(file, weights_only=False),
    "npy": lambda file: numpy.load(file, allow_pickle=True),
    "npz": lambda file: numpy.load(file, allow_pickle=True)["0"],
    "joblib": lambda file: joblib.load(file),
    "yaml": lambda file: yaml.unsafe_load(file),
}
for path in sorted(folder.iterdir()):
    loads[path.name](path.open("rb"))
    print(path.name, marker.exists())
    marker.unlink(missing_ok=True)
"""


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of payloads, and the file that they would leave."""
    folder = tmp_path_factory.mktemp("payloads")
    marker = tmp_path_factory.mktemp("marker") / "it-ran"
    for name, make in PAYLOADS.items():
        (folder / name).write_bytes(make(Payload(marker)))
    return folder, marker


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good bundles, frames and documents, and `what.json` that lists them."""
    store = tmp_path_factory.mktemp("store")
    policy = write_bundle(store, "policy")
    write_frame(policy.child("diagnostics.parquet"), pl.DataFrame({"loss": [0.5]}))
    bundles.seal(policy, DETERMINISTIC)
    write_dataset(synthetic.dataset(), ArtifactLocation(store, "dataset"))
    home = ArtifactLocation(store, "checkpoint")
    Checkpoints(home, "f").save({"weight": torch.zeros(3), "seen": np.ones(2)})
    version = bundles.current(home).key
    write_frame(ArtifactLocation(store, "files/frame.parquet"), pl.DataFrame({"a": [1, 2]}))
    write_json(ArtifactLocation(store, "files/document.json"), {"a": 1})
    what = [
        ("policy", "policy", "policy"),
        ("dataset", "dataset", "dataset"),
        ("checkpoint", version, "checkpoint"),
        ("file", "files", "files"),
    ]
    write_json(ArtifactLocation(store, "what.json"), what)
    return store


def test_the_payloads_run_where_they_are_loaded_carelessly(planted: tuple[Path, Path]) -> None:
    command = [sys.executable, "-c", CARELESS, *map(str, planted)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == [f"{name} True" for name in sorted(PAYLOADS)]


def test_a_payload_planted_in_any_file_never_runs(planted: tuple[Path, Path], store: Path) -> None:
    payloads, marker = planted
    module = "trade_pipeline_tests.planting"
    command = [sys.executable, "-m", module, str(store), str(payloads), str(marker)]
    done = subprocess.run(command, cwd=PACKAGE.parent, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ran"] == []
    assert not marker.exists()
    assert found["refused"] > 500  # each reader met payloads
    assert found["loaded"] > 0


def test_no_asset_is_stored_by_an_io_manager_that_pickles() -> None:
    """Dagster's own does, for every asset that names none."""
    used = {
        assets.get_io_manager_key_for_asset_key(key)
        for assets in defs.get_repository_def().assets_defs_by_key.values()
        if assets.is_materializable
        for key in assets.keys
    }
    assert used <= {"frames", "documents", "bundles"}


def is_safe(call: ast.Call) -> bool:
    """Whether a call of something that is named like a loader reads plain data only."""
    said = ast.unparse(call.func)
    keywords = {one.arg: ast.unparse(one.value) for one in call.keywords}
    if not call.args and not keywords:
        return True  # a method of ours that is told no file
    return (  # of these, `builder.load` is an instruction of LLVM's
        said in ("json.loads", "json.load", "PolicyRunner.load", "exchange.load", "builder.load")
        or (said == "np.load" and keywords.get("allow_pickle") == "False")
        or (said == "torch.load" and keywords.get("weights_only") == "True")
        or (said == "yaml.load" and keywords.get("Loader") == "_StrictLoader")
    )


def suspects(source: str) -> Iterator[str]:
    """What in a module's source could unpickle, a line each."""
    for node in ast.walk(ast.parse(source)):
        line = f"line {getattr(node, 'lineno', 0)}: {ast.unparse(node)[:80]}"
        match node:
            case ast.Import(names=names):
                if any(one.name.partition(".")[0] in UNPICKLING for one in names):
                    yield line
            case ast.ImportFrom(module=module, names=names):
                for one in names:
                    known = (module or "").partition(".")[0] in UNPICKLING
                    if (module, one.name) in ALLOWED_IMPORTS:
                        continue
                    ours = (module or "").startswith("trade_pipeline.")
                    if known or (not ours and one.name in UNPICKLING | LOADING):
                        yield line
            case ast.Call(func=ast.Attribute(attr=name)) if name in LOADING:
                if not is_safe(node):
                    yield line
            case ast.Call(func=ast.Name(id="__import__")):
                yield line
            case ast.keyword(arg="allow_pickle", value=value) if ast.unparse(value) != "False":
                yield f"line {node.value.lineno}: allow_pickle"
            case ast.Attribute(attr=name) if name in UNPICKLING:
                yield line


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import joblib as j",
        "from cloudpickle import loads",
        "from torch import load",
        "import pickle as json",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.savez(path, allow_pickle=True)",
        "PPO.load(path)",
        "VecNormalize.load(path, venv)",
        "model.load(path)",
        "torch.jit.load(path)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.unsafe_load(text)",
        "save_util.cloudpickle.loads(text)",
        "save_util.load_from_zip_file(path)",
        "pd.read_pickle(path)",
        "pl.LazyFrame.deserialize(path)",
        "from optuna.samplers import CmaEsSampler",
        "optuna.samplers.CmaEsSampler(seed=1)",
        "__import__('pickle')",
    ],
)
def test_the_scan_sees_what_could_unpickle(source: str) -> None:
    assert list(suspects(source))


def test_the_source_holds_nothing_that_could_unpickle() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}, {line}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line in suspects(path.read_text(encoding="utf-8"))
    ]
    assert found == []
