"""What the serverless handler gives is what this machine gives, however it comes back."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from polars.testing import assert_frame_equal

from trade_pipeline.compute.runpod.errors import (
    ExchangeError,
    ResultRefused,
)
from trade_pipeline.compute.runpod.serverless import answer
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline_tests.compute.runpod.serverless.jobs import (
    KINDS,
    endpoint,
    infer,
    inline,
    local_actions,
    local_sweep,
    made_bars,
    silent,
    sweep,
)


def fetching(root: Path) -> Callable[[str], bytes | None]:
    def fetch(key: str) -> bytes | None:
        path = ArtifactLocation(root, key).path
        return path.read_bytes() if path.exists() else None

    return fetch


@pytest.mark.parametrize("method", ["run", "run_sync"])
@pytest.mark.parametrize("where", ["local_url", "platform"])
def test_a_sweep_gives_the_feature_table(
    request: pytest.FixtureRequest, where: str, method: str
) -> None:
    found = request.getfixturevalue(where)
    asked = endpoint(found if isinstance(found, str) else found.url)
    bars = made_bars()
    table = getattr(asked, method)(sweep(inline(bars)))
    assert_frame_equal(table, local_sweep(bars), check_exact=True)
    assert table.height > 100


def test_bars_on_the_volume_give_the_same_as_inline_ones(local_url: str) -> None:
    table = endpoint(local_url).run_sync(sweep({"key": "bars/demo.parquet"}))
    assert_frame_equal(table, local_sweep(made_bars()), check_exact=True)


def test_too_few_bars_give_an_empty_table_with_its_columns(root: Path) -> None:
    bars = made_bars(20)
    given = answer(sweep(inline(bars)), "job", root, silent)
    assert list(given["columns"]) == local_sweep(bars).columns
    assert set(map(len, given["columns"].values())) == {0}


@pytest.mark.parametrize("by", ["rows", "windows"])
@pytest.mark.parametrize("name", KINDS)
def test_a_policy_acts_as_it_does_here_to_the_last_bit(
    root: Path, local_url: str, name: str, by: str
) -> None:
    table = endpoint(local_url).run_sync(infer(root, name, by))
    wanted = local_actions(root, name)
    given = np.ascontiguousarray(table.to_numpy())
    assert (given.dtype, given.shape) == (wanted.dtype, wanted.shape)
    assert given.tobytes() == wanted.tobytes()
    assert table.columns[0] == ("weight_0" if name == "weights" else "choice_0")
    assert len(np.unique(given)) > 1


@pytest.mark.parametrize("job", ["sweep", "infer"])
def test_a_result_over_its_cap_goes_to_the_volume(root: Path, local_url: str, job: str) -> None:
    asked = sweep(inline(made_bars())) if job == "sweep" else infer(root, "weights")
    whole = endpoint(local_url).run(asked)
    reached = []

    def fetch(key: str) -> bytes | None:
        reached.append(key)
        return fetching(root)(key)

    stored = endpoint(local_url, fetch=fetch).run({**asked, "output_bytes": 100})
    assert_frame_equal(stored, whole, check_exact=True)
    (key,) = reached
    assert key.startswith("jobs/serverless/")
    assert [path.name for path in (root / key).parent.iterdir()] == ["table.parquet"]


def test_a_result_changed_or_gone_on_the_volume_is_refused(root: Path, local_url: str) -> None:
    asked = {**infer(root, "weights"), "output_bytes": 100}
    with pytest.raises(ResultRefused, match=r"SHA-256 differs\); run the job again"):
        endpoint(local_url, fetch=lambda key: b"other").run(asked)
    with pytest.raises(ExchangeError, match="is not on the volume at jobs/serverless/"):
        endpoint(local_url, fetch=lambda key: None).run(asked)
    with pytest.raises(ExchangeError, match="give `fetch`"):
        endpoint(local_url).run(asked)


def test_without_a_volume_a_large_result_is_an_error(tmp_path: Path) -> None:
    given = answer(sweep(inline(made_bars()), output_bytes=100), "job", tmp_path / "none", silent)
    assert "attach a network volume" in given["error"]
    assert not (tmp_path / "none").exists()


def test_a_result_at_its_cap_is_returned(root: Path) -> None:
    asked = infer(root, "choices")
    size = len(json.dumps(answer(asked, "job", root, silent)).encode())
    assert "columns" in answer({**asked, "output_bytes": size}, "job", root, silent)
    assert "key" in answer({**asked, "output_bytes": size - 1}, "job", root, silent)
