"""The leaderboard over all experiments stands although one report of them is broken."""

import dagster as dg
import pytest

from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.frames import read_frame
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline_tests.deployment import Deployment
from trade_pipeline_tests.small_project import materialize


def test_a_broken_report_is_warned_of_and_the_rows_of_the_others_stay(
    trained: Deployment, capfd: pytest.CaptureFixture[str]
) -> None:
    store = trained.places.store
    board = ArtifactLocation(store, "leaderboard.parquet")
    assert set(read_frame(board)["experiment"]) == {"alone", "pair"}
    broken = bundles.current(layout.experiment_bundle(store, "pair", "report"))
    member = broken.child("leaderboard.parquet").path
    member.write_bytes(b"garbage")
    done = materialize(trained.places, trained.instance, "leaderboard")
    assert done.success
    assert set(read_frame(board)["experiment"]) == {"alone"}
    (event,) = done.asset_materializations_for_node("leaderboard")
    said = event.metadata["left out"].value
    assert isinstance(said, str)
    assert said.startswith("pair/report is left out")
    assert "leaderboard.parquet" in said
    warned = [line for line in capfd.readouterr().err.splitlines() if "WARNING" in line]
    assert any("pair/report is left out" in line for line in warned)
    assert event.asset_key == dg.AssetKey("leaderboard")
