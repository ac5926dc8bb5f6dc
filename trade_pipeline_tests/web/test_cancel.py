"""Cancel in the web UI, as the UI itself does it: over GraphQL."""

import json
import os
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from trade_pipeline.storage import bundles, layout
from trade_pipeline_tests.deployment import Deployment
from trade_pipeline_tests.web.serving import serving

TRIAL = "base.f0.s0"
LAUNCH = """
mutation(
  $asset: [String!]!, $job: String!, $location: String!, $repository: String!, $trial: String!
) {
  launchPipelineExecution(executionParams: {
    selector: {
      jobName: $job, repositoryLocationName: $location, repositoryName: $repository,
      assetSelection: [{path: $asset}]
    },
    mode: "default",
    executionMetadata: {tags: [{key: "dagster/partition", value: $trial}]}
  }) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
  }
}
"""
TERMINATE = "mutation($run: String!) { terminateRun(runId: $run) { __typename } }"
STATUS = "query($run: ID!) { runOrError(runId: $run) { ... on Run { status } } }"
WHERE = """
{ repositoriesOrError { ... on RepositoryConnection {
    nodes { name location { name } pipelines { name } } } } }
"""


def ask(address: str, query: str, **variables: Any) -> dict[str, Any]:
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(
        f"{address}/graphql", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        said: dict[str, Any] = json.load(answer)
    assert "errors" not in said, said
    data: dict[str, Any] = said["data"]
    return data


def workers(store: Path) -> list[int]:
    """Processes that run a task of this store."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if "trade_pipeline.compute.worker" in command and str(store) in command:
                found.append(int(entry.name))
    return found


def wait_until(what: str, limit_s: float, condition: Any) -> float:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < limit_s, f"{what}: not within {limit_s} s"
        time.sleep(0.1)
    return time.monotonic() - started


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_a_cancelled_training_ends_within_seconds_and_leaves_nothing(imported: Deployment) -> None:
    file = "configs/experiments/alone.yaml"
    imported.edit(file, "total_frames: 1024", "total_frames: 100000000")
    store = imported.places.store
    with serving(imported) as address:
        (repository,) = ask(address, WHERE)["repositoriesOrError"]["nodes"]
        job = next(
            one["name"] for one in repository["pipelines"] if one["name"].startswith("__ASSET_JOB")
        )
        launched = ask(
            address,
            LAUNCH,
            asset=["alone", "policy"],
            job=job,
            location=repository["location"]["name"],
            repository=repository["name"],
            trial=TRIAL,
        )["launchPipelineExecution"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        run = launched["run"]["runId"]

        def status() -> str:
            return str(ask(address, STATUS, run=run)["runOrError"]["status"])

        key = layout.checkpoint(store, "alone", TRIAL)
        wait_until("a checkpoint", 180, lambda: bundles.current_version(key) is not None)
        (training,) = workers(store)
        assert ask(address, TERMINATE, run=run)["terminateRun"]["__typename"] == (
            "TerminateRunSuccess"
        )
        wait_until("the end of the training", 15, lambda: not workers(store))
        wait_until("the end of the run", 60, lambda: status() == "CANCELED")
    with pytest.raises(ProcessLookupError):
        os.kill(training, 0)
    assert list((store / "staging").iterdir()) == []
    home = layout.experiment_bundle(store, "alone", "policy", TRIAL)
    assert bundles.current_version(home) is None
