"""Finds indicators that do not ship: entry points of distributions, and files of a folder.

Nothing that a plug-in does when it is imported reaches who asks: each is tried in a process of its
own first, under a time limit, and one that fails there is listed with a sentence. What has been
imported stays so for the life of the process, until its content changes. The same holds of what a
feature set makes of one: see `parameter_problems`. Start at `load_plugins(folder)`.
"""

import hashlib
import json
import sys
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any

from trade_pipeline.features.indicator import Indicator
from trade_pipeline.features.indicators import SHIPPED
from trade_pipeline.features.plugins.importing import (
    GROUP,
    Found,
    PluginError,
    Source,
    import_indicators,
    syntax_digest,
)
from trade_pipeline.features.plugins.specification import told
from trade_pipeline.features.plugins.trying import LIMIT_S, Attempt, failures
from trade_pipeline.settings.features import IndicatorSettings


@dataclass(frozen=True)
class Known:
    """An indicator that a feature set may name.

    Attributes:
        indicator: its specification.
        origin: `shipped`, a distribution with its version, or a file.
        code: what its values depend on beside its `implementation`: the distribution's version, or
            a hash of what the file says; None of a shipped one.
        source: where it comes from; None of a shipped one.
    """

    indicator: Indicator[Any]
    origin: str = "shipped"
    code: str | None = None
    source: Source | None = None


@dataclass(frozen=True)
class Broken:
    """A plug-in, or one indicator of it, that cannot be used.

    Attributes:
        origin: a distribution with its version, or a file.
        error: why, as a clause.
        name: of the indicator, where it is known.
    """

    origin: str
    error: str
    name: str | None = None

    def __str__(self) -> str:
        return f"{self.origin}: {self.error}"


@dataclass(frozen=True)
class Plugins:
    """All known indicators by name, and what is broken.

    Attributes:
        known: the indicators.
        broken: what cannot be used.
        limit_s: most seconds for trying one at the parameters of a set.
    """

    known: Mapping[str, Known]
    broken: tuple[Broken, ...] = ()
    limit_s: float = LIMIT_S

    def suspects(self, name: str) -> tuple[Broken, ...]:
        """Broken plug-ins that may hold an indicator: those that look like it, else all."""
        near = [one for one in self.broken if name in (one.name, Path(one.origin).stem)]
        return tuple(near) or self.broken


SHIPPED_ONLY = Plugins(MappingProxyType({one.name: Known(one) for one in SHIPPED}))


@dataclass(frozen=True)
class _Loaded:
    """What came of a source."""

    found: Sequence[Found] = ()
    code: str = ""
    error: str | None = None


_LOADED: dict[Source, _Loaded] = {}
_TRIED: dict[Attempt, str | None] = {}
_LOCK = threading.Lock()


def load_plugins(folder: Path | None, limit_s: float = LIMIT_S) -> Plugins:
    """All indicators: those that ship, of installed distributions, and of drop-in files.

    Args:
        folder: of drop-in files; one that is not there holds none. None: no folder.
        limit_s: most seconds for one import, and later for one indicator at a set's parameters.
    """
    with _LOCK:
        sources, broken = _sources(folder)
        new = [one for one in sources if one not in _LOADED]
        if new:
            _LOADED.update(_load(new, limit_s))
        return replace(_gathered(sources, broken), limit_s=limit_s)


def parameter_problems(plugins: Plugins, entries: Sequence[IndicatorSettings]) -> list[str | None]:
    """What is wrong with the plug-ins among entries of feature sets at their parameters.

    Each is tried once in the life of the process, in another process, all at once where several
    are given.

    Returns:
        A clause for each entry; None where nothing is wrong, or the indicator ships or is unknown.
    """
    attempts = [_attempt(plugins.known.get(entry.name), entry) for entry in entries]
    with _LOCK:
        new = list(dict.fromkeys(one for one in attempts if one and one not in _TRIED))
        found = failures(new, plugins.limit_s)
        _TRIED.update((one, found.get(one)) for one in new)
        return [_TRIED[one] if one else None for one in attempts]


