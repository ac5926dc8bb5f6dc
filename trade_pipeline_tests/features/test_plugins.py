"""Plug-ins: found by entry point and by file, broken ones listed, never in the way."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trade_pipeline.compute.runpod.serverless import answer
from trade_pipeline.features.indicators import SHIPPED
from trade_pipeline.features.plugins.importing import Source, syntax_digest
from trade_pipeline.features.plugins.loading import (
    SHIPPED_ONLY,
    Plugins,
    load_plugins,
    parameter_problems,
)
from trade_pipeline.features.plugins.specification import parameters_text
from trade_pipeline.features.plugins.trial import try_indicator
from trade_pipeline.features.registry import BrokenPluginError, indicators, resolve
from trade_pipeline.features.table import FeatureError, feature_table
from trade_pipeline.settings.base import SettingsError
from trade_pipeline.settings.features import FeatureSetSettings
from trade_pipeline_tests.features.conftest import minutes
from trade_pipeline_tests.features.plugin_files import drop_in, write

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs" / "indicators.md"
MODEL = "class Open(Settings):\n    model_config = {'extra': 'allow'}\n\n\n"

# File to what its error must say.
BREAKAGES = {
    "absent_module": ("\nimport no_such_module_at_all\n", ["line 2", "no_such_module_at_all"]),
    "null_byte": ("x = 1\n\0\n", ["is no Python: ", "null byte"]),
    "no_python": ("x = 1\ndef (:\n", ["line 2 is no Python"]),
    "raises": ("\n\nraise OSError(2, 'gone')\n", ["line 3", "FileNotFoundError", "gone"]),
    "exits": ("import sys\nsys.exit(3)\n", ["ends the process", "line 2", "SystemExit"]),
    "interrupts": ("raise KeyboardInterrupt\n", ["line 1", "KeyboardInterrupt"]),
    "dies": ("import os\nos._exit(7)\n", ["ended the process with exit code 7"]),
    "killed": ("import os\nos.kill(os.getpid(), 9)\n", ["ended by signal 9"]),
    "loops": ("while True:\n    pass\n", ["does not end within 2 s"]),
    "recurses": ("def f():\n    f()\n\n\nf()\n", ["line 2", "RecursionError"]),
    "unprintable": (
        "class Odd(Exception):\n    def __str__(self):\n        raise ValueError\n\n\nraise Odd\n",
        ["line 6", "Odd"],
    ),
    "holds_nothing": ("x = 1\n", ["holds no Indicator"]),
    "upper_case": (drop_in("Upper"), ["its name is 'Upper'", "lower case"]),
    "open_model": (
        drop_in("loose").replace("MADE", MODEL + "MADE").replace("=NoParameters", "=Open"),
        ["frozen and closed"],
    ),
    "no_model": (drop_in("dicts").replace("=NoParameters", "=dict"), ["derived from", "Settings"]),
    "bad_input": (drop_in("inputs").replace('"close",', '"vwap",'), ["'vwap'", "known are open"]),
    "no_strings": (drop_in("numbers", outputs="(1, 2)"), ["its outputs are (1, 2)"]),
    "same_twice": (drop_in("double", outputs="('a', 'a')"), ["('a', 'a') are not unique"]),
    "outputs_fail": (drop_in("fails", outputs="1 / 0"), ["ZeroDivisionError", "line "]),
    "outputs_exit": (drop_in("leaves", outputs="exit(4)"), ["SystemExit"]),
    "negative": (drop_in("ahead", lookback="-1"), ["its lookback is -1"]),
    "no_number": (drop_in("sixth", more="implementation='six'"), ["implementation is 'six'"]),
    "no_function": (drop_in("none", more="references=None"), ["references must be a function"]),
    "shipped_name": (drop_in("rsi"), ["'rsi' has the name of one that ships"]),
    "twin_a": (drop_in("twin"), ["'twin' is given by", "twin_b.py too"]),
    "twin_b": (drop_in("twin"), ["'twin' is given by", "twin_a.py too"]),
}


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What ran out of time is remembered among these tests only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Plugins:
    """All breakages and one good file in one folder, with an import limit of 2 s."""
    texts = {stem: text for stem, (text, _) in BREAKAGES.items()}
    folder = write(tmp_path_factory.mktemp("broken"), zz_good=drop_in("good"), **texts)
    return load_plugins(folder, limit_s=2.0)


@pytest.mark.parametrize("stem", BREAKAGES)
def test_each_breakage_is_listed_with_a_sentence_and_gives_nothing(
    broken: Plugins, stem: str
) -> None:
    mine = [one for one in broken.broken if Path(one.origin).stem == stem]
    assert len(mine) == 1, broken.broken
    for words in BREAKAGES[stem][1]:
        assert words in mine[0].error
    assert "\n" not in mine[0].error


def test_what_is_broken_takes_nothing_else_along(broken: Plugins) -> None:
    assert set(broken.known) == {one.name for one in SHIPPED} | {"good"}
    assert broken.known["rsi"].origin == "shipped"
    assert Path(broken.known["good"].origin).name == "zz_good.py"
    assert {Path(one.origin).stem for one in broken.broken} == set(BREAKAGES)


def test_a_folder_that_is_not_there_holds_no_plug_ins(tmp_path: Path) -> None:
    assert load_plugins(tmp_path / "absent") == load_plugins(None)
    assert indicators() == {one.name: one for one in SHIPPED}


def test_a_file_that_cannot_be_read_is_listed(tmp_path: Path) -> None:
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "dangling.py").symlink_to(tmp_path / "nowhere")
    found = load_plugins(tmp_path)
    assert [(Path(one.origin).name, one.error) for one in found.broken] == [
        ("dangling.py", "cannot be read (No such file or directory)"),
        ("folder.py", "cannot be read (Is a directory)"),
    ]


def test_one_content_is_run_once_in_a_process_and_another_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    run = f"import os\nwith open({str(log)!r}, 'a') as file:\n    print(os.getpid(), file=file)\n"
    folder = write(tmp_path / "files", noted=run + drop_in("noted"))

    def runs_here() -> int:
        return log.read_text().split().count(str(os.getpid()))

    first = load_plugins(folder).known["noted"].indicator
    assert runs_here() == 1
    assert load_plugins(folder).known["noted"].indicator is first
    assert runs_here() == 1
    write(folder, noted=run + drop_in("noted", "close"))
    again = load_plugins(folder).known["noted"].indicator
    assert runs_here() == 2
    close = np.array([1.0, 2.0])
    assert again.compute({"close": close}, again.parameters())["noted"] is close


def test_what_other_modules_define_is_not_taken_for_the_files_own(tmp_path: Path) -> None:
    borrowed = "from trade_pipeline.features.indicators import SHIPPED\nRSI = SHIPPED[0]\n"
    found = load_plugins(write(tmp_path, borrows=borrowed + drop_in("own")))
    assert not found.broken
    assert set(found.known) == {*SHIPPED_ONLY.known, "own"}


def test_annotations_that_are_texts_are_understood(tmp_path: Path) -> None:
    text = drop_in("later").replace('    """None."""', "    period: Period = 3")
    text = "from __future__ import annotations\n" + text.replace(
        "import Indicator", "import Indicator, Period"
    )
    found = load_plugins(write(tmp_path, later=text))
    assert not found.broken
    assert found.known["later"].indicator.parameters().period == 3


def test_comments_docstrings_and_layout_do_not_enter_the_digest_and_a_formula_does() -> None:
    text = 'def f(x):\n    """Says."""\n    return x + 1\n'
    digest = syntax_digest(text.encode())
    assert syntax_digest(b"# why\n\ndef f( x ):\n    return (x + 1)  # so\n") == digest
    assert syntax_digest(text.replace("Says.", "Says more.").encode()) == digest
    assert syntax_digest(text.replace("+ 1", "+ 2").encode()) != digest
    assert syntax_digest(text.replace('"""Says."""', "'data'; 'more'").encode()) != digest


def entries(*names: str) -> FeatureSetSettings:
    return FeatureSetSettings.model_validate({"indicators": [{"name": name} for name in names]})


def test_a_drop_in_file_computes_features_beside_shipped_ones(tmp_path: Path) -> None:
    plugins = load_plugins(write(tmp_path, change=drop_in()))
    close = np.array([1.0, 2.0, 3.0, 1.5])
    bars = minutes(open=close, high=close, low=close, close=close, volume=close)
    found = resolve(entries("change", "returns"), "x.yaml", plugins)
    table = feature_table([bars], found)
    assert table["change"].to_list() == [1.0, 0.5, -0.5]
    assert table["change"].to_list() == table["return_1"].to_list()
    assert found.implementations["plugin.change"] == plugins.known["change"].code
    assert "plugin.returns" not in found.implementations


def test_a_plug_in_that_fails_while_computing_is_named_and_cannot_harm_what_others_read(
    tmp_path: Path,
) -> None:
    harmful = drop_in("harmful", "close", before="close[:] = 1.0")
    plugins = load_plugins(write(tmp_path, harmful=harmful))
    price = np.array([1.0, 2.0, 3.0])
    bars = minutes(open=price, high=price, low=price, close=price, volume=price)
    for frame in (bars, bars[:1].vstack(bars[1:])):  # of one chunk and of two
        with pytest.raises(FeatureError, match=r"'harmful' fails: ValueError.*read-only"):
            feature_table([frame], resolve(entries("harmful", "returns"), "x.yaml", plugins))
        assert frame["close"].to_list() == [1.0, 2.0, 3.0]


def test_an_unknown_name_is_a_broken_plug_in_only_where_there_is_one(broken: Plugins) -> None:
    with pytest.raises(BrokenPluginError) as caught:
        resolve(entries("absent_module"), "configs/features/x.yaml", broken)
    for words in ("x.yaml: indicators.0", "'absent_module'", "absent_module.py: ", "line 2"):
        assert words in str(caught.value)
    assert "loops.py" not in str(caught.value), "of others nobody asked"
    with pytest.raises(SettingsError, match="unknown indicator 'absent_module'") as plain:
        resolve(entries("absent_module"), "x.yaml", SHIPPED_ONLY)
    assert not isinstance(plain.value, BrokenPluginError)


@pytest.mark.parametrize(
    ("outputs", "words"),
    [("1 // parameters.level", "ZeroDivisionError"), ("(parameters.level,)", "outputs are (0,)")],
)
def test_a_plug_in_that_fails_at_a_sets_parameters_is_broken_there_only(
    tmp_path: Path, outputs: str, words: str
) -> None:
    text = drop_in("picky", outputs=f"('picky',) if parameters.level else {outputs}")
    text = text.replace('    """None."""', "    level: int = 1")
    plugins = load_plugins(write(tmp_path, picky=text))
    assert not plugins.broken
    chosen = FeatureSetSettings.model_validate(
        {"indicators": [{"name": "picky", "params": {"level": 0}}]}
    )
    with pytest.raises(BrokenPluginError) as caught:
        resolve(chosen, "x.yaml", plugins)
    assert words in str(caught.value)
    assert "picky.py" in str(caught.value)
    wrong = FeatureSetSettings.model_validate(
        {"indicators": [{"name": "picky", "params": {"levle": 0}}]}
    )
    with pytest.raises(SettingsError, match="Did you mean 'level'") as plain:
        resolve(wrong, "x.yaml", plugins)
    assert not isinstance(plain.value, BrokenPluginError)


def at_level(level: object) -> FeatureSetSettings:
    return FeatureSetSettings.model_validate(
        {"indicators": [{"name": "hidden", "params": {"level": level}}]}
    )


def hidden(how: str) -> str:
    """A drop-in file that is sound at its default level only."""
    text = drop_in("hidden", outputs=f"('hidden',) if parameters.level == 1 else ({how})")
    return text.replace('    """None."""', "    level: int = 1")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("__import__('os')._exit(3)", "its specification ended the process with exit code 3"),
        ("exit(4)", "its specification fails: SystemExit"),
        ("[0 for _ in iter(int, 1)]", "its specification does not end within 2 s"),
    ],
)
def test_a_plug_in_that_would_end_this_process_at_a_sets_parameters_is_broken_there_only(
    tmp_path: Path, how: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugins = load_plugins(write(tmp_path, hidden=hidden(how)), limit_s=2.0)
    assert not plugins.broken
    assert resolve(at_level(1), "x.yaml", plugins).names == ("hidden",)
    for executable in (sys.executable, "/bin/false"):  # the second time without a process
        monkeypatch.setattr(sys, "executable", executable)
        with pytest.raises(BrokenPluginError) as caught:
            resolve(at_level(2), "x.yaml", plugins)
        for each in ("x.yaml: indicators.0 (hidden)", f"{tmp_path}/hidden.py: ", words):
            assert each in str(caught.value)


def test_several_sets_are_tried_in_one_process_and_shipped_indicators_in_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    run = f"import os\nwith open({str(log)!r}, 'a') as file:\n    print(os.getpid(), file=file)\n"
    plugins = load_plugins(write(tmp_path / "files", hidden=run + hidden("('other',)")))
    log.unlink()
    several = [one for level in (1, 2, 3, 1) for one in at_level(level).indicators]
    assert parameter_problems(plugins, several) == [None] * 4
    assert len(log.read_text().split()) == 1
    monkeypatch.setattr(sys, "executable", "/bin/false")  # a process would end in an error
    assert parameter_problems(plugins, several) == [None] * 4
    assert parameter_problems(plugins, entries("rsi", "nothing").indicators) == [None, None]


LOAD = """
import sys
from pathlib import Path
from trade_pipeline.features.plugins.loading import load_plugins
print(*(one.error for one in load_plugins(Path(sys.argv[1]), limit_s=2.0).broken))
"""


def load_elsewhere(folder: Path, cache: Path) -> str:
    """What another process finds broken in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "XDG_CACHE_HOME": str(cache)}
    words = [sys.executable, "-c", LOAD, str(folder)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.rstrip("\n")


def test_a_file_that_loops_costs_its_time_once_an_hour(tmp_path: Path) -> None:
    folder, cache = write(tmp_path / "files", loops="while True:\n    pass\n"), tmp_path / "cache"
    tried = "importing it does not end within 2 s"
    known_already = f"{tried} (seen at "
    assert load_elsewhere(folder, cache) == tried
    assert known_already in load_elsewhere(folder, cache)

    (memory,) = (cache / "trade_pipeline").iterdir()
    known = json.loads(memory.read_text())
    memory.write_text(json.dumps({key: when - 3_601 for key, when in known.items()}))
    assert load_elsewhere(folder, cache) == tried, "an hour ago"
    memory.write_text("[{")
    assert load_elsewhere(folder, cache) == tried, "damaged"
    assert known_already in load_elsewhere(folder, cache)
    write(folder, loops=drop_in("mended"))
    assert load_elsewhere(folder, cache) == "", "another content"


@pytest.fixture
def distribution(tmp_path: Path) -> Path:
    """An installed distribution with five entry points, three of them broken."""
    site = tmp_path / "site"
    write(site / "made_up", __init__="", many=drop_in("many"), one=drop_in("one"), dies="1 / 0\n")
    info = site / "made_up-1.2.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: made-up\nVersion: 1.2.3\n")
    (info / "entry_points.txt").write_text(
        "[trade_pipeline.indicators]\n"
        "a_module = made_up.many\n"
        "an_indicator = made_up.one:MADE\n"
        "the_same = made_up.one\n"
        "no_indicator = made_up.one:compute\n"
        "no_attribute = made_up.one:nothing\n"
        "no_import = made_up.dies\n"
    )
    return site


