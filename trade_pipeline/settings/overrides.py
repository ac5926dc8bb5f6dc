"""Overrides of an experiment's environment and algorithm: how they merge, what a sweep lists.

An override is a mapping with the keys `environment` and `algorithm`, of the same shape as in the
file. A dotted path such as `algorithm.network.hidden` names one place in it. Start at `merge` and
`swept`.
"""

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trade_pipeline.settings.code_version import canonical_json

PARTS = ("environment", "algorithm")
LONGEST_NAME = 80  # of a swept variant; it becomes part of file names


def merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides laid over a base, mapping by mapping; lists and other kinds are replaced whole."""
    if "kind" in base and overrides.get("kind", base["kind"]) != base["kind"]:
        return dict(overrides)
    merged = dict(base)
    for key, value in overrides.items():
        inner = merged.get(key)
        if isinstance(value, Mapping) and isinstance(inner, Mapping):
            merged[key] = merge(inner, value)
        else:
            merged[key] = value
    return merged


def at_path(path: str, value: Any) -> dict[str, Any]:
    """The override that sets one place.

    >>> at_path("algorithm.network.hidden", [64])
    {'algorithm': {'network': {'hidden': [64]}}}
    """
    for part in reversed(path.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def at_paths(values: Mapping[str, Any]) -> dict[str, Any]:
    """The override that sets each place to its value."""
    found: dict[str, Any] = {}
    for path, value in values.items():
        found = merge(found, at_path(path, value))
    return found


def check_paths(paths: Sequence[str]) -> None:
    """Refuse paths outside environment and algorithm, and a path inside another one.

    Raises:
        ValueError: names the path.
    """
    for path in paths:
        if path.split(".")[0] not in PARTS:
            raise ValueError(
                f"{path!r} is no place of an experiment that can vary; begin with environment. or "
                "algorithm., as in algorithm.learning_rate"
            )
        for other in paths:
            if other.startswith(f"{path}."):
                raise ValueError(f"{other!r} lies inside {path!r}; list one of them")


def swept(
    variants: Mapping[str, dict[str, Any]], sweep: Mapping[str, Sequence[Any]], most: int
) -> dict[str, dict[str, Any]]:
    """Every listed variant with every combination of the values of a sweep.

    Args:
        variants: name to overrides.
        sweep: dotted path to values; without any, the variants are as they were.
        most: variants that may come out.

    Returns:
        `<variant>_<key>_<value>...` to overrides. A name tells the values, or a hash of one that
        is long; it does not depend on what else a list holds.

    Raises:
        ValueError: there are too many, or a variant sets a place that the sweep sets.
    """
    if not sweep:
        return dict(variants)
    count = len(variants) * math.prod(len(values) for values in sweep.values())
    if count > most:
        raise ValueError(f"sweep gives {count} variants; at most {most}")
    found: dict[str, dict[str, Any]] = {}
    for listed, overrides in variants.items():
        for path in sweep:
            if _holds(overrides, path):
                raise ValueError(
                    f"variant {listed!r} sets {path}, which sweep sets, too; drop one of them"
                )
        for values in itertools.product(*sweep.values()):
            chosen = dict(zip(sweep, values, strict=True))
            name = f"{listed}_{_text(chosen)}"
            if name in found or name in variants:
                raise ValueError(f"variant {name!r} of sweep is there twice; rename {listed!r}")
            found[name] = merge(overrides, at_paths(chosen))
    return found


def spelled(value: Any) -> str:
    """A value in letters, digits and underscores; what cannot be spelled in few is hashed.

    >>> spelled(0.001), spelled("1e-5"), spelled([64, 64]), spelled(True)
    ('0p001', '1em05', '64_64', 'true')
    """
    match value:
        case None | bool():
            text = canonical_json(value)
        case int() | float():
            number = float(value)
            text = str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)
            text = text.replace("-", "m").replace(".", "p").replace("+", "")
        case str():
            try:
                return spelled(float(value))  # YAML 1.1 takes 1e-3 for text
            except ValueError:
                text = value
        case list() | tuple() if all(type(one) is int for one in value) and value:
            text = "_".join(spelled(one) for one in value)
        case _:
            text = ""
    fits = text.isascii() and text.replace("_", "").isalnum() and len(text) <= 24
    return text if fits else short_hash(value)


def short_hash(value: Any) -> str:
    """8 hexadecimal digits of a SHA-256 of a JSON-able value.

    Raises:
        ValueError: it is none, such as a date.
    """
    try:
        text = canonical_json(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{value!r} cannot be a setting ({error}); write it as text") from None
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _text(chosen: Mapping[str, Any]) -> str:
    """Keys and values of one combination; a path is called by its last part where that is clear."""
    last = [path.rpartition(".")[2] for path in chosen]
    words: Iterator[str] = (
        f"{name if last.count(name) == 1 else path.replace('.', '_')}_{spelled(value)}"
        for name, (path, value) in zip(last, chosen.items(), strict=True)
    )
    text = "_".join(words)
    return text if len(text) <= LONGEST_NAME else short_hash(chosen)


def _holds(overrides: Mapping[str, Any], path: str) -> bool:
    """Whether overrides set this place, or all that it lies in."""
    inner: Any = overrides
    for part in path.split("."):
        if not isinstance(inner, Mapping):
            return True
        if part not in inner:
            return False
        inner = inner[part]
    return True
