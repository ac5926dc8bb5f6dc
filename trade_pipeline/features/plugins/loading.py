"""Finds indicators that do not ship: entry points of distributions, and files of a folder.

Nothing that a plug-in does when it is imported reaches who asks: each is tried in a process of its
own first, under a time limit, and one that fails there is listed with a sentence. What has been
imported stays so for the life of the process, until its content changes. Start at
`load_plugins(folder)`.
"""

import hashlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from trade_pipeline.features.plugins.process import run_child
from trade_pipeline.features.plugins.specification import told

IMPORT_LIMIT_S = 20.0
ALL_IMPORTS_LIMIT_S = 60.0  # a code location has minutes to load
TRY = "trade_pipeline.features.plugins.loading:try_imports"


@dataclass(frozen=True)
class Known:
    """An indicator that a feature set may name.

    Attributes:
        indicator: its specification.
        origin: `shipped`, a distribution with its version, or a file.
        code: what its values depend on beside its `implementation`: the distribution's version, or
            a hash of what the file says; None of a shipped one.
    """

    indicator: Indicator[Any]
    origin: str = "shipped"
    code: str | None = None


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
    """All known indicators by name, and what is broken."""

    known: Mapping[str, Known]
    broken: tuple[Broken, ...] = ()

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
_LOCK = threading.Lock()


def load_plugins(folder: Path | None, limit_s: float = IMPORT_LIMIT_S) -> Plugins:
    """All indicators: those that ship, of installed distributions, and of drop-in files.

    Args:
        folder: of drop-in files; one that is not there holds none. None: no folder.
        limit_s: most seconds for one import.
    """
    with _LOCK:
        sources, broken = _sources(folder)
        new = [one for one in sources if one not in _LOADED]
        if new:
            _LOADED.update(_load(new, limit_s))
        return _gathered(sources, broken)


def try_imports(job: Sequence[Sequence[str]], report: Callable[[Any], None]) -> None:
    """The child's side: import sources one by one, and report what is wrong with each."""
    for fields in job:
        try:
            import_indicators(Source(*fields))  # type: ignore[arg-type]
            report({"error": None})
        except PluginError as error:
            report({"error": str(error)})


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
    failures = _failures(sources, limit_s)
    return {
        one: _Loaded(error=failures[one]) if one in failures else _import_here(one, limit_s)
        for one in sources
    }


def _failures(sources: Sequence[Source], limit_s: float) -> dict[Source, str]:
    """What is wrong with sources, each tried in a process that it may well end."""
    failures: dict[Source, str] = {}
    left = list(sources)
    began = time.monotonic()
    while left:
        remaining_s = began + ALL_IMPORTS_LIMIT_S - time.monotonic()
        if remaining_s <= 0:
            failures.update(
                (one, f"was not tried: other imports took {ALL_IMPORTS_LIMIT_S:.0f} s already")
                for one in left
            )
            break
        ended = run_child(TRY, left, remaining_s, min(limit_s, remaining_s))
        for source, said in zip(left, ended.reports, strict=False):
            if said["error"] is not None:
                failures[source] = said["error"]
        left = left[len(ended.reports) :]
        if left:
            why = f"importing it {ended}"
            if not ended.ready:
                why = f"could not be tried ({ended}: {ended.printed[-300:].strip()})"
            elif ended.code is None:
                why = f"importing it does not end within {min(limit_s, remaining_s):.0f} s"
            failures[left.pop(0)] = why
    return failures


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
                given[indicator.name].append(Known(indicator, source.origin, loaded.code))
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
