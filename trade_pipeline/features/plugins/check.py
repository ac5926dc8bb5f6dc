"""Checks a plug-in before anyone relies on it: `trade-pipeline indicators check`.

Everything of the plug-in runs in processes of its own, under a time limit; whatever happens there
becomes a line of the report. What is tried inside such a process stands in `trial`. Start at
`check_plugin`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trade_pipeline.features.plugins.importing import Source
from trade_pipeline.features.plugins.process import Ended, run_child

LIMIT_S = 60.0
THREADS = ("1", "4")  # values of POLARS_MAX_THREADS that must give the same bits
TRIAL = "trade_pipeline.features.plugins.trial"
MOST_SHOWN = 120

Verdict = Literal["holds", "warns", "fails"]


@dataclass(frozen=True)
class Line:
    """One finding.

    Attributes:
        indicator: its name; empty where the plug-in as a whole is meant.
        check: what was tried.
        verdict: of it; a warning fails nothing.
        detail: what was found.
    """

    indicator: str
    check: str
    verdict: Verdict
    detail: str

    def __str__(self) -> str:
        opening = f"{self.indicator}: " if self.indicator else ""
        return f"{opening}{self.check} {self.verdict}: {self.detail}"


def passed(lines: Sequence[Line]) -> bool:
    """Whether nothing fails."""
    return all(line.verdict != "fails" for line in lines)


def check_plugin(
    target: str,
    parameters: Mapping[str, Any],
    only: str | None = None,
    limit_s: float = LIMIT_S,
) -> list[Line]:
    """Check every indicator of a module or file.

    Args:
        target: name of a module, or path of a `.py` file.
        parameters: in place of defaults; for one indicator, so name it where there are several.
        only: name of the one indicator to check; None: all.
        limit_s: most seconds of each process, from when it has started.
    """
    source = _source(target)
    if isinstance(source, Line):
        return [source]
    ended = run_child(f"{TRIAL}:list_indicators", {"source": source}, limit_s)
    if not ended.reports:
        return [*_printed("", ended), _ended_early("", "import", ended, limit_s)]
    said = ended.reports[0]
    if said.get("error") is not None:
        return [*_printed("", ended), Line("", "import", "fails", f"{said['error']}.")]
    names: list[str] = said["names"]
    if only is not None and only not in names:
        return [Line("", "import", "fails", f"it has no indicator {only!r}, but {_list(names)}.")]
    chosen = [at for at, name in enumerate(names) if only in (None, name)]
    if parameters and len(chosen) > 1:
        detail = f"parameters are for one indicator; choose one of {_list(names)}."
        return [Line("", "import", "fails", detail)]
    lines = [*_printed("", ended), Line("", "import", "holds", f"it gives {_list(names)}.")]
    lines += [Line("", "import", "warns", f"{left}.") for left in said["left"]]
    for at in chosen:
        job = {"source": source, "position": at, "parameters": dict(parameters)}
        lines += _check_one(names[at], job, limit_s)
    return lines


def _check_one(name: str, job: dict[str, Any], limit_s: float) -> list[Line]:
    """All that is tried on one indicator."""
    ended = run_child(f"{TRIAL}:try_indicator", job, limit_s)
    lines = [Line(name, *said["line"]) for said in ended.reports if "line" in said]
    at = next((said["at"] for said in reversed(ended.reports) if "at" in said), "specification")
    lines += _printed(name, ended)
    if at != "end":
        return [*lines, _ended_early(name, at, ended, limit_s)]
    if passed(lines):
        digests = {said["digest"] for said in ended.reports if "digest" in said}
        lines.append(_threads(name, job, limit_s, digests))
    return lines


def _threads(name: str, job: dict[str, Any], limit_s: float, digests: set[str]) -> Line:
    """Whether the bits are the same in other processes, whatever the number of threads."""
    for threads in THREADS:
        ended = run_child(
            f"{TRIAL}:digest_of", job, limit_s, environment={"POLARS_MAX_THREADS": threads}
        )
        found = {said["digest"] for said in ended.reports if "digest" in said}
        if not found:
            return _ended_early(name, "threads", ended, limit_s)
        digests |= found
        if len(digests) > 1:
            detail = (
                f"another process with POLARS_MAX_THREADS={threads} gives other bits from the same "
                "bars; avoid polars' sums, means and rolling functions of floats, unseeded "
                "randomness and the clock."
            )
            return Line(name, "threads", "fails", detail)
    detail = f"same bits in other processes with POLARS_MAX_THREADS {' and '.join(THREADS)}."
    return Line(name, "threads", "holds", detail)


def _source(target: str) -> Source | Line:
    path = Path(target)
    if not (target.endswith(".py") or path.is_file() or len(path.parts) > 1):
        return Source("module", target)
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        return Line("", "import", "fails", f"{target} cannot be read ({error.strerror}).")
    return Source("file", str(path.resolve()), digest=digest)


def _ended_early(name: str, at: str, ended: Ended, limit_s: float) -> Line:
    if not ended.ready:
        detail = f"the process for trying {ended}: {ended.printed.strip()[-300:]}"
    elif ended.out_of_time:
        detail = (
            f"all that was tried did not end within {limit_s:g} s and was stopped here; a plug-in "
            "that loops and one that is slow read the same, so give a slow one more seconds with "
            "--limit."
        )
    else:
        detail = f"the plug-in {ended} here, so nothing further was tried."
    return Line(name, at, "fails", detail)


def _printed(name: str, ended: Ended) -> list[Line]:
    """What a library has no business to print."""
    if not ended.printed_bytes or not ended.ready:
        return []
    begins = " ".join(ended.printed.split())[:MOST_SHOWN]
    detail = f"it printed {ended.printed_bytes:,} bytes, beginning {begins!r}."
    return [Line(name, "output", "warns", detail)]


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)
