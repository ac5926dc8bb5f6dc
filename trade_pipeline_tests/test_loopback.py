"""A test that leaves loopback fails, whoever swallows the error, and so does the run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Of a network that only documents use; a name of a domain that cannot exist.
ADDRESS, NAME = "192.0.2.1", "api.example.invalid"
START = f"""
import asyncio, os, socket, subprocess, sys, threading
from contextlib import suppress
import httpx, pytest

def connect(address=("{ADDRESS}", 80)):
    with socket.create_connection(address, timeout=0.2):
        pass
"""
CONNECT = f"import socket; socket.create_connection(('{ADDRESS}', 80), timeout=0.2)"
FAILS = {
    "plainly": "connect()",
    "by name": f"connect(('{NAME}', 80))",
    "by its own name": "socket.gethostbyname(socket.gethostname() + '.invalid')",
    "without waiting": f"""
        with socket.socket() as one:
            one.setblocking(False)
            one.connect_ex(('{ADDRESS}', 80))""",
    "by a datagram": f"""
        with socket.socket(type=socket.SOCK_DGRAM) as one:
            one.sendto(b'?', ('{ADDRESS}', 53))""",
    "by version 6": f"""
        with socket.socket(socket.AF_INET6) as one:
            one.connect(('::ffff:{ADDRESS}', 80))""",
    "by a client": f"httpx.get('http://{NAME}/')",
    "in a loop of events": f"asyncio.run(asyncio.open_connection('{ADDRESS}', 80))",
    "swallowed": """
        with suppress(BaseException):
            connect()""",
    "taken for what was wanted": """
        with pytest.raises(Exception):
            connect()""",
    "skipped after": """
        try:
            connect()
        except Exception:
            pytest.skip('no network')""",
    "in a thread": """
        def swallowing():
            with suppress(BaseException):
                connect()
        thread = threading.Thread(target=swallowing)
        thread.start()
        thread.join()""",
    "in a process": f"""
        subprocess.run([sys.executable, '-c', "{CONNECT}"], stderr=subprocess.DEVNULL)""",
    "in a process with an environment of its own": f"""
        subprocess.run([sys.executable, '-c', "{CONNECT}"], env={{}}, stderr=subprocess.DEVNULL)""",
    "in a process with a path of its own": f"""
        subprocess.run(
            [sys.executable, '-c', "{CONNECT}"],
            env={{**os.environ, 'PYTHONPATH': os.getcwd()}},
            stderr=subprocess.DEVNULL,
        )""",
    "in a process of a process": f"""
        inner = [sys.executable, '-c', "{CONNECT}"]
        outer = f'import subprocess; subprocess.run({{inner!r}}, env={{{{}}}})'
        subprocess.run([sys.executable, '-c', outer], stderr=subprocess.DEVNULL)""",
    "in a fork": """
        child = os.fork()
        if not child:
            with suppress(BaseException):
                connect()
            os._exit(0)
        os.waitpid(child, 0)""",
}
PASSES = {
    "at home": """
        for host, family in (('127.0.0.1', socket.AF_INET), ('::1', socket.AF_INET6)):
            with socket.create_server((host, 0), family=family) as server:
                connect(server.getsockname()[:2])""",
    "at home by name": """
        with socket.create_server(('localhost', 0)) as server:
            connect(('localhost', server.getsockname()[1]))""",
    "listening to all": """
        with socket.create_server(('', 0)):
            socket.getaddrinfo(None, 0, flags=socket.AI_PASSIVE)""",
    "by a file": """
        one, other = socket.socketpair(socket.AF_UNIX)
        one.sendmsg([b'here'])
        assert other.recv(4) == b'here'
        one.close()
        other.close()""",
}


class Run:
    """What pytest said of a file of tests, run in a process of its own."""

    def __init__(self, folder: Path, text: str, *options: str) -> None:
        (folder / "test_one.py").write_text(START + text, encoding="utf-8")
        (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        plug_ins = ("-p", "trade_pipeline_tests.loopback", "-p", "no:cacheprovider")
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-rA", *plug_ins, *options],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
            capture_output=True,
            text=True,
        )
        self.code, self.text = done.returncode, done.stdout + done.stderr

    def verdicts(self) -> dict[str, str]:
        """Of each test by its name; the worst of its phases."""
        found: dict[str, str] = {}
        for line in self.text.splitlines():
            verdict, _, rest = line.partition(" test_one.py::test_")
            if verdict in ("PASSED", "FAILED", "ERROR"):
                name = rest.split(" - ")[0]
                found[name] = verdict if found.get(name) in (None, "PASSED") else found[name]
        return found


def _tests(bodies: dict[str, str]) -> str:
    made = []
    for name, body in bodies.items():
        lines = body if body.startswith("\n") else f"\n        {body}"
        made.append(
            f"def test_{name.replace(' ', '_')}():{lines.replace(chr(10) + '    ', chr(10))}\n"
        )
    return "\n".join(made)


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["one process", "two workers"])
def test_a_test_that_leaves_loopback_fails(tmp_path: Path, options: tuple[str, ...]) -> None:
    run = Run(tmp_path, _tests(FAILS | PASSES), *options)
    expected = dict.fromkeys(FAILS, "FAILED") | dict.fromkeys(PASSES, "PASSED")
    named = {name.replace(" ", "_"): verdict for name, verdict in expected.items()}
    assert run.verdicts() == named, run.text
    assert ADDRESS in run.text and NAME in run.text
    assert "Give the code under test the address of a fake" in run.text


def test_what_a_fixture_or_an_end_tries_fails_its_test(tmp_path: Path) -> None:
    swallowing = "    with suppress(BaseException):\n        connect()\n"
    before = f"@pytest.fixture\ndef before():\n{swallowing}"
    after = f"@pytest.fixture\ndef after():\n    yield\n{swallowing}"
    tests = "def test_one(before): pass\ndef test_other(after): pass\n"
    run = Run(tmp_path, f"{before}\n{after}\n{tests}")
    assert run.code == 1
    assert run.verdicts() == {"one": "ERROR", "other": "ERROR"}, run.text


@pytest.mark.parametrize("options", [(), ("-n", "1")], ids=["one process", "a worker"])
@pytest.mark.parametrize(
    "text",
    [
        "with suppress(BaseException):\n    connect()\ndef test_one(): pass\n",
        "@pytest.mark.xfail\ndef test_one():\n    connect()\n",
    ],
    ids=["while collecting", "an expected failure"],
)
def test_a_try_that_fails_no_test_fails_the_run(
    tmp_path: Path, text: str, options: tuple[str, ...]
) -> None:
    run = Run(tmp_path, text, *options)
    assert run.code == 1, run.text
    assert "left loopback" in run.text


def test_a_sitecustomize_that_is_hidden_runs_too(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.own = 1\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", "import sys; print(sys.own, 'only_loopback' in sys.modules)"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "1 True\n"