def test_a_distribution_gives_indicators_by_entry_point(distribution: Path, tmp_path: Path) -> None:
    script = (
        "import json, sys; from pathlib import Path\n"
        "from trade_pipeline.features.plugins.loading import load_plugins\n"
        "found = load_plugins(Path(sys.argv[1]))\n"
        "known = {n: [k.origin, k.code] for n, k in found.known.items() if k.code}\n"
        "print(json.dumps([known, [str(one) for one in found.broken]]))\n"
    )
    folder = write(tmp_path / "files", also=drop_in("one"), own=drop_in("own"))
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{distribution}"},
        capture_output=True,
        text=True,
        check=True,
    )
    known, errors = json.loads(done.stdout)
    assert known["many"] == ["made-up 1.2.3", "made-up 1.2.3"]
    assert set(known) == {"many", "own"}
    wanted = [
        ["made-up 1.2.3", "'no_indicator'", "function made_up.one:compute"],
        ["made-up 1.2.3", "AttributeError", "nothing"],
        ["made-up 1.2.3", "dies.py, line 1", "ZeroDivisionError"],
        ["made-up 1.2.3", "'one' is given by", "also.py too"],
        ["also.py", "'one' is given by made-up 1.2.3 too"],
    ]
    assert len(errors) == len(wanted), errors
    for words in wanted:
        assert any(all(word in error for word in words) for error in errors), words


