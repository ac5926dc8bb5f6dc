"""Guards every Python process that a test starts: this folder stands first in its PYTHONPATH."""

import importlib.util
import sys
from importlib.machinery import PathFinder

import only_loopback

only_loopback.install()

# An installation may have a sitecustomize of its own, which this one hides.
_hidden = PathFinder.find_spec(
    "sitecustomize", [folder for folder in sys.path if folder != only_loopback.FOLDER]
)
if _hidden is not None and _hidden.loader is not None:
    _hidden.loader.exec_module(importlib.util.module_from_spec(_hidden))
