"""Everything of a report as one zip that needs neither the store nor this package to be read.

What a report shows is found by the versions in its `provenance.json`, never by what is current.
Each bundle is verified, and each byte hashed once more on its way into the zip. Start at
`pack_report`.
"""

import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trade_pipeline.backtest import leaderboard
from trade_pipeline.backtest.export.sources import (
    PROVENANCE,
    SPECIFICATION,
    Made,
    ReportProvenance,
    SourceError,
    key_of,
    median_trials,
    report_provenance,
    verified,
)
from trade_pipeline.settings.base import yaml_text
from trade_pipeline.settings.code_version import canonical_json
from trade_pipeline.storage import bundles
from trade_pipeline.storage.archives import timeless
from trade_pipeline.storage.documents import read_json
from trade_pipeline.storage.frames import read_frame
from trade_pipeline.storage.location import ArtifactLocation

SUMS = "SHA256SUMS"
_CHUNK_BYTES = 2**20
_TABLES = (".csv", ".json")  # of a backtest; its parquet files and its page hold nothing else


@dataclass(frozen=True)
class PackedReport:
    """What lies in the zip: trials whose backtests, and trials whose policies."""

    backtests: tuple[str, ...]
    policies: tuple[str, ...]


def pack_report(report: ArtifactLocation, archive: Path, all_trials: bool = False) -> PackedReport:
    """Write a report with all that it was made from as one zip: the same bytes each time.

    Args:
        report: folder of one version of a report.
        archive: the file to write.
        all_trials: pack the policy of every trial, not only of each variant's median seed.

    Raises:
        SourceError: a version that the report names is no longer stored.
        BundleError: a byte of a bundle was changed.
        SettingsError: this code refuses the settings that were recorded.
    """
    itself = Made(key=key_of(report), version=report.path.name)
    verified(itself, report.store, itself.key)
    made = report_provenance(report)
    settings = made.experiment_settings()
    trials = tuple(settings.trials()) if all_trials else median_trials(report, settings)
    packed = PackedReport(tuple(made.backtests), trials)
    _require_named(itself, made, packed)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        target = _Zip(opened, report.store, itself.key)
        target.content("README.txt", _readme(itself, made, packed).encode())
        policies = {
            trial: target.bundle(f"policies/{trial}", made.policies[trial])
            for trial in packed.policies
        }
        for trial in packed.backtests:
            target.bundle(f"backtests/{trial}", made.backtests[trial], _TABLES)
        target.bundle("report", itself)
        table = io.BytesIO()
        read_frame(report.child(leaderboard.MEMBER)).write_csv(table)
        target.content("leaderboard.csv", table.getvalue())
        recorded = {trial: read_json(where.child(PROVENANCE)) for trial, where in policies.items()}
        for name, text in _configuration(made, recorded).items():
            target.content(name, text.encode())
        document = _provenance(itself, made, policies, recorded)
        target.content(PROVENANCE, (canonical_json(document) + "\n").encode())
        sums = "".join(f"{digest}  {name}\n" for name, digest in sorted(target.sums.items()))
        target.content(SUMS, sums.encode())
    return packed


class _Zip:
    """A zip that grows, and the SHA-256 of each member so far."""

    def __init__(self, opened: zipfile.ZipFile, store: Path, wanted_by: str) -> None:
        self.sums: dict[str, str] = {}
        self._opened, self._store, self._wanted_by = opened, store, wanted_by

    def content(self, name: str, content: bytes) -> None:
        """Add a member from memory."""
        entry = timeless(name, len(content), zipfile.ZIP_DEFLATED)
        self._opened.writestr(entry, content)
        self.sums[name] = hashlib.sha256(content).hexdigest()

    def bundle(
        self, folder: str, made: Made, only: tuple[str, ...] | None = None
    ) -> ArtifactLocation:
        """Add a verified bundle: whole, or members whose names end so; returns its location."""
        location, hashes = verified(made, self._store, self._wanted_by)
        for name, digest in sorted(hashes.items()):
            if only is None or name.endswith(only):
                self._member(f"{folder}/{name}", location, name, digest)
        if only is None:  # with every member beside it, it can be verified by its index
            index = location.child(bundles.INDEX).path.read_bytes()
            self.content(f"{folder}/{bundles.INDEX}", index)
        return location

    def _member(self, name: str, location: ArtifactLocation, member: str, expected: str) -> None:
        path, digest = location.path / member, hashlib.sha256()
        entry = timeless(name, path.stat().st_size, zipfile.ZIP_DEFLATED)
        with path.open("rb") as source, self._opened.open(entry, "w") as target:
            while chunk := source.read(_CHUNK_BYTES):
                digest.update(chunk)
                target.write(chunk)
        if digest.hexdigest() != expected:
            raise SourceError(
                f"{location}: member {member!r} was changed while it was packed; export again."
            )
        self.sums[name] = expected


