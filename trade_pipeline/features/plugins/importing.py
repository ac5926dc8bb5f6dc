"""Imports one plug-in: a drop-in file, an entry point, or a module, and says why it is broken.

What it runs may do anything, so `loading` and `check` call this in a
process of its own first. Start at `import_indicators`.
"""

import ast
import hashlib
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

from trade_pipeline.features.indicator import Indicator
from trade_pipeline.features.plugins.specification import spec_problem, told

GROUP = "trade_pipeline.indicators"
HAS_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class PluginError(Exception):
    """A plug-in gives no indicators; the message is a clause that says why."""


class Source(NamedTuple):
    """Where indicators may come from.

    Attributes:
        kind: of it.
        where: the file, the entry point's value, or the module.
        name: of the entry point, else empty.
        distribution: name and version of the entry point's, else empty.
        digest: of a file's content, else empty.
    """

    kind: Literal["file", "entry point", "module"]
    where: str
    name: str = ""
    distribution: str = ""
    digest: str = ""

    @property
    def origin(self) -> str:
        """How errors and lists name it."""
        return self.distribution or self.where


class Found(NamedTuple):
    """An indicator of a source and what is wrong with it; None: nothing."""

    indicator: Indicator[Any]
    problem: str | None


def import_indicators(source: Source) -> list[Found]:
    """Import a source and check the specification of each of its indicators.

    Raises:
        PluginError: it cannot be imported, or holds no `Indicator`.
    """
    try:
        content = _imported(source)
        if isinstance(content, Indicator):
            indicators = [content]
        elif isinstance(content, ModuleType):
            indicators = module_indicators(content)
        else:
            raise PluginError(
                f"entry point {source.name!r} names {type(content).__name__} {source.where}; let "
                "it name an Indicator or a module that holds some"
            )
    except PluginError:
        raise
    except BaseException as error:
        raise PluginError(_why(error, source)) from error
    if not indicators:
        raise PluginError("holds no Indicator at its top level")
    return [Found(one, _problem(one)) for one in indicators]


def module_indicators(module: ModuleType) -> list[Indicator[Any]]:
    """The `Indicator`s at a module's top level, also in tuples and lists, each once, in order."""
    found = []
    for value in vars(module).values():
        several = value if isinstance(value, tuple | list) else (value,)
        found += [one for one in several if isinstance(one, Indicator)]
    return [one for position, one in enumerate(found) if not _among(one, found[:position])]


def syntax_digest(content: bytes) -> str:
    """Hash of what Python code says; comments, layout and docstrings do not enter.

    Raises:
        SyntaxError: it is no Python.
    """
    tree = ast.parse(content)
    for node in ast.walk(tree):
        if isinstance(node, HAS_DOCSTRING) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def _imported(source: Source) -> object:
    if source.kind == "file":
        return _run_file(Path(source.where), source.digest)
    if source.kind == "entry point":
        return EntryPoint(source.name, source.where, GROUP).load()
    return import_module(source.where)


def _run_file(path: Path, digest: str) -> ModuleType:
    """Run a file as a module of its own; it is not put on the path of imports."""
    content = path.read_bytes()
    if digest and hashlib.sha256(content).hexdigest() != digest:
        raise PluginError("was written while it was read; load again")
    # From its text: a compiled file is taken for current when size and second have not changed.
    code = compile(content, str(path), "exec", dont_inherit=True)
    module = ModuleType(f"trade_pipeline_drop_in_{path.stem}_{digest[:16]}")
    module.__file__ = str(path)
    # Annotations of its parameters are looked up there.
    sys.modules[module.__name__] = module
    try:
        exec(code, vars(module))
    except BaseException:
        sys.modules.pop(module.__name__, None)
        raise
    return module


def _problem(indicator: Indicator[Any]) -> str | None:
    try:
        return spec_problem(indicator)
    except BaseException as error:  # of its own functions
        return f"its specification cannot be read ({_last_line(error)}{told(error)})"


def _why(error: BaseException, source: Source) -> str:
    if isinstance(error, SyntaxError):
        where = "" if error.lineno is None else f"line {error.lineno} "
        return f"{where}is no Python: {error.msg}"
    if isinstance(error, SystemExit):
        return f"importing it ends the process ({_last_line(error, source)}{told(error)})"
    if isinstance(error, OSError) and error.filename == source.where:
        return f"cannot be read ({error.strerror})"
    return f"importing it fails: {_last_line(error, source)}{told(error)}"


def _last_line(error: BaseException, source: Source | None = None) -> str:
    """The line of the plug-in that failed, else the last of all but the import system's."""
    try:
        frames: Sequence[traceback.FrameSummary] = traceback.extract_tb(error.__traceback__)
    except Exception:
        return ""
    own = [one for one in frames if source is not None and one.filename == source.where]
    if own:
        return f"line {own[-1].lineno}: "
    others = [
        one
        for one in frames
        if not one.filename.startswith("<") and one.filename != __file__
        if "importlib" not in one.filename
    ]
    return f"{others[-1].filename}, line {others[-1].lineno}: " if others else ""


def _among(one: object, others: Sequence[object]) -> bool:
    return any(one is other for other in others)
