"""Cancel in the web UI while a pod works: no pod goes on, and nothing is half stored."""

import time

from trade_pipeline_tests.compute.runpod.remotes import TRIAL, Remote
from trade_pipeline_tests.deployment import Deployment
from trade_pipeline_tests.web.graphql import UIRun
from trade_pipeline_tests.web.serving import serving

CANCEL_S = 15.0


def test_a_run_cancelled_in_the_ui_terminates_its_pod_within_15_s(remote: Remote) -> None:
    remote.use(algorithm={"total_frames": 100_000_000})
    deployment = Deployment(remote.places.store.parent)
    store = remote.places.store
    with serving(deployment) as address:
        run = UIRun(address, TRIAL)
        run.wait_for("a checkpoint of the pod", 400, remote.trains)
        (lease,) = remote.ledger.open("main")
        began = time.monotonic()
        run.terminate()
        run.wait_for("the end of the pod", CANCEL_S, lambda: remote.fake.live == [])
        pod_gone_s = time.monotonic() - began
        run.wait_for("the end of the run", CANCEL_S, lambda: run.status == "CANCELED")
        print(
            f"\npod gone after {pod_gone_s:.1f} s, run over after {time.monotonic() - began:.1f} s"
        )
    ended = remote.ledger.lease(lease.name)
    assert ended is not None
    assert (ended.run, ended.state, ended.reason) == (run.id, "ended", "the run was cancelled")
    assert len(remote.fake.charges) == 1
    remote.require_balance()
    assert remote.version is None
    assert not remote.policy.path.exists()
    assert list((store / "staging").iterdir()) == []
