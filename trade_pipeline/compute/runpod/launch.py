"""Asking for a pod: never beyond the budget, never twice, and finding what a killed run left.

Start at `Launch.ask`.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from trade_pipeline.compute.runpod.api import Pod
from trade_pipeline.compute.runpod.connection import Connection, utc_now
from trade_pipeline.compute.runpod.errors import (
    BudgetExceeded,
    CandidateRefused,
    CreationUnclear,
    NoCapacity,
    ResultRefused,
    RunPodError,
)
from trade_pipeline.compute.runpod.exchange import Exchange, ExitRecord
from trade_pipeline.compute.runpod.lease import Lease
from trade_pipeline.compute.runpod.ledger import LedgerError
from trade_pipeline.compute.runpod.plan import Plan, is_ours, plan, pod_name, supervisor_command
from trade_pipeline.compute.runpod.reaper import end_pod
from trade_pipeline.storage import layout
from trade_pipeline.storage.documents import write_json

URL_VARIABLE = "TRADE_PIPELINE_RUNPOD_URL"  # where a pod may ask for its own end
LOOKS, LOOK_EVERY_S = 30, 2.0  # at most, for a pod whose creation was not answered


@dataclass(frozen=True)
class Launch:
    """Pods of one job for one run.

    Attributes:
        run: of Dagster, which waits.
        root_run: whose budget pays.
    """

    connection: Connection
    job: str
    run: str
    root_run: str

    def next_name(self) -> str:
        """Name of the next pod, nobody's so far."""
        taken = {lease.name for lease in self.connection.ledger.of_job(self.job)}
        attempt = 1
        while (name := self._name(attempt)) in taken:
            attempt += 1
        return name

    def ask(self, name: str, env: Mapping[str, str], say: Callable[[str], None]) -> Lease:
        """Ask for a pod, candidate by candidate; its lease is live.

        Raises:
            BudgetExceeded: nothing was asked for, or what came was too dear and was ended.
            NoCapacity: no candidate is to be had.
            CreationUnclear: nobody can tell whether there is one; the reaper will.
            RunPodError: see `errors`.
        """
        plans = self.plans(name, env)
        ledger, refused = self.connection.ledger, []
        self._enter_strays()
        for one in plans:
            intent = one.intent(
                self.connection.settings.deployment, self.job, self.run, self.root_run
            )
            kept = layout.pod_plan(self.connection.store, name)
            write_json(kept, {"payload": one.payload, "estimate_usd": one.estimate_usd})
            try:
                self.connection.budget.approve(intent)
            except BudgetExceeded as error:
                raise BudgetExceeded(f"{error}\nWhat would have been sent is in {kept}.") from error
            say(
                f"Asks for {one.request.gpu}, {one.usd_h:.4f} USD/h, {one.estimate_usd:.2f} USD in "
                f"{one.hours:g} h (pod {name})."
            )
            try:
                pod = self._create(one)
            except CandidateRefused as error:
                ledger.void(name, str(error))
                refused.append(f"{one.request.gpu}: {error}")
                say(f"{one.request.gpu} is not to be had: {error}")
                continue
            return self._confirmed(name, pod)
        raise NoCapacity(
            "No GPU of `gpus` is to be had now; wait, or name more types. Asked for:\n"
            + "\n".join(f"- {one}" for one in refused)
        )

    def plans(self, name: str, env: Mapping[str, str]) -> list[Plan]:
        """Candidates in the order in which they are tried."""
        settings = self.connection.settings
        return plan(
            settings,
            name=name,
            args=supervisor_command(settings, self.job, name),
            env={**env, URL_VARIABLE: settings.rest_url},
            offers=self.connection.api.gpus(),
            volumes=self.connection.volumes if settings.exchange.kind == "volume" else (),
            payload=self.connection.api.payload,
            secrets=self.connection.secrets,
        )

    def left_behind(self) -> Lease | None:
        """The pod of a run that was killed while it waited for this very job, now this run's.

        Only to be called where no other process can wait for the job.
        """
        ledger = self.connection.ledger
        for lease in reversed(ledger.of_job(self.job)):
            if lease.state == "ending":
                end_pod(self.connection.api, ledger, lease, lease.reason, time.sleep, utc_now)
            if lease.state not in ("intent", "live"):
                continue
            try:
                taken = ledger.take_over(lease.name, self.run)
            except LedgerError:  # the reaper was there first
                continue
            pod = self._look_for(taken)
            if pod is not None:
                return ledger.live(taken.name, pod) if taken.pod_id is None else taken
            if taken.pod_id is None:
                ledger.void(taken.name, "no pod came of it")
            else:
                ledger.ended(taken.name, "it was gone without us", utc_now())
        return None

    def finished_before(
        self, exchange: Exchange, cut_off: Callable[[str], bool]
    ) -> Iterator[tuple[ExitRecord, Lease]]:
        """Results that pods left for runs that were cut off before they could take them."""
        for lease in reversed(self.connection.ledger.of_job(self.job)):
            if lease.pod_id is None or not cut_off(lease.run):
                continue
            try:
                record = exchange.exit_record(lease.name)
            except ResultRefused:
                continue
            if record is None or record.rc != 0:
                continue
            if lease.is_open:
                lease = end_pod(
                    self.connection.api,
                    self.connection.ledger,
                    lease,
                    "its task has ended",
                    time.sleep,
                    utc_now,
                )
            yield record, lease

    def _enter_strays(self) -> None:
        """Have living pods of ours count, whose ledger was lost; the reaper ends them."""
        ledger, deployment = self.connection.ledger, self.connection.settings.deployment
        for pod in self.connection.api.pods():
            known = ledger.of_pod(pod.id) or ledger.lease(pod.name)
            if known is None and is_ours(pod.name, deployment):
                ledger.stray(pod, deployment)

    def _create(self, chosen: Plan) -> Pod:
        name = chosen.request.name
        try:
            return self.connection.api.create_pod(chosen.request)
        except CandidateRefused:
            raise
        except CreationUnclear:
            lease = self.connection.ledger.lease(name)
            assert lease is not None
            pod = self._look_for(lease)
            if pod is None:
                raise
            return pod
        except RunPodError as error:  # refused, so there is none
            self.connection.ledger.void(name, str(error))
            raise

    def _look_for(self, lease: Lease) -> Pod | None:
        """A lease's pod; one without an id is looked for by its name, since lists lag."""
        api = self.connection.api
        if lease.pod_id is not None:
            pod = api.pod(lease.pod_id)
            return None if pod is None or pod.status == "TERMINATED" else pod
        for _ in range(LOOKS):
            for pod in api.pods():
                if pod.name == lease.name:
                    return pod
            time.sleep(LOOK_EVERY_S)
        return None

    def _confirmed(self, name: str, pod: Pod) -> Lease:
        ledger = self.connection.ledger
        try:
            return self.connection.budget.confirm(name, pod)
        except BudgetExceeded:
            lease = ledger.lease(name)
            assert lease is not None
            end_pod(self.connection.api, ledger, lease, lease.reason, time.sleep, utc_now)
            raise

    def _name(self, attempt: int) -> str:
        return pod_name(self.connection.settings.deployment, self.job, self.run, attempt)
