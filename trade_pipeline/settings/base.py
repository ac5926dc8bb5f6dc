"""Closed, frozen settings and the one way to read a YAML file into them.

Knows nothing of what the settings are for. Start at `read_settings(path, model)`.
"""

import difflib
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError


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
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: not valid YAML: {error}") from error
    except ValueError as error:  # a date that no calendar has, such as 2000-02-31
        raise SettingsError(f"{path}: holds an impossible date or number ({error}).") from error


def parse_settings(content: Any, model: type[Model], origin: str) -> Model:
    """Validate parsed YAML against a model; `origin` (a file) opens every error line.

    Raises:
        SettingsError: one line per wrong key, with the closest known key where one is near.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise SettingsError(_explain(error, model, origin, content)) from None


def read_settings(path: Path, model: type[Model]) -> Model:
    """Read one YAML file into its model. Raises `SettingsError`."""
    return parse_settings(read_yaml(path), model, str(path))


def closest(name: str, known: list[str]) -> str:
    """A hint " Did you mean 'x'?" for a misspelt name, or the list of what exists."""
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f" Did you mean {near[0]!r}?"
    return f" Known: {', '.join(sorted(known)) or 'none'}."


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
            hint = closest(str(problem["loc"][-1]), _field_names(model))
            lines.append(f"{origin}: unknown {key}.{hint}")
        elif problem["type"] == "missing":
            lines.append(f"{origin}: key {path!r} is missing; add it.")
        elif problem["type"] in ("model_attributes_type", "model_type", "dict_type"):
            lines.append(
                f"{origin}: {key} is {problem['input']!r}: a mapping is needed, such as "
                "{kind: ...}, {name: ...} or {term: ...}; docs/ shows what goes there."
            )
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


def _field_names(model: type[BaseModel], seen: frozenset[type] = frozenset()) -> list[str]:
    """Names of all fields of a model and of the models inside it."""
    names: set[str] = set()
    for name, field in model.model_fields.items():
        names.add(name)
        for inner in _models_in(field.annotation):
            if inner not in seen:
                names.update(_field_names(inner, seen | {model, inner}))
    return sorted(names)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for part in getattr(annotation, "__args__", ()) for m in _models_in(part)]
