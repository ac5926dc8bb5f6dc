"""The lease ledger: every pod that was ever asked for, who for, and what it cost.

A lease is written before a pod is asked for, so that a process killed at any moment leaves a trace
of what it may have made. One SQLite file for all processes of a host: each change is one
transaction, and each is kept in a history that nothing rewrites. With SQLite's rollback journal
rather than its WAL: a change is a few rows a pod, and nothing lies in a second file.

Knows no HTTP and no limits: those are `budget`'s. Start at `Ledger`; `lease` draws the states.
"""

import math
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import fields
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from trade_pipeline.compute.runpod.api import Pod
from trade_pipeline.compute.runpod.errors import RunPodError
from trade_pipeline.compute.runpod.lease import Figures, Intent, Lease, Transition, cost_usd

SCHEMA = 1  # number of the tables below; a newer one is refused
BUSY_S = 30.0  # a change waits for others' so long
OPEN = "state IN ('intent', 'live', 'ending')"
TABLES = (
    """CREATE TABLE lease (
        name TEXT PRIMARY KEY, job TEXT NOT NULL, run TEXT NOT NULL, root_run TEXT NOT NULL,
        deployment TEXT NOT NULL, gpu TEXT NOT NULL,
        approved_usd_h REAL NOT NULL, hours REAL NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('intent', 'live', 'ending', 'ended', 'void')),
        reason TEXT NOT NULL, asked_ms INTEGER NOT NULL,
        pod_id TEXT UNIQUE, rate_usd_h REAL, began_ms INTEGER, ended_ms INTEGER, cost_usd REAL,
        CHECK ((state IN ('intent', 'void')) = (pod_id IS NULL)),
        CHECK ((state = 'ended') = (cost_usd IS NOT NULL))
    ) STRICT""",
    "CREATE INDEX lease_of_job ON lease (job)",
    "CREATE INDEX lease_of_run ON lease (root_run)",
    """CREATE TABLE history (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL, state TEXT NOT NULL,
        entered_ms INTEGER NOT NULL, run TEXT NOT NULL, pod_id TEXT, reason TEXT NOT NULL
    ) STRICT""",
    """CREATE TRIGGER history_stays BEFORE UPDATE ON history
       BEGIN SELECT RAISE(ABORT, 'history is only added to'); END""",
    """CREATE TRIGGER history_is_kept BEFORE DELETE ON history
       BEGIN SELECT RAISE(ABORT, 'history is only added to'); END""",
)


class LedgerError(RunPodError):
    """The ledger cannot be read or written, or it was told what cannot be."""