def test_no_plug_ins_cost_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")  # a process would end in an error
    assert not load_plugins(tmp_path).broken


def test_the_table_of_the_docs_is_what_ships() -> None:
    filled = {"reference": "sample.MSFT.1d", "series": ["sample.MSFT.1d"]}
    rows = []
    for one in SHIPPED:
        fields = one.parameters.model_fields.items()
        given = {key: filled[key] for key, field in fields if field.is_required()}
        chosen = one.parameters.model_validate(given)
        columns = ", ".join(f"`{column}`" for column in one.outputs(chosen))
        cells = (f"`{one.name}`", parameters_text(one), columns, str(one.lookback(chosen)))
        rows.append(f"| {' | '.join(cells)} |")
    written = DOCS.read_text(encoding="utf-8").partition("|---|")[2].partition("\n\n")[0]
    assert written.splitlines()[1:] == rows


def test_the_example_of_the_docs_is_sound(tmp_path: Path) -> None:
    example = DOCS.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    path = write(tmp_path, efficiency=example) / "efficiency.py"
    assert set(load_plugins(tmp_path).known) == {*SHIPPED_ONLY.known, "efficiency"}
    said: list[Any] = []
    try_indicator(
        {"source": Source("file", str(path)), "position": 0, "parameters": {}}, said.append
    )
    assert {one["line"][1] for one in said if "line" in one} == {"holds"}


def test_a_serverless_worker_takes_files_from_its_volume_and_names_what_it_lacks(
    tmp_path: Path,
) -> None:
    values = [1.0, 2.0, 3.0]
    bars = {name: values for name in ("open", "high", "low", "close", "volume")}
    job = {
        "kind": "indicators",
        "bars": {"ts": [0, 60_000, 120_000], **bars},
        "indicators": [{"name": "change"}],
    }
    lacking = answer(job, "one", tmp_path, lambda _: None)
    assert "unknown indicator 'change'" in lacking["error"]
    write(tmp_path / "indicators", change=drop_in())
    assert answer(job, "two", tmp_path, lambda _: None)["columns"]["change"] == [1.0, 0.5]
