"""Closed, frozen settings and the one way to read a YAML file into them.

Knows nothing of what the settings are for. Start at `read_settings(path, model)`.
"""

import difflib
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, RootModel, ValidationError


class SettingsError(ValueError):
    """A settings file is wrong; the message names the file, the key and what to do."""


class Settings(BaseModel):
    """Base of every model of `configs/`: frozen, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Model = TypeVar("Model", bound=BaseModel)


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key written twice, which plain YAML drops silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is written twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what `_StrictLoader` would not take for text."""


# As in YAML 1.2: 1e-3 is a number, which plain YAML 1.1 takes for text.
for _reader_or_writer in (_StrictLoader, _Dumper):
    _reader_or_writer.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )


def read_yaml(path: Path) -> Any:
    """Parse one YAML file.

    Raises:
        SettingsError: the file is missing, unreadable, not YAML, or repeats a key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such file; create it or correct the name.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read as UTF-8 text ({error}).") from error
    try:
        return parse_yaml(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: not valid YAML: {error}") from error
    except ValueError as error:  # a date that no calendar has, such as 2000-02-31
        raise SettingsError(f"{path}: holds an impossible date or number ({error}).") from error


def parse_yaml(text: str) -> Any:
    """The value of one YAML text, by the rules of our files.

    Raises:
        yaml.YAMLError: it is not YAML, or repeats a key.
        ValueError: it holds an impossible date.
    """
    return yaml.load(text, Loader=_StrictLoader)


def yaml_text(content: Any, *, one_line: bool = False) -> str:
    """What `parse_yaml` reads as this content; keys keep their order.

    Args:
        content: a mapping of plain values, such as JSON has, and dates.
        one_line: whether to write it in braces, without a line's end.
    """
    text: str = yaml.dump(
        content,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=one_line,
        width=float("inf") if one_line else 100,
    )
    return text.rstrip("\n") if one_line else text


def parse_settings(content: Any, model: type[Model], origin: str) -> Model:
    """Validate parsed YAML against a model; `origin` (a file) opens every error line.

    Booleans are no numbers, text is neither, and a number is no date; a whole number is fine where
    any number is.

    Raises:
        SettingsError: one line per wrong key, with the closest known key where one is near.
    """
    try:
        parsed = model.model_validate(content)
    except ValidationError as error:
        raise SettingsError(_explain(error, model, origin, content)) from None
    wrong = [f"{origin}: key {path!r} {why}" for path, why in _converted(content, parsed)]
    if wrong:
        raise SettingsError("\n".join(wrong))
    return parsed


def read_settings(path: Path, model: type[Model]) -> Model:
    """Read one YAML file into its model. Raises `SettingsError`."""
    return parse_settings(read_yaml(path), model, str(path))


def closest(name: str, known: list[str]) -> str:
    """A hint " Did you mean 'x'?" for a misspelt name, or the list of what exists."""
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f" Did you mean {near[0]!r}?"
    return f" Known: {', '.join(sorted(known)) or 'none'}."


def _converted(given: Any, taken: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Keys whose value pydantic took for one of another kind, and what to write in its place."""
    if isinstance(taken, RootModel):
        yield from _converted(given, taken.root, path)
    elif isinstance(taken, BaseModel) and isinstance(given, Mapping):
        for name, field in type(taken).model_fields.items():
            key = field.alias if field.alias in given else name
            if key in given:
                yield from _converted(given[key], getattr(taken, name), _inside(path, key))
    elif isinstance(taken, Mapping) and isinstance(given, Mapping):
        for key in given.keys() & taken.keys():
            yield from _converted(given[key], taken[key], _inside(path, key))
    elif isinstance(taken, list | tuple) and isinstance(given, list | tuple):
        if not {type(one) for one in given} <= {int, float}:  # rows of numbers can be long
            for place, pair in enumerate(zip(given, taken, strict=False)):
                yield from _converted(*pair, _inside(path, place))
    elif isinstance(given, bool | int | float | str):
        kind, wanted = _kind(given), _kind(taken)
        dated = kind == "text" and wanted == "a date"  # how JSON has one
        if wanted is not None and wanted != kind and not dated:
            yield path, f"is {given!r}: {wanted} is needed{HOW[wanted]}."


HOW = {
    "text": "; put it in quotes",
    "a number": ", without quotes, such as 20 or 0.001",
    "true or false": ", without quotes",
    "a date": ", such as 2020-01-31",
}


def _kind(value: Any) -> str | None:
    """What a value of a file is, in words; None where it is of no kind that is mistaken."""
    match value:
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case date():
            return "a date"
    return None