def _require_named(itself: Made, made: ReportProvenance, packed: PackedReport) -> None:
    for trial in packed.policies:
        if trial not in made.policies or trial not in made.backtests:
            raise SourceError(
                f"{itself.key} version {itself.version}: {PROVENANCE} names no policy or no "
                f"backtest of trial {trial}; materialize {itself.key} again."
            )


def _configuration(
    made: ReportProvenance, recorded: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """Files as `configs/` has them, with what was in force; series and features if recorded."""
    contents = {f"experiments/{made.experiment}": made.settings}
    recipe = next((one["recipe"] for one in recorded.values() if one.get("recipe")), None)
    if recipe is not None:
        contents[f"features/{made.settings['features']}"] = recipe["feature_set"]
        contents["series"] = {"series": recipe["series"]}
    return {f"configs/{name}.yaml": yaml_text(content) for name, content in contents.items()}


def _provenance(
    itself: Made,
    made: ReportProvenance,
    policies: Mapping[str, ArtifactLocation],
    recorded: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Versions and hashes of everything the report rests on, down to the bars."""
    trained = {}
    for trial, location in policies.items():
        specification = read_json(location.child(SPECIFICATION))
        trained[trial] = {
            "commit": recorded[trial].get("commit"),
            **{
                key: specification.get(key)
                for key in ("seed", "fold", "threads", "versions", "implementations")
            },
        }
    return {
        "experiment": made.experiment,
        "report": itself.model_dump(),
        "shown": made.shown.model_dump(),
        "dataset": made.dataset.model_dump(),
        "inputs": made.inputs,
        "implementations": made.implementations,
        "backtests": {trial: one.model_dump() for trial, one in made.backtests.items()},
        "policies": {
            trial: {**one.model_dump(), "packed": trial in policies, **trained.get(trial, {})}
            for trial, one in made.policies.items()
        },
    }


def _readme(itself: Made, made: ReportProvenance, packed: PackedReport) -> str:
    left_out = [trial for trial in made.policies if trial not in packed.policies]
    said = "" if not left_out else f", not of {', '.join(left_out)} (export with --all-trials)"
    return f"""\
Report of experiment {made.experiment}: {itself.key}, version {itself.version}

report/              the whole report; open report.html in any browser, no network is needed.
                     metrics.json: every figure of every policy (by seed) and baseline;
                     leaderboard.parquet: a row a policy (its median seed) and baseline
leaderboard.csv      the same leaderboard
configs/             the settings in force, as files of a configs folder
backtests/<trial>/   CSV tables (equity, orders, fills, trades, by year and month, rolling),
                     metrics.json, summary.json; of {", ".join(packed.backtests)}
policies/<trial>/    whole policy bundles, with job.log of the training and how it learned;
                     of {", ".join(packed.policies)}{said}
provenance.json      versions and hashes of data, code and packages behind all of it
{SUMS}           every file's hash: sha256sum --check {SUMS}

A trial is <variant>.f<fold>.s<seed>. Times are UTC. Undefined figures are null or empty, with the
reason in metrics.json.

With trade_pipeline installed, a policy is verified and taken into another store by
    trade-pipeline bundle verify policies/<trial>
    trade-pipeline bundle import policies/<trial> --as imported/<name>
"""