class Ledger:
    """The leases of one file, for any number of threads and processes.

    Each method is a transaction of its own and raises `LedgerError` where the file is none of ours,
    damaged or written by a newer version. Times of the ledger are whole milliseconds.

    Args:
        path: SQLite file on a disk of this host; made where there is none.
        clock: the time, aware.
    """

    def __init__(self, path: Path, clock: Callable[[], datetime]) -> None:
        self.path = path
        self._clock = clock
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._transaction():
            pass

    # Changes.

    def enter(self, intent: Intent, check: Callable[[Figures], None]) -> Lease:
        """Write an intent if `check` raises nothing; no other change comes between the two.

        Raises:
            LedgerError: the name is in use already.
            Exception: what `check` raises; then nothing is written.
        """
        with self._transaction() as connection:
            known = _lease(connection, intent.name)
            if known is not None and known.state != "void":
                raise LedgerError(
                    f"{self.path}: pod {intent.name} was asked for already and is {known.state}; "
                    "take the next attempt's number for another pod."
                )
            check(self._figures(connection, intent.deployment, intent.root_run or intent.run))
            columns = {field.name: getattr(intent, field.name) for field in fields(Intent)}
            columns["root_run"] = intent.root_run or intent.run
            columns |= {"state": "intent", "reason": "", "asked_ms": _ms(self._clock())}
            return self._write(connection, columns)

    def live(self, name: str, pod: Pod) -> Lease:
        """The pod was made. Says nothing new of one that lives, goes or is gone already.

        Raises:
            LedgerError: no lease has this name, or it has another pod, or the pod another lease.
        """
        with self._transaction() as connection:
            lease = self._expect(connection, name)
            if lease.pod_id == pod.id:
                return lease
            if lease.pod_id is not None:
                raise LedgerError(
                    f"{self.path}: lease {name} has pod {lease.pod_id}, and now pod {pod.id} too; "
                    "terminate the second."
                )
            return self._write(connection, {"name": name, **self._of_pod(connection, pod, lease)})

    def again(self, name: str, reason: str) -> Lease:
        """A pod that was taken for gone is there: its lease is open again and goes on costing."""
        with self._transaction() as connection:
            lease = self._expect(connection, name)
            if lease.state != "ended":
                return lease
            columns = {"state": "live", "reason": reason, "ended_ms": None, "cost_usd": None}
            return self._write(connection, {"name": name, **columns})

    def stray(self, pod: Pod, deployment: str) -> Lease:
        """Enter a pod that no lease knows, so that its cost counts; nobody's run waits for it."""
        with self._transaction() as connection:
            known = _leases(connection, "pod_id = ?", pod.id)
            if known:
                return known[0]
            taken = _lease(connection, pod.name) is not None
            columns: dict[str, Any] = {
                "name": f"{pod.name}~{pod.id}" if taken else pod.name,
                "deployment": deployment,
                "asked_ms": _ms(self._clock()),
                "approved_usd_h": pod.cost_usd_h,
                "hours": 0.0,
                **dict.fromkeys(("job", "run", "root_run", "gpu"), ""),
            }
            return self._write(connection, columns | self._of_pod(connection, pod, None))

    def take_over(self, name: str, run: str) -> Lease:
        """Another run waits for the pod from now on, such as the retry of one that was killed.

        Raises:
            LedgerError: the pod is on its way out or gone.
        """
        with self._transaction() as connection:
            lease = self._expect(connection, name)
            if lease.state not in ("intent", "live"):
                raise LedgerError(
                    f"{self.path}: run {run} cannot take over pod {name}, which is {lease.state} "
                    f"({lease.reason}); ask for a new pod."
                )
            return self._write(connection, {"name": name, "run": run})

    def ending(self, name: str, reason: str, run: str | None = None) -> Lease:
        """The pod is about to be terminated; a lease that goes or is closed stays as it is.

        Args:
            name: of the lease.
            reason: why.
            run: only if this run still waits for it: else the lease stays as it is, still live.
        """
        with self._transaction() as connection:
            lease = self._expect(connection, name)
            if lease.state != "live" or (run is not None and lease.run != run):
                return lease
            return self._write(connection, {"name": name, "state": "ending", "reason": reason})

    def ended(self, name: str, reason: str, at: datetime) -> Lease:
        """The pod is gone since `at`; writes what it cost. One that ended before stays as it is."""
        with self._transaction() as connection:
            lease = self._expect(connection, name)
            if lease.state not in ("live", "ending"):
                return lease
            assert lease.began_at is not None  # as for every lease that has a pod
            end = max(_time(_ms(at)), lease.began_at)
            columns = {"name": name, "state": "ended", "reason": lease.reason or reason}
            cost = cost_usd(lease.burn_usd_h, lease.began_at, end)
            return self._write(connection, {**columns, "ended_ms": _ms(end), "cost_usd": cost})

    def void(self, name: str, reason: str) -> Lease:
        """No pod came of an intent. A lease that has a pod by now stays as it is."""
        with self._transaction() as connection:
            lease = self._expect(connection, name)
            if lease.state != "intent":
                return lease
            return self._write(connection, {"name": name, "state": "void", "reason": reason})

    # Questions.

    def lease(self, name: str) -> Lease | None:
        """The lease of this name, or None."""
        with self._transaction() as connection:
            return _lease(connection, name)

    def of_pod(self, pod_id: str) -> Lease | None:
        """The lease of this pod, or None."""
        found = self._where("pod_id = ?", pod_id)
        return found[0] if found else None

    def of_job(self, job: str) -> list[Lease]:
        """All leases of a job, oldest first."""
        return self._where("job = ?", job)

    def of_run(self, run: str) -> list[Lease]:
        """All leases that a run pays or waits for, oldest first."""
        return self._where("root_run = ? OR run = ?", run, run)

    def leases(self) -> list[Lease]:
        """All leases, oldest first."""
        return self._where("TRUE")

    def open(self, deployment: str) -> list[Lease]:
        """Leases of a deployment that may cost money still, oldest first."""
        return self._where(f"{OPEN} AND deployment = ?", deployment)

    def burn_usd_h(self, deployment: str) -> float:
        """Dollars an hour of a deployment's open leases."""
        return math.fsum(lease.burn_usd_h for lease in self.open(deployment))

    def spent_of_run(self, root_run: str) -> float:
        """Dollars counted for a run with its retries: costs, and estimates of what is open."""
        with self._transaction() as connection:
            return self._spent_of_run(connection, root_run)

    def spent_of_day(self, deployment: str, day: date) -> float:
        """Dollars counted for a UTC day: a lease counts when it ends, and all the time before.

        So each cost stands in one day, and no day costs more than was approved for it.
        """
        with self._transaction() as connection:
            return self._spent_of_day(connection, deployment, day)

    def figures(self, deployment: str, root_run: str) -> Figures:
        """What a budget looks at, now."""
        with self._transaction() as connection:
            return self._figures(connection, deployment, root_run)

    def history(self, name: str | None = None) -> list[Transition]:
        """Every change of one lease, or of all, in the order in which they came."""
        columns = "name, state, entered_ms, run, pod_id, reason"
        query = f"SELECT {columns} FROM history WHERE name = ?1 OR ?1 IS NULL ORDER BY id"
        with self._transaction() as connection:
            rows = connection.execute(query, [name])
            return [Transition(**_with_times(row)) for row in rows]

    # Inside a transaction.

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing of what happens inside; a connection each, so a fork shares none."""
        try:
            connection = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)
            with closing(connection):  # which takes back what is not committed
                connection.row_factory = sqlite3.Row
                connection.execute("PRAGMA synchronous = EXTRA")  # also after a power loss
                connection.execute("BEGIN IMMEDIATE")
                self._fit(connection)
                yield connection
                connection.execute("COMMIT")
        except sqlite3.OperationalError as error:
            raise LedgerError(
                f"{self.path}: the lease ledger cannot be used now ({error}); no pod is asked for "
                "without it. Look at the disk's space and permissions, and at who holds the file."
            ) from error
        except sqlite3.DatabaseError as error:
            raise LedgerError(
                f"{self.path}: this is no readable lease ledger ({error}). Terminate pods named "
                "tp-... in RunPod's console, then move the file away; a new ledger begins empty."
            ) from error

    def _fit(self, connection: sqlite3.Connection) -> None:
        """Make the tables in an empty file. Raises `LedgerError` where they are not ours."""
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == SCHEMA:
            return
        if version > SCHEMA:
            raise LedgerError(
                f"{self.path}: the lease ledger was written by a newer trade_pipeline (schema "
                f"{version}, this one knows {SCHEMA}); update trade_pipeline."
            )
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise LedgerError(
                f"{self.path}: this SQLite file is no lease ledger; give the ledger another path."
            )
        for table in TABLES:
            connection.execute(table)
        connection.execute(f"PRAGMA user_version = {SCHEMA}")

    def _where(self, condition: str, *values: str) -> list[Lease]:
        with self._transaction() as connection:
            return _leases(connection, condition, *values)

    def _expect(self, connection: sqlite3.Connection, name: str) -> Lease:
        found = _lease(connection, name)
        if found is None:
            raise LedgerError(
                f"{self.path}: no lease is named {name}; enter the intent before the pod is made."
            )
        return found

    def _of_pod(
        self, connection: sqlite3.Connection, pod: Pod, lease: Lease | None
    ) -> dict[str, Any]:
        """Columns of a lease whose pod is this."""
        for other in _leases(connection, "pod_id = ?", pod.id):
            raise LedgerError(
                f"{self.path}: pod {pod.id} belongs to lease {other.name} already; "
                "one pod cannot be paid by two."
            )
        # A pod without a price is not free: it counts with what was approved.
        rate = pod.cost_usd_h if pod.cost_usd_h > 0 or lease is None else lease.approved_usd_h
        columns = {"state": "live", "pod_id": pod.id, "rate_usd_h": rate, "reason": ""}
        return {**columns, "began_ms": _ms(pod.created_at)}

    def _write(self, connection: sqlite3.Connection, columns: dict[str, Any]) -> Lease:
        """Insert or update the named columns of the lease `name`, and add to the history."""
        names, marks = ", ".join(columns), ", ".join(f":{column}" for column in columns)
        changes = ", ".join(f"{column} = :{column}" for column in columns)
        if _lease(connection, columns["name"]) is None:
            connection.execute(f"INSERT INTO lease ({names}) VALUES ({marks})", columns)
        else:
            connection.execute(f"UPDATE lease SET {changes} WHERE name = :name", columns)
        connection.execute(
            "INSERT INTO history (name, state, entered_ms, run, pod_id, reason) "
            "SELECT name, state, ?, run, pod_id, reason FROM lease WHERE name = ?",
            [_ms(self._clock()), columns["name"]],
        )
        return self._expect(connection, columns["name"])

    def _figures(self, connection: sqlite3.Connection, deployment: str, root_run: str) -> Figures:
        opened = _leases(connection, f"{OPEN} AND deployment = ?", deployment)
        today = self._clock().astimezone(UTC).date()
        return Figures(
            pods=len(opened),
            burn_usd_h=math.fsum(lease.burn_usd_h for lease in opened),
            run_usd=self._spent_of_run(connection, root_run),
            day_usd=self._spent_of_day(connection, deployment, today),
        )

    def _spent_of_run(self, connection: sqlite3.Connection, root_run: str) -> float:
        now = self._clock()
        paid = _leases(connection, "root_run = ?", root_run)
        return math.fsum(lease.counted_usd(now) for lease in paid)

    def _spent_of_day(self, connection: sqlite3.Connection, deployment: str, day: date) -> float:
        start = _ms(datetime(day.year, day.month, day.day, tzinfo=UTC))
        end = start + timedelta(days=1) // timedelta(milliseconds=1)
        ended = "(state = 'ended' AND ended_ms >= ? AND ended_ms < ?)"
        condition = f"deployment = ? AND ({ended} OR ({OPEN} AND asked_ms < ?))"
        found = _leases(connection, condition, deployment, start, end, end)
        now = self._clock()
        return math.fsum(lease.counted_usd(now) for lease in found)


def _leases(connection: sqlite3.Connection, condition: str, *values: str | int) -> list[Lease]:
    query = f"SELECT * FROM lease WHERE {condition} ORDER BY asked_ms, rowid"
    return [Lease(**_with_times(row)) for row in connection.execute(query, values)]


def _lease(connection: sqlite3.Connection, name: str) -> Lease | None:
    found = _leases(connection, "name = ?", name)
    return found[0] if found else None


def _with_times(row: sqlite3.Row) -> dict[str, Any]:
    """A row by column, where `x_ms` becomes the time `x_at`."""
    return {
        key.replace("_ms", "_at"): _time(value) if key.endswith("_ms") else value
        for key, value in zip(row.keys(), row, strict=True)
    }


def _ms(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def _time(ms: int | None) -> Any:
    return None if ms is None else datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
