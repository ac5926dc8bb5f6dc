"""What follows new bars by itself: the project's automation condition and the sensor behind it.

`AutomationCondition.eager()` waits for ever when an upstream partition is missing, and years of a
series may be. Dagster's own conditions for changed data compare with the last tick: they do not see
what changed while the sensor was off, and take the version that the partitions of a range share for
a moment (see `checks`) for a change. So these read the event log and remember nothing.
Start at `follows_bars` and `follows_manifest`.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set

import dagster as dg
from dagster._core.definitions.data_version import extract_data_provenance_from_entry

INTERVAL_S = 60

Condition = dg.AutomationCondition[dg.AssetKey]


def follows_bars() -> Condition:
    """True for a series of which the asset is missing or was made from other bars.

    It waits while an import of the series runs and while the series has no bar. It asks once:
    after a failed run it waits until the series was imported again.
    """
    condition = (
        InputsChanged()
        & Untried()
        & dg.AutomationCondition.any_deps_match(HasRows())
        & ~dg.AutomationCondition.in_progress()
        & ~dg.AutomationCondition.any_deps_in_progress()
    )
    return condition.with_label("follows_bars")


def follows_manifest(manifest: dg.AssetsDefinition) -> Condition:
    """As `follows_bars`, in one run with the manifest or after it: never beside an older one."""
    outdated = InputsChanged() & ~dg.AutomationCondition.will_be_requested()
    only_manifest = dg.AssetSelection.assets(manifest)
    return follows_bars() & ~dg.AutomationCondition.any_deps_match(outdated).allow(only_manifest)


def build_follower(followers: Sequence[dg.AssetsDefinition]) -> dg.SensorDefinition:
    """The sensor that evaluates the conditions of these assets; off until somebody turns it on."""
    return dg.AutomationConditionSensorDefinition(
        "follow_new_bars",
        target=dg.AssetSelection.assets(*followers),
        minimum_interval_seconds=INTERVAL_S,
        use_user_code_server=True,  # the daemon does not know conditions of our own
        emit_backfills=False,  # one run a series: one that fails does not take others with it
        description="Makes manifest and features of every series whose bars have changed.",
    )


class _EventLogCondition(dg.AutomationCondition[dg.AssetKey]):
    """A condition that the event log decides, for all candidates at once."""

    @property
    def requires_cursor(self) -> bool:
        """Whether something is kept from tick to tick."""
        return False

    def evaluate(
        self, context: dg.AutomationContext[dg.AssetKey]
    ) -> dg.AutomationResult[dg.AssetKey]:
        """Those of the candidates for which it holds."""
        candidates = context.candidate_subset
        held = self._held(_EventLog(context), candidates.expensively_compute_partition_keys())
        return dg.AutomationResult(
            context, candidates.compute_intersection_with_partition_keys(held)
        )

    @abstractmethod
    def _held(self, log: "_EventLog", partitions: Set[str]) -> set[str]: ...


class InputsChanged(_EventLogCondition):
    """What Dagster calls missing or stale, changes of code aside.

    A change counts when the run that made it has ended; until then the partitions of a range
    share one data version.
    """

    @property
    def description(self) -> str:
        """Shown in the web UI."""
        return "Missing, or made from other data than its inputs hold now"

    def _held(self, log: "_EventLog", partitions: Set[str]) -> set[str]:
        made = log.latest(log.key, partitions)
        changed = {one: log.changed_inputs(one, made.get(one)) for one in partitions}
        unsettled = log.unsettled({one for found in changed.values() for one in found})
        return {one for one, found in changed.items() if found and not found & unsettled}


class Untried(_EventLogCondition):
    """No run set out to make it since one of its inputs was last materialized."""

    @property
    def description(self) -> str:
        """Shown in the web UI."""
        return "Not tried since its inputs were last materialized"

    def _held(self, log: "_EventLog", partitions: Set[str]) -> set[str]:
        planned = log.positions(log.key, dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED)
        return {one for one in partitions if planned.get(one, 0) < log.newest_input(one)}


class HasRows(_EventLogCondition):
    """Its latest materialization stored a row."""

    @property
    def description(self) -> str:
        """Shown in the web UI."""
        return "Holds at least one row"

    def _held(self, log: "_EventLog", partitions: Set[str]) -> set[str]:
        held = set()
        for partition, record in log.latest(log.key, partitions).items():
            event = record.asset_materialization
            rows = event.metadata.get("dagster/row_count") if event else None
            if rows is not None and rows.value != 0:
                held.add(partition)
        return held


Input = tuple[dg.AssetKey, str]  # an upstream asset's partition


class _EventLog:
    """What the conditions ask of the event log about one asset and its inputs."""

    def __init__(self, context: dg.AutomationContext[dg.AssetKey]) -> None:
        self.key = context.key
        self._view = context.asset_graph_view
        self._instance = self._view.instance
        self._positions: dict[tuple[dg.AssetKey, dg.DagsterEventType], Mapping[str, int]] = {}

    def positions(
        self,
        key: dg.AssetKey,
        kind: dg.DagsterEventType = dg.DagsterEventType.ASSET_MATERIALIZATION,
    ) -> Mapping[str, int]:
        """Where in the log the latest event of each partition stands."""
        if (key, kind) not in self._positions:
            found = self._instance.get_latest_storage_id_by_partition(key, kind)
            self._positions[key, kind] = found
        return self._positions[key, kind]

    def latest(self, key: dg.AssetKey, partitions: Iterable[str]) -> dict[str, dg.EventLogRecord]:
        """The latest materialization of those partitions that have one."""
        positions = self.positions(key)
        wanted = [positions[one] for one in partitions if one in positions]
        if not wanted:
            return {}
        records = self._instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=key, storage_ids=wanted), limit=len(wanted)
        ).records
        return {str(one.partition_key): one for one in records}

    def newest_input(self, partition: str) -> int:
        """Where in the log the latest materialization of an input stands."""
        return max((self.positions(key)[one] for key, one in self._inputs(partition)), default=0)

    def changed_inputs(self, partition: str, made: dg.EventLogRecord | None) -> set[Input]:
        """Inputs that were materialized since it was made, and hold other data than then."""
        provenance = extract_data_provenance_from_entry(made.event_log_entry) if made else None
        seen = provenance.input_storage_ids if provenance else {}
        by_key: dict[dg.AssetKey, list[str]] = {}
        for key, one in self._inputs(partition):
            by_key.setdefault(key, []).append(one)
        changed = set()
        for key, ones in by_key.items():
            since = seen.get(key) or 0
            if max(self.positions(key)[one] for one in ones) > since:
                # The event log's own question behind Dagster's staleness.
                versions = self._instance.event_log_storage
                found = versions.get_updated_data_version_partitions(key, ones, since)
                changed |= {(key, one) for one in found}
        return changed

    def unsettled(self, inputs: Set[Input]) -> set[Input]:
        """Those that were materialized last by a run that has not ended."""
        found = set()
        for key in {key for key, _ in inputs}:
            records = self.latest(key, [one for of, one in inputs if of == key])
            running = {run for run in {one.run_id for one in records.values()} if self._runs(run)}
            found |= {(key, one) for one, record in records.items() if record.run_id in running}
        return found

    def _runs(self, run_id: str) -> bool:
        run = self._instance.get_run_by_id(run_id)
        return run is not None and not run.is_finished

    def _inputs(self, partition: str) -> Iterator[Input]:
        """Partitions that it is made from, as far as they were materialized."""
        whole = self._view.get_full_subset(key=self.key)
        subset = whole.compute_intersection_with_partition_keys({partition})
        for key in self._view.asset_graph.get(self.key).parent_keys:
            for one in subset.compute_parent_subset(key).expensively_compute_partition_keys():
                if one in self.positions(key):
                    yield key, one
