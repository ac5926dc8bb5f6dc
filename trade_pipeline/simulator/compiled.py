"""How the simulator's functions are compiled with numba. Start at `compiled`."""

import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numba.core.config
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

config: Any = numba.core.config  # its attributes are made at run time
typeof: Any = numba.typeof
UNUSED_SECONDS = 7 * 86_400

# Another type of number in a call, such as a literal's or a prange's, has all of it compiled again.
int64: Callable[[int], int] = cast(Any, np.int64)

Compiled = TypeVar("Compiled", bound=Callable[..., Any])


def compiled(function: Compiled) -> Compiled:
    """Compile with numba, cached on disk; no fastmath, so the same inputs give the same bits.

    Each option is worth a multiple of the arithmetic. `_nrt=False`: no counting of references to
    each array argument of each call; nothing compiled here may allocate. `forceinline`: no copying
    of array headers between the small functions. `error_model="numpy"`: no checks for division by
    zero, which no divisor here can be.
    """
    return cast(Compiled, _compile(function, forceinline=True))


def compiled_parallel(function: Compiled) -> Compiled:
    """Like `compiled`, with `numba.prange` over threads."""
    return cast(Compiled, _compile(function, parallel=True))


def compiled_products(function: Compiled) -> Compiled:
    """Like `compiled`, for matrix products: arrays may be reshaped and handed back."""
    return cast(Compiled, _compile(function, forceinline=True, _nrt=True))


def compiled_products_parallel(function: Compiled) -> Compiled:
    """Like `compiled_products`, with `numba.prange` over threads."""
    return cast(Compiled, _compile(function, parallel=True, _nrt=True))


def resolved(function: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
    """What a compiled function is for arguments of these types, without looking at them again.

    Looking takes six microseconds where there are sixty arrays and numbers, a tenth of a step of a
    thousand accounts. Whoever calls the result answers for the types, dtypes and memory layout.
    """
    compiled_function: Any = function
    types = tuple(typeof(argument) for argument in arguments)
    compiled_function.compile(types)
    entry: Callable[..., Any] = compiled_function.overloads[types].entry_point
    return entry


def _prefetch(_typing_context: Any, record: Any) -> Any:
    """Have a record at hand soon, without waiting for it; only for compiled code.

    It changes nothing but time, and the record need not exist.
    """

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        number = ir.IntType(32)
        pointer = builder.bitcast(arguments[0], ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number])
        call = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
        to_read, keep, data = number(0), number(3), number(1)
        builder.call(call, [pointer, to_read, keep, data])

    return types.void(record), generate


prefetch: Any = intrinsic(_prefetch)


def _stay_apart(_typing_context: Any) -> Any:
    """Have the compiled function that calls this be called, and never copied into its callers.

    What is long and has many callers takes a multiple of the time to compile otherwise.
    """

    def generate(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), generate


stay_apart: Any = intrinsic(_stay_apart)


def compiled_apart(function: Compiled) -> Compiled:
    """Like `compiled_products`, for functions that call `stay_apart`."""
    return cast(Compiled, _compile(function, forceinline=False, _nrt=True))


def is_compiled(function: Callable[..., Any]) -> bool:
    """Whether a compiled function is ready for some arguments, here or in the cache on disk."""
    ready: Any = function
    folder = ready.stats.cache_path
    return bool(ready.overloads) or (
        folder is not None and any(Path(folder).glob(f"*.{ready.__name__}-*.nbi"))
    )


class SameTypes:
    """A compiled function that is always called with arguments of the same types, see `resolved`.

    Copies and pickles find the compiled code again when they are called.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._entry: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any) -> Any:
        """What the function gives."""
        if self._entry is None:
            self._entry = resolved(self.function, *arguments)
        return self._entry(*arguments)

    def __reduce__(self) -> tuple[type["SameTypes"], tuple[Callable[..., Any]]]:
        return SameTypes, (self.function,)


def _compile(function: Callable[..., Any], **options: Any) -> Any:
    folder = _cache_folder(Path(function.__code__.co_filename).parent)
    options = {"_nrt": False, "error_model": "numpy", **options, "cache": folder is not None}
    with _caching_in(folder):
        return numba.njit(**options)(function)


@contextmanager
def _caching_in(folder: str | None) -> Iterator[None]:
    before = config.CACHE_DIR
    config.CACHE_DIR = folder or before
    try:
        yield
    finally:
        config.CACHE_DIR = before


@cache
def _cache_folder(beside: Path) -> str | None:
    """Where compiled code is kept: a folder named after its sources; None is nowhere.

    Numba's own cache notices a change of the file that holds a function, but not of the files of
    the functions it calls: the simulator's, and those beside it that compile.
    """
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for source in sorted({*here.glob("*.py"), *beside.glob("*.py")}):
        content = source.read_bytes()
        if source.parent == here or b"simulator.compiled import" in content:
            digest.update(content)
    homes = [here / "__pycache__"]
    with suppress(RuntimeError):  # a user without a home
        homes.append(Path.home() / ".cache" / "trade_pipeline")
    if config.CACHE_DIR:
        homes.insert(0, Path(config.CACHE_DIR))
    for home in homes:
        folder = home / f"numba-{digest.hexdigest()[:16]}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError:
            continue
        _forget_old(home, folder)
        return str(folder)
    return None


def _forget_old(home: Path, current: Path) -> None:
    """Remove what other sources left more than a week ago."""
    for folder in home.glob("numba-*"):
        with suppress(OSError):
            if folder != current and time.time() - folder.stat().st_mtime > UNUSED_SECONDS:
                shutil.rmtree(folder)
