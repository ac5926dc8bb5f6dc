"""Cancel in the web UI while a pod works: no pod goes on, and nothing is half stored."""

import time

from trade_pipeline_tests.compute.runpod.remotes import TRIAL, Remote
from trade_pipeline_tests.deployment import Deployment
from trade_pipeline_tests.web.serving import serving
from trade_pipeline_tests.web.test_cancel import (
    LAUNCH,
    STATUS,
    TERMINATE,
    WHERE,
    ask,
    wait_until,
)

CANCEL_S = 15.0


def test_a_run_cancelled_in_the_ui_terminates_its_pod_within_15_s(remote: Remote) -> None:
    remote.use(algorithm={"total_frames": 100_000_000})
    deployment = Deployment(remote.places.store.parent)
    store = remote.places.store
    with serving(deployment) as address:
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

        wait_until("a checkpoint of the pod", 180, remote.trains)
        (lease,) = remote.ledger.open("main")
        began = time.monotonic()
        assert ask(address, TERMINATE, run=run)["terminateRun"]["__typename"] == (
            "TerminateRunSuccess"
        )
        wait_until("the end of the pod", CANCEL_S, lambda: remote.fake.live == [])
        pod_gone_s = time.monotonic() - began
        wait_until("the end of the run", CANCEL_S, lambda: status() == "CANCELED")
        print(
            f"\npod gone after {pod_gone_s:.1f} s, run over after {time.monotonic() - began:.1f} s"
        )
    ended = remote.ledger.lease(lease.name)
    assert ended is not None
    assert (ended.run, ended.state, ended.reason) == (run, "ended", "the run was cancelled")
    assert len(remote.fake.charges) == 1
    remote.require_balance()
    assert remote.version is None
    assert not remote.policy.path.exists()
    assert list((store / "staging").iterdir()) == []