def _attempt(known: Known | None, entry: IndicatorSettings) -> Attempt | None:
    if known is None or known.source is None:
        return None
    return Attempt(known.source, entry.name, json.dumps(entry.params, default=str))


def _sources(folder: Path | None) -> tuple[list[Source], list[Broken]]:
    """Sources in order, distributions first, and files that cannot be read."""
    sources, broken = [], []
    try:
        for point in entry_points(group=GROUP):
            known = point.dist
            distribution = f"{known.name} {known.version}" if known is not None else "unknown"
            sources.append(Source("entry point", point.value, point.name, distribution))
    except Exception as error:  # metadata of any distribution may be damaged
        broken.append(Broken("installed distributions", f"cannot be listed ({told(error)})"))
    sources.sort(key=lambda one: (one.distribution, one.name))
    for path in _files(folder, broken):
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            broken.append(Broken(str(path), f"cannot be read ({error.strerror})"))
            continue
        sources.append(Source("file", str(path), digest=digest))
    return sources, broken


def _files(folder: Path | None, broken: list[Broken]) -> list[Path]:
    if folder is None:
        return []
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == ".py")
    except FileNotFoundError:
        return []
    except OSError as error:
        broken.append(Broken(str(folder), f"cannot be listed ({error.strerror})"))
        return []


def _load(sources: Sequence[Source], limit_s: float) -> dict[Source, _Loaded]:
    """Try all in a process of their own, and import here those that held there."""
    found = failures([Attempt(one) for one in sources], limit_s)
    wrong = {attempt.source: why for attempt, why in found.items()}
    return {
        one: _Loaded(error=wrong[one]) if one in wrong else _import_here(one, limit_s)
        for one in sources
    }


def _import_here(source: Source, limit_s: float) -> _Loaded:
    """Import a source in a thread: it held elsewhere, but may still not end, or exit, here."""
    outcome: list[_Loaded] = []

    def work() -> None:
        try:
            found = import_indicators(source)
            code = source.distribution
            if source.kind == "file":
                code = f"source {syntax_digest(Path(source.where).read_bytes())}"
            outcome.append(_Loaded(found, code))
        except BaseException as error:
            why = str(error) if isinstance(error, PluginError) else told(error)
            outcome.append(_Loaded(error=why))

    thread = threading.Thread(target=work, name=f"import of {source.origin}", daemon=True)
    # What it prints would stand among what our commands print.
    with redirect_stdout(sys.stderr):
        thread.start()
        thread.join(limit_s)
    if not outcome:
        return _Loaded(error=f"importing it does not end within {limit_s:.0f} s")
    return outcome[0]


def _gathered(sources: Sequence[Source], broken: Sequence[Broken]) -> Plugins:
    """Indicators by name; a name that two give is known of neither, and shipped ones stay."""
    failures = list(broken)
    given: dict[str, list[Known]] = defaultdict(list)
    seen = {id(one) for one in SHIPPED}  # a plug-in may import what others define
    for source in sources:
        loaded = _LOADED[source]
        if loaded.error is not None:
            failures.append(Broken(source.origin, loaded.error))
        for indicator, problem in loaded.found:
            if id(indicator) in seen:
                continue
            seen.add(id(indicator))
            if problem is not None:
                name = indicator.name if isinstance(indicator.name, str) else None
                label = "an indicator" if name is None else f"indicator {name!r}"
                failures.append(Broken(source.origin, f"{label}: {problem}", name))
            else:
                given[indicator.name].append(Known(indicator, source.origin, loaded.code, source))
    known = dict(SHIPPED_ONLY.known)
    for name, claims in given.items():
        for position, claim in enumerate(claims):
            others = [other.origin for at, other in enumerate(claims) if at != position]
            if name in SHIPPED_ONLY.known:
                why = f"indicator {name!r} has the name of one that ships; rename it"
            elif others:
                why = f"indicator {name!r} is given by {others[0]} too; rename one of them"
            else:
                known[name] = claim
                continue
            failures.append(Broken(claim.origin, why, name))
    return Plugins(MappingProxyType(known), tuple(failures))
