"""Code version of an asset: what would have to change for its content to change.

Comments, key order and formatting of a YAML file do not enter; resolved values do.
"""

import ast
import hashlib
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces, so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def code_version(configuration: Mapping[str, Any], implementations: Mapping[str, int | str]) -> str:
    """Hash of resolved configuration and the `IMPLEMENTATION` number of each part used.

    Args:
        configuration: JSON-able values, defaults filled in.
        implementations: part name (source, indicator, kernel, trainer) to its integer; of a
            plug-in to a text that changes with its code.

    Returns:
        16 hexadecimal digits of a SHA-256.
    """
    text = canonical_json({"configuration": configuration, "implementations": implementations})
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def implementation_of(module: str) -> int:
    """The `IMPLEMENTATION` number that stands in a module's source, without importing it.

    Importing the trainer takes seconds (torch), and the code location is loaded often.

    Raises:
        LookupError: there is no such module, or it has no such number.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise LookupError(f"no module {module}")
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        match node:
            case ast.Assign(
                targets=[ast.Name(id="IMPLEMENTATION")], value=ast.Constant(int(number))
            ):
                return number
    raise LookupError(f"{module} has no line `IMPLEMENTATION = <number>`")
