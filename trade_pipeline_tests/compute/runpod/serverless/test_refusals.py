"""A job that cannot be done comes back as a sentence."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from trade_pipeline.compute.runpod.endpoint import JobFailed
from trade_pipeline.compute.runpod.serverless import answer
from trade_pipeline.storage.bundles import BundleReference, commit, verify
from trade_pipeline.storage.frames import write_frame
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline_tests.compute.runpod.serverless.jobs import (
    ACCOUNTS,
    BARS,
    endpoint,
    infer,
    made_bars,
    silent,
    sweep,
)
from trade_pipeline_tests.compute.runpod.serverless.platform import KEY, Platform
from trade_pipeline_tests.training import policies


def without(asked: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in asked.items() if key != name}


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing": (lambda root: None, "job input"),
    "no kind": (lambda root: {"bars": BARS}, "kind"),
    "another kind": (
        lambda root: {"kind": "train"},
        "key 'kind' is 'train'. Known: indicators, infer",
    ),
    "unknown key": (lambda root: sweep(BARS, extra=1), "unknown key 'indicators.extra'"),
    "misspelt key": (
        lambda root: {**without(sweep(BARS), "bars"), "bar": BARS},
        "Did you mean 'bars'",
    ),
    "unknown column": (lambda root: sweep({**BARS, "vwap": []}), "vwap"),
    "missing column": (lambda root: sweep(without(BARS, "low")), "low' is missing; add it"),
    "ragged columns": (lambda root: sweep({**BARS, "low": [1.0]}), "'low': 1"),
    "text for a number": (lambda root: sweep({**BARS, "low": ["1.0"] * 30}), "valid number"),
    "not a number": (lambda root: sweep({**BARS, "low": [math.nan] * 30}), "finite number"),
    "time too far": (lambda root: sweep({**BARS, "ts": [2**70] * 30}), "ts"),
    "unordered": (lambda root: sweep({**BARS, "ts": BARS["ts"][::-1]}), "sort the bars"),
    "no indicator": (lambda root: {**sweep(BARS), "indicators": []}, "at least 1"),
    "unknown indicator": (
        lambda root: {**sweep(BARS), "indicators": [{"name": "rsy"}]},
        "Did you mean 'rsi'",
    ),
    "wrong parameter": (
        lambda root: {**sweep(BARS), "indicators": [{"name": "rsi", "params": {"period": 1}}]},
        "greater than or equal to 2",
    ),
    "two of one name": (
        lambda root: {**sweep(BARS), "indicators": [{"name": "rsi"}] * 2},
        "remove one or change its parameters",
    ),
    "no such bars": (lambda root: sweep({"key": "bars/none.parquet"}), "no such frame"),
    "bars outside": (lambda root: sweep({"key": "../secret.parquet"}), "part '..' is not allowed"),
    "bars at the root": (lambda root: sweep({"key": "/etc/passwd"}), "part '' is not allowed"),
    "policy outside": (
        lambda root: infer(root, "choices", policy={"key": "../x", "version": "0" * 32}),
        "part '..' is not allowed",
    ),
    "version outside": (
        lambda root: infer(root, "choices", policy={"key": "demo", "version": "../.."}),
        "is not 32 hex digits",
    ),
    "no such version": (
        lambda root: infer(root, "choices", policy={"key": "demo", "version": "0" * 32}),
        "is not there",
    ),
    "neither": (lambda root: without(infer(root, "choices"), "rows"), "either 'windows' or 'rows'"),
    "both": (lambda root: infer(root, "choices", windows=[[[1.0]]]), "either 'windows' or 'rows'"),
    "short rows": (lambda root: infer(root, "choices", rows=[[1.0, 2.0]]), "needs (15, 2)"),
    "narrow rows": (lambda root: infer(root, "choices", rows=[[1.0]] * 15), "needs (15, 2)"),
    "ragged rows": (
        lambda root: infer(root, "choices", rows=[[1.0]] + [[1.0, 2.0]] * 14),
        "not all have the same length",
    ),
    "wide accounts": (
        lambda root: infer(root, "choices", accounts=[[*row, 0.0] for row in ACCOUNTS]),
        "needs (12, 6)",
    ),
    "no accounts": (lambda root: infer(root, "choices", accounts=[]), "at least 1"),
    "infinite": (lambda root: infer(root, "choices", rows=[[math.inf] * 2] * 15), "finite"),
    "beyond a float32": (lambda root: infer(root, "choices", rows=[[1e39] * 2] * 15), "float32"),
    "cap too high": (lambda root: infer(root, "choices", output_bytes=10**9), "output_bytes"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_job_is_refused_in_a_sentence(root: Path, name: str) -> None:
    made, said = WRONG[name]
    given = answer(made(root), "job", root, silent)
    assert list(given) == ["error"]
    assert said in given["error"]
    assert len(given["error"]) <= 4_000


def test_a_damaged_policy_is_not_asked(root: Path, tmp_path: Path) -> None:
    """Neither one with a changed byte, nor another version in the place of the one named."""
    for name in ("changed", "moved"):
        store = tmp_path / name / "store"
        staged = policies.write_bundle(store, "staging/p")
        version = verify(staged)["version"]
        target = commit(BundleReference(staged, version), ArtifactLocation(store, "demo"))
        if name == "changed":
            with (target.path / "policy.safetensors").open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                last = file.read(1)
                file.seek(-1, os.SEEK_END)
                file.write(bytes([last[0] ^ 1]))
        else:
            target.path.rename(target.path.with_name("0" * 32))
            version = "0" * 32
        asked = infer(root, "choices", policy={"key": "demo", "version": version})
        given = answer(asked, "job", tmp_path / name, silent)
        expected = {"changed": "is not the file that was sealed", "moved": "holds version"}[name]
        assert expected in given["error"]


@pytest.mark.parametrize("method", ["run", "run_sync"])
@pytest.mark.parametrize("where", ["local_url", "platform"])
def test_what_the_handler_refuses_comes_back_in_its_words(
    request: pytest.FixtureRequest, where: str, method: str
) -> None:
    found = request.getfixturevalue(where)
    asked = endpoint(found if isinstance(found, str) else found.url)
    with pytest.raises(JobFailed, match=r"unknown key 'indicators.extra'") as caught:
        getattr(asked, method)(sweep(BARS, extra=1))
    assert KEY not in str(caught.value)


def test_of_an_error_in_the_handler_the_traceback_stays_there(
    root: Path, platform: Platform
) -> None:
    text = made_bars().with_columns(close=pl.lit("dear"))
    write_frame(ArtifactLocation(root / "store", "bars/text.parquet"), text)
    with pytest.raises(JobFailed, match="conversion from `str` to `f64` failed") as caught:
        endpoint(platform.url).run(sweep({"key": "bars/text.parquet"}))
    assert "Traceback" not in str(caught.value)
