"""A task for pods: does what its spec says. Start at `run`."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trade_pipeline.storage import bundles
from trade_pipeline.storage.location import ArtifactLocation, replacing

OUTLIVES_ANY_TEST_S = 300.0


def run(
    spec: Mapping[str, Any], report: Callable[[object], None], clock: Callable[[], float]
) -> Any:
    """Note this process's id in the store, then act."""
    store = Path(spec["store"])
    if spec["act"] == "ignore terminate":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with (store / "runs").open("a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")
    match spec["act"]:
        case "seal":
            return sealed(ArtifactLocation(store, spec["staging"]), spec["content"])
        case "return":
            return spec["result"]
        case "report, then wait for a file":
            report("halfway there")
            _wait_for(store / "go")
            return {}
        case "print":
            print("to standard output")
            print("to standard error", file=sys.stderr)
            _wait_for(store / "go")
            return {}
        case "environment":
            return dict(os.environ)
        case "fail":
            print("x" * 20_000, file=sys.stderr)
            raise ValueError(f"the spec says {spec['word']}")
        case "leave":
            os._exit(0)
        case "kill itself":
            os.kill(os.getpid(), signal.SIGKILL)
        case "fill the disk":
            raise OSError(28, "No space left on device")
        case "checkpoints":
            return checkpoints(ArtifactLocation(store, spec["checkpoint"]), store)
        case "leave orphans":
            for _ in range(3):
                subprocess.run(["sh", "-c", "setsid sleep 0.3 &"], check=True)
            (store / "orphaned").touch()
        case "with a child" | "leave a child":
            code = f"import time; time.sleep({OUTLIVES_ANY_TEST_S})"
            child = subprocess.Popen([sys.executable, "-c", code])
            with replacing(ArtifactLocation(store, "child")) as temporary:
                temporary.write_text(str(child.pid), encoding="utf-8")
            if spec["act"] == "leave a child":
                return {}
    time.sleep(OUTLIVES_ANY_TEST_S)
    return {}


def sealed(staging: ArtifactLocation, content: str) -> dict[str, Any]:
    """A bundle of one member, or an error where the folder was not empty."""
    assert list(staging.path.iterdir()) == []
    (staging.path / "policy.txt").write_text(content, encoding="utf-8")
    reference = bundles.seal(staging, ("policy.txt",))
    return {"staging": staging.key, "version": reference.version, "metrics": {"loss": None}}


def checkpoints(key: ArtifactLocation, store: Path) -> dict[str, Any]:
    """Say where it goes on from, save two states, the second when told, and forget them."""
    found = None
    if key.path.exists():
        found = (bundles.current(key).path / "state.txt").read_text(encoding="utf-8")
    for state in ("first", "second"):
        staging = bundles.staging(store, "state")
        (staging.path / "state.txt").write_text(state, encoding="utf-8")
        bundles.commit(bundles.seal(staging, ("state.txt",)), key)
        bundles.prune(key, keep=1)
        _wait_for(store / f"after {state}")
    key.path.rename(store / "done with")
    _wait_for(store / "go")
    return {"found": found}


def _wait_for(file: Path) -> None:
    given_up = time.monotonic() + OUTLIVES_ANY_TEST_S
    while not file.exists() and time.monotonic() < given_up:
        time.sleep(0.02)
