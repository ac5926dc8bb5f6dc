from pathlib import Path

import pytest

from trade_pipeline.storage.location import ArtifactLocation, StorageError


def test_a_key_resolves_below_its_store(tmp_path: Path) -> None:
    location = ArtifactLocation(tmp_path, "ohlcv/kraken.BTC-USD.1m").child("2025.parquet")
    assert location.path == tmp_path / "ohlcv" / "kraken.BTC-USD.1m" / "2025.parquet"
    assert location.key == "ohlcv/kraken.BTC-USD.1m/2025.parquet"


@pytest.mark.parametrize(
    "key",
    [
        "",
        ".",
        "..",
        "/etc",
        "a/../b",
        "../a",
        "a//b",
        "a/",
        "a\\b",
        "a b",
        "a\n",
        "é",
        "a/./b",
        "~",
    ],
)
def test_a_key_that_could_leave_the_store_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(StorageError, match="is not allowed; use relative keys"):
        ArtifactLocation(tmp_path, key)
    with pytest.raises(StorageError):
        ArtifactLocation(tmp_path, "fine").child(key)
