"""What the web UI asks of its server: launch a run, look at it, end it."""

import json
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

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
LOG = """
query($run: ID!) { logsForRun(runId: $run) { ... on EventConnection {
    events { ... on MessageEvent { message } } } } }
"""
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


class UIRun:
    """A run of `alone/policy`, launched as the UI's Materialize button does it."""

    def __init__(self, address: str, trial: str) -> None:
        self._address = address
        (repository,) = ask(address, WHERE)["repositoriesOrError"]["nodes"]
        names = [one["name"] for one in repository["pipelines"]]
        launched = ask(
            address,
            LAUNCH,
            asset=["alone", "policy"],
            job=next(name for name in names if name.startswith("__ASSET_JOB")),
            location=repository["location"]["name"],
            repository=repository["name"],
            trial=trial,
        )["launchPipelineExecution"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        self.id: str = launched["run"]["runId"]

    @property
    def status(self) -> str:
        """As the UI shows it."""
        return str(ask(self._address, STATUS, run=self.id)["runOrError"]["status"])

    def terminate(self) -> None:
        """The UI's Terminate button."""
        ended = ask(self._address, TERMINATE, run=self.id)["terminateRun"]
        assert ended["__typename"] == "TerminateRunSuccess", ended

    def wait_for(self, what: str, limit_s: float, condition: Callable[[], bool]) -> None:
        """Until something holds; fails with what the run said if it fails or the time is over."""
        started = time.monotonic()
        while not condition():
            over = time.monotonic() - started > limit_s
            if (over or self.status == "FAILURE") and not condition():
                events = ask(self._address, LOG, run=self.id)["logsForRun"]["events"]
                said = "\n".join(event["message"] for event in events[-30:])
                pytest.fail(f"{what}: not within {limit_s} s, run is {self.status}:\n{said}")
            time.sleep(0.1)
