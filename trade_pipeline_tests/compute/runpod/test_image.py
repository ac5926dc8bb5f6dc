"""The Dockerfile, as far as it can be looked at without building it."""

import json
import re
import subprocess
import sys

from trade_pipeline_tests.compute.runpod.pods import PROJECT


def dockerfile() -> list[list[str]]:
    """The instructions of the Dockerfile, a list of words each."""
    text = (PROJECT / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [line.split() for line in joined.splitlines() if line.strip()]


def test_the_images_base_is_pinned_to_the_python_of_the_project() -> None:
    bases = [words[1] for words in dockerfile() if words[0] == "FROM"]
    assert len(bases) == 1
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", bases[0])


def test_the_image_leaves_the_command_to_runpod() -> None:
    found = {words[0]: " ".join(words[1:]) for words in dockerfile()}
    assert json.loads(found["ENTRYPOINT"]) == []
    command = json.loads(found["CMD"])
    done = subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True)
    assert done.returncode == 0
    assert "--attempt" in done.stdout


def test_the_image_copies_what_is_there_and_the_build_gets_all_of_it() -> None:
    ignored = (PROJECT / ".dockerignore").read_text(encoding="utf-8").split()
    copied = [name for words in dockerfile() if words[0] == "COPY" for name in words[1:-1]]
    assert {"constraints.txt", "pyproject.toml", "trade_pipeline"} <= set(copied)
    for name in copied:
        assert (PROJECT / name).exists()
        assert f"!{name}" in ignored


def test_every_package_of_the_image_is_locked() -> None:
    runs = [" ".join(words[1:]) for words in dockerfile() if words[0] == "RUN"]
    installs = [part for run in runs for part in run.split("&&") if "pip install" in part]
    assert len(installs) >= 3
    for install in installs:
        assert "--constraint constraints.txt" in install
        assert not re.search(r"index|https?:|extra|find-links", install), install
    locked = (PROJECT / "constraints.txt").read_text(encoding="utf-8").split()
    (torch,) = [word for part in installs for word in part.split() if word.startswith("torch")]
    assert torch in locked
