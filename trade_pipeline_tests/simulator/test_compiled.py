"""What is known of compiled functions before they are called."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trade_pipeline.simulator.compiled import config, is_compiled

SOURCE = """
from trade_pipeline.simulator.compiled import compiled

@compiled
def doubled(number):
    return 2 * number
"""


def loaded(path: Path) -> Callable[..., Any]:
    """The function of a file, as a process that starts has it."""
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    found: Callable[..., Any] = module.doubled
    return found


def test_a_function_is_compiled_once_it_was_called_here_or_by_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "doubling.py"
    path.write_text(SOURCE, encoding="utf-8")
    here = loaded(path)
    assert not is_compiled(here)
    assert not is_compiled(loaded(path))
    assert here(2.0) == 4.0
    assert is_compiled(here)
    assert is_compiled(loaded(path))
