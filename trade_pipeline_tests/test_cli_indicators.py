"""`trade-pipeline indicators`: what there is, and whether a plug-in is sound."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from trade_pipeline.cli import app
from trade_pipeline.features.registry import indicators
from trade_pipeline.settings.project import INDICATORS_VARIABLE, Places
from trade_pipeline_tests.features.plugin_files import drop_in, write


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["indicators", *words])


def test_places_name_the_folder_of_drop_in_files(tmp_path: Path) -> None:
    places = Places.from_environment({"TRADE_PIPELINE_CONFIGS": str(tmp_path)})
    assert places.indicator_files == tmp_path / "indicators"
    other = Places.from_environment({INDICATORS_VARIABLE: str(tmp_path / "mine")})
    assert other.indicator_files == tmp_path / "mine"


def test_list_shows_origin_inputs_and_defaults_and_what_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path, mine=drop_in("mine") + "\nprint('hello')\n", wrong="1 / 0\n")
    monkeypatch.setenv(INDICATORS_VARIABLE, str(folder))
    done = run("list")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    names = [line.split(" ")[0] for line in lines if not line.startswith("broken: ")]
    assert names == sorted([*indicators(), "mine"])
    assert f"mine ({folder}/mine.py): of close; no parameters" in lines
    assert "rsi (shipped): of close; period=14" in lines
    for name, one in indicators().items():
        (line,) = (line for line in lines if line.startswith(f"{name} (shipped)"))
        assert all(column in line for column in one.inputs)
        assert all(f"{parameter}=" in line for parameter in one.parameters.model_fields)
    assert (
        f"broken: {folder}/wrong.py: importing it fails: line 1: ZeroDivisionError" in done.stdout
    )
    assert "hello" not in done.stdout


def test_what_a_plug_in_prints_is_never_on_standard_output(tmp_path: Path) -> None:
    folder = write(tmp_path, mine="print('from the plug-in')\n" + drop_in("mine"))
    script = (
        "import sys; from pathlib import Path\n"
        "from trade_pipeline.features.plugins.loading import load_plugins\n"
        "print(sorted(load_plugins(Path(sys.argv[1])).known)[:1])\n"
    )
    done = subprocess.run([sys.executable, "-c", script, folder], capture_output=True, text=True)
    assert done.stdout == "['atr']\n"
    assert "from the plug-in" in done.stderr


def test_a_sound_file_holds_in_every_line(tmp_path: Path) -> None:
    path = write(tmp_path, mine=drop_in("mine")) / "mine.py"
    done = run("check", str(path))
    assert done.exit_code == 0, done.output
    *lines, last = done.stdout.splitlines()
    assert last == f"{path}: all holds"
    checks = [line.split(": ")[1].split(" holds")[0] for line in lines[1:]]
    assert checks == [
        "specification", "outputs", "inputs", "deterministic", "finite", "speed", "causal",
        "lookback", "price level", "threads",
    ]  # fmt: skip


def test_one_that_fails_gives_exit_code_1_also_as_json(tmp_path: Path) -> None:
    path = write(tmp_path, mine=drop_in("mine", "close[::-1] / close", lookback="0")) / "mine.py"
    done = run("check", str(path), "--json", "--name", "mine")
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert found["passed"] is False
    failing = {line["check"] for line in found["lines"] if line["verdict"] == "fails"}
    assert failing == {"causal"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no_such_module"], "import fails: importing it fails: ModuleNotFoundError"),
        (["no/such/file.py"], "cannot be read (No such file or directory)"),
        (["trade_pipeline.features.indicators.clock", "--name", "rsi"], "it has no indicator"),
        (["trade_pipeline.features.indicators.clock", "--param", "a=1"], "choose one of"),
        (
            ["trade_pipeline.features.indicators.momentum", "--name=rsi", "--param=period=1"],
            "key 'period' is 1",
        ),
    ],
)
def test_what_cannot_be_checked_is_a_sentence(words: list[str], said: str) -> None:
    done = run("check", *words)
    assert done.exit_code == 1
    assert said in done.stdout
    assert "Traceback" not in done.output


def test_a_parameter_without_a_value_is_refused() -> None:
    done = run("check", "x.py", "--param", "period")
    assert done.exit_code == 2
    assert "key=value" in done.stderr


def test_a_module_that_never_ends_importing_is_stopped(tmp_path: Path) -> None:
    path = write(tmp_path, endless="while True:\n    pass\n") / "endless.py"
    done = subprocess.run(
        [sys.executable, "-m", "trade_pipeline.cli", "indicators", "check", path, "--limit", "1"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "did not end within 1 s and was stopped" in done.stdout
    assert not done.stderr
