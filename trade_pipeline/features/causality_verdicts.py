"""Which feature tables look ahead: kept beside them, absent when they do not.

A blocking check stops the run that it is part of; what was found must stop later runs, too. Start
at `keep`, after a table was checked, and at `require_causal`, before one is used.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from trade_pipeline.storage import layout
from trade_pipeline.storage.documents import read_json, write_json
from trade_pipeline.storage.location import StorageError

MOST_ROWS = 100

Rows = list[dict[str, str]]


def keep(
    store: Path,
    feature_set: str,
    series: str,
    content_hash: str,
    violations: Iterable[Mapping[str, object]],
) -> None:
    """Replace what is known of a table: rows of `causality_check.CHECK_SCHEMA`, or none."""
    rows = [{name: str(value) for name, value in one.items()} for one in violations][:MOST_ROWS]
    location = layout.causal_verdict(store, feature_set, series)
    if rows:
        write_json(location, {"content_hash": content_hash, "rows": rows})
    else:
        location.path.unlink(missing_ok=True)


def standing(store: Path, feature_set: str, series: Iterable[str]) -> dict[str, Rows]:
    """What was found in the tables of these series, of those in which something was."""
    found = {}
    for key in series:
        location = layout.causal_verdict(store, feature_set, key)
        if location.path.exists():
            found[key] = read_json(location)["rows"]
    return found


def require_causal(store: Path, feature_set: str, series: str, content_hash: str) -> None:
    """Refuse a table in which something was found.

    Raises:
        StorageError: names the column, the row and what to do.
    """
    location = layout.causal_verdict(store, feature_set, series)
    if not location.path.exists():
        return
    verdict = read_json(location)
    if verdict["content_hash"] != content_hash:  # of a table that is no longer there
        return
    first = verdict["rows"][0]
    raise StorageError(
        f"features/{feature_set} of {series}: column {first['column']} failed the check `causal` "
        f"({first['kind']}, first at {first['ts']}: {first['problem']}). Correct the indicator and "
        "materialize these features again; nothing is built on them before that."
    )