def _inside(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _explain(error: ValidationError, model: type[BaseModel], origin: str, content: Any) -> str:
    lines = []
    problems = error.errors()
    inside = {tuple(problem["loc"][:k]) for problem in problems for k in range(len(problem["loc"]))}
    for problem in problems:
        if problem["type"] == "too_short" and tuple(problem["loc"]) in inside:
            continue  # pydantic counts only the entries that were right
        path = ".".join(_written(problem["loc"], content))
        key = f"key {path!r}" if path else "the whole file"
        said = problem["msg"].removeprefix("Value error, ").rstrip(".")
        said = (
            said.replace("valid tuple", "list")
            .replace("Tuple", "List")
            .replace(" after validation", "")
        )
        if problem["type"] == "extra_forbidden":
            known = [n for one in _models_at(model, problem["loc"][:-1]) for n in _own_names(one)]
            lines.append(f"{origin}: unknown {key}.{closest(str(problem['loc'][-1]), known)}")
        elif problem["type"] == "missing":
            lines.append(f"{origin}: key {path!r} is missing; add it.")
        elif problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
            name = problem["ctx"]["discriminator"].strip("'")
            kinds = [k for one in _models_at(model, problem["loc"]) for k in _literals(one, name)]
            place = _inside(path, name)
            lines.append(
                f"{origin}: key {place!r} is {problem['ctx']['tag']!r}."
                f"{closest(str(problem['ctx']['tag']), kinds)}"
                if "tag" in problem["ctx"]
                else f"{origin}: key {place!r} is missing; add one of {', '.join(kinds)}."
            )
        elif problem["type"] in ("model_attributes_type", "model_type", "dict_type"):
            lines.append(
                f"{origin}: {key} is {problem['input']!r}: a mapping is needed, such as "
                "{kind: ...}, {name: ...} or {term: ...}; docs/ shows what goes there."
            )
        elif problem["type"] == "string_type":
            how = HOW["text"] if _kind(problem["input"]) else ""
            lines.append(f"{origin}: {key} is {problem['input']!r}: text is needed{how}.")
        elif isinstance(problem["input"], dict | list | tuple | BaseModel):
            lines.append(f"{origin}: {key + ': ' if path else ''}{said}{_stop(said)}")
        else:
            lines.append(f"{origin}: {key} is {problem['input']!r}: {said}{_stop(said)}")
    return "\n".join(lines)


def _stop(said: str) -> str:
    return "" if said.endswith(("?", "!")) else "."


def _written(location: tuple[int | str, ...], content: Any) -> list[str]:
    """The keys of a location as the file has them: pydantic adds the kind of what may be several.

    >>> _written(("exchange", "volume", "mount"), {"exchange": {"kind": "volume", "mount": 1}})
    ['exchange', 'mount']
    """
    keys = []
    for part in location[:-1]:
        if isinstance(content, Mapping) and part not in content:
            continue
        keys.append(str(part))
        inside = isinstance(content, Mapping) or (
            isinstance(content, Sequence) and isinstance(part, int) and part < len(content)
        )
        content = content[part] if inside else None
    return [*keys, *(str(part) for part in location[-1:])]


def _own_names(model: type[BaseModel]) -> list[str]:
    """Names of a model's fields as a file has them."""
    return sorted(field.alias or name for name, field in model.model_fields.items())


def _models_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[type[BaseModel]]:
    """Models that may stand at a location of pydantic's: the keys and kinds that lead there."""
    here = _models_in(model)
    for part in location:
        fields = [
            field.annotation
            for one in here
            for name, field in one.model_fields.items()
            if part in (name, field.alias)
        ]
        tagged = [one for one in here if part == one.__name__ or part in _literals(one)]
        if tagged and (len(here) > 1 or not fields):
            here = tagged
        elif fields:
            here = [one for annotation in fields for one in _models_in(annotation)]
    return list(dict.fromkeys(here))


def _literals(model: type[BaseModel], name: str | None = None) -> list[str]:
    """What a field that is a literal may be: the kinds of a model; by default of all its fields."""
    return [
        value
        for field, described in model.model_fields.items()
        if name in (None, field) and get_origin(described.annotation) is Literal
        for value in get_args(described.annotation)
    ]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Models that a value of this annotation may be or hold."""
    if isinstance(annotation, type) and issubclass(annotation, RootModel):
        return _models_in(annotation.model_fields["root"].annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for part in get_args(annotation) for m in _models_in(part)]
