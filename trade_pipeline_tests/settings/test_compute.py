"""`configs/compute/*.yaml`: what is wrong is named as the file names it."""

from pathlib import Path

import pytest

from trade_pipeline.settings.base import SettingsError
from trade_pipeline.settings.compute import LocalComputeSettings, read_compute
from trade_pipeline_tests.small_project import write_yaml

RUNPOD = {
    "kind": "runpod",
    "image": "registry/trade@sha256:" + "a" * 64,
    "gpus": ["NVIDIA L4"],
    "cuda": ["12.8"],
    "exchange": {"kind": "volume", "id": "v"},
    "hours": 1,
    "budget": {"run_usd": 5, "day_usd": 5, "hourly_usd": 5, "pods": 1},
}


def test_a_kind_is_read_into_its_settings(tmp_path: Path) -> None:
    write_yaml(tmp_path / "local.yaml", {"kind": "local"})
    write_yaml(tmp_path / "runpod.yaml", RUNPOD)
    assert isinstance(read_compute(tmp_path / "local.yaml"), LocalComputeSettings)
    assert read_compute(tmp_path / "runpod.yaml").remote


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({**RUNPOD, "gpus": []}, "key 'gpus'"),
        ({**RUNPOD, "hours": -1}, "key 'hours' is -1"),
        ({**RUNPOD, "budget": {"run_usd": 5}}, "key 'budget.pods' is missing"),
        ({**RUNPOD, "gpu": "NVIDIA L4"}, "unknown key 'gpu'. Did you mean 'gpus'?"),
        ({"kind": "local", "timeout_s": 0}, "key 'timeout_s' is 0"),
        ({"timeout_s": 5}, "key 'kind' is missing; add it: local or runpod."),
        ([], "key 'kind' is missing"),
        ({"kind": "runpd"}, "key 'kind' is 'runpd'. Did you mean 'runpod'?"),
        ({"kind": ["local"]}, "key 'kind' is"),
    ],
)
def test_what_is_wrong_is_named_by_the_files_own_key(
    tmp_path: Path, content: object, said: str
) -> None:
    path = tmp_path / "compute.yaml"
    write_yaml(path, content)
    with pytest.raises(SettingsError) as caught:
        read_compute(path)
    assert f"{path}: {said}" in str(caught.value)
