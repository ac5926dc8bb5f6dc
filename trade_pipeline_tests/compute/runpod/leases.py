"""Leases, pods and a clock that tests set."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from trade_pipeline.compute.runpod.api import Pod, PodRequest
from trade_pipeline.compute.runpod.lease import Figures, Intent
from trade_pipeline.compute.runpod.ledger import Ledger
from trade_pipeline.compute.runpod.plan import pod_name

NOON = datetime(2026, 9, 14, 12, tzinfo=UTC)
JOB, RUN = "0123456789abcdef", "5d3f9a1c-1111-4222-8333-444455556666"


class Clock:
    """A clock that stands still until it is set; sleeping sets it."""

    def __init__(self, now: datetime = NOON) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def intent(attempt: int = 1, usd_h: float = 0.5, hours: float = 2.0, **changes: Any) -> Intent:
    run = changes.get("run", RUN)
    plain = Intent(
        name=pod_name("main", JOB, run, attempt),
        job=JOB,
        run=run,
        deployment="main",
        gpu="NVIDIA L4",
        approved_usd_h=usd_h,
        hours=hours,
    )
    return replace(plain, **changes)


def pod(name: str, pod_id: str, usd_h: float = 0.5, created_at: datetime = NOON) -> Pod:
    return Pod(
        id=pod_id,
        name=name,
        status="PROVISIONING",
        cost_usd_h=usd_h,
        data_center="EU-RO-1",
        created_at=created_at,
        started_at=None,
        uptime_s=None,
    )


def asked_for(name: str) -> PodRequest:
    """A pod of this name that sleeps."""
    return PodRequest(
        name=name,
        image="registry.example.com/trade@sha256:" + "a" * 64,
        gpu="NVIDIA L4",
        cuda=("12.8",),
        cloud="SECURE",
        data_centers=("EU-RO-1",),
        disk_gb=20,
        args=("sleep", "600"),
    )


def anything_goes(figures: Figures) -> None:
    """A check that refuses nothing."""


def live(ledger: Ledger, pod_id: str, wanted: Intent, created_at: datetime = NOON) -> None:
    """A lease with a pod, as after a creation that went well."""
    ledger.enter(wanted, anything_goes)
    ledger.live(wanted.name, pod(wanted.name, pod_id, wanted.approved_usd_h, created_at))


def ledger_at(folder: Path, clock: Clock | None = None) -> Ledger:
    return Ledger(folder / "runpod" / "leases.sqlite", clock or Clock())
