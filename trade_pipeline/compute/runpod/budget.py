"""The budget: whether one more pod may be asked for.

Start at `Budget.approve`, which looks and writes the lease's intent in one transaction of the
ledger, so that processes that ask at once cannot pass a limit together; `objections` is the rule
alone.
"""

import math
from typing import NamedTuple

from trade_pipeline.compute.runpod.api import Pod
from trade_pipeline.compute.runpod.errors import BudgetExceeded
from trade_pipeline.compute.runpod.lease import Figures, Intent, Lease
from trade_pipeline.compute.runpod.ledger import Ledger, LedgerError
from trade_pipeline.settings.compute import BudgetSettings

TOLERANCE_USD = 1e-9  # sums of floats are no exact dollars


class _Limit(NamedTuple):
    key: str
    what: str
    used: float
    more: float
    limit: float
    unit: str
    way_out: str

    @property
    def sentence(self) -> str:
        return (
            f"budget.{self.key} allows {self.limit:g} {self.unit}: {self.what} {self.used:.6g}, "
            f"this pod {self.more:.6g}, together {self.used + self.more:.6g}; {self.way_out}."
        )


class Budget:
    """The budget of one deployment over the ledger of its host."""

    def __init__(self, settings: BudgetSettings, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger

    def examine(self, intent: Intent) -> list[str]:
        """What speaks against a pod now, in sentences; writes nothing."""
        figures = self._ledger.figures(intent.deployment, intent.root_run or intent.run)
        return objections(self._settings, figures, intent)

    def approve(self, intent: Intent) -> Lease:
        """Enter a pod in the ledger before it is asked for.

        Raises:
            BudgetExceeded: a limit would be passed; nothing was entered.
            LedgerError: the name is in use, or the ledger cannot be used.
        """

        def check(figures: Figures) -> None:
            found = objections(self._settings, figures, intent)
            if found:
                raise BudgetExceeded(
                    f"No pod was asked for, since {intent.name} ({intent.gpu}, "
                    f"{intent.approved_usd_h:.6g} USD/h for {intent.hours:g} h) would cost more "
                    "than the budget allows:\n" + "\n".join(f"- {one}" for one in found)
                )

        return self._ledger.enter(intent, check)

    def confirm(self, name: str, pod: Pod) -> Lease:
        """Enter the pod that RunPod made for an intent, with the price that it named.

        Raises:
            BudgetExceeded: it costs more than was approved: terminate it at once (`end_pod`).
            LedgerError: it was ended meanwhile, or the lease has another pod.
        """
        lease = self._ledger.live(name, pod)
        if lease.state != "live":
            raise LedgerError(
                f"Pod {pod.id} ({name}) was taken back while it was being made: {lease.reason}. "
                "Terminate it if it is still there, and ask for another."
            )
        if costs_too_much(lease):
            reason = (
                f"it costs {lease.burn_usd_h:.6g} USD/h, {lease.approved_usd_h:.6g} were approved"
            )
            self._ledger.ending(name, reason)
            raise BudgetExceeded(
                f"Pod {pod.id} ({name}) must be terminated at once: {reason}. Prices may have "
                "changed since they were read; plan again."
            )
        return lease


def costs_too_much(lease: Lease) -> bool:
    """Whether RunPod takes more for the pod than was approved."""
    return lease.burn_usd_h > lease.approved_usd_h + TOLERANCE_USD


def objections(settings: BudgetSettings, figures: Figures, intent: Intent) -> list[str]:
    """What speaks against one more pod: a sentence for each limit that it would pass."""
    if not (math.isfinite(intent.estimate_usd) and intent.approved_usd_h > 0 < intent.hours):
        return [
            f"a price of {intent.approved_usd_h} USD/h for {intent.hours} h can be held against no "
            "budget; take a GPU that RunPod's catalogue gives a price for, and hours above 0"
        ]
    limits = [
        _Limit(
            *("pods", "those that may be live now are", figures.pods, 1, settings.pods),
            "pod" if settings.pods == 1 else "pods",
            "wait for one to end, or look for forgotten ones with `trade-pipeline pods list`",
        ),
        _Limit(
            *("hourly_usd", "live pods take", figures.burn_usd_h, intent.approved_usd_h),
            *(settings.hourly_usd, "USD an hour"),
            "wait for a pod to end, or name a cheaper GPU in `gpus`",
        ),
        _Limit(
            *("run_usd", "the run with its retries takes", figures.run_usd, intent.estimate_usd),
            *(settings.run_usd, "USD for a run"),
            "plan fewer `hours`, name a cheaper GPU in `gpus`, or allow more",
        ),
        _Limit(
            *("day_usd", "today's pods (UTC) take", figures.day_usd, intent.estimate_usd),
            *(settings.day_usd, "USD for a day"),
            "wait until midnight UTC or for pods to end before their planned hours, or allow more",
        ),
    ]
    return [one.sentence for one in limits if one.used + one.more > one.limit + TOLERANCE_USD]
