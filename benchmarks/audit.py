"""Audits of other projects for look-ahead, inside their own virtual environments.

Prints one JSON object a line, one for each peer, with the verdict on each of its cases: features as
the peer documents them, and features spoilt as its users spoil them. The reports go to stderr. Ends
with 1 if a verdict is not the expected one. Peers may be named: `python benchmarks/audit.py FinRL`.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from env_speed import PEERS, last_line, python_of, walk

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = {"gym-trading-env": "gym-trading-env", "FinRL": "env_speed"}
ROWS, STOCKS = 1_000, 3
TIMEOUT_S = 300


def audited(peer: str, path: Path) -> dict[str, Any]:
    """What a peer's own process found."""
    python, reason = python_of(REQUIREMENTS[peer])
    line: dict[str, Any] = {"benchmark": "audit", "peer": peer, "as_expected": None}
    if reason:
        return {**line, "note": reason}
    began = time.perf_counter()
    command = [str(python), "-I", str(PEERS / "run_audit.py"), peer, str(path), str(ROOT)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S, cwd=path.parent
        )
    except subprocess.TimeoutExpired:
        return {**line, "note": f"not done within {TIMEOUT_S} s"}
    if done.returncode:
        return {**line, "note": f"failed: {last_line(done.stderr)}"}
    cases = [json.loads(text) for text in done.stdout.splitlines() if text.startswith("{")]
    for case in cases:
        print(f"{case['case']}\n{case['report']}\n", file=sys.stderr)
    return {
        **line,
        "as_expected": all(case["verdict"] == case["expected"] for case in cases),
        "verdicts": {case["case"]: case["verdict"] for case in cases},
        "findings": {case["case"]: case["findings"] for case in cases},
        "seconds": round(time.perf_counter() - began, 1),
        "versions": cases[0]["versions"],
        "note": f"{ROWS} rows of a random walk",
    }


def main(named: list[str]) -> None:
    """Audit the named peers, or all."""
    if unknown := [peer for peer in named if peer not in REQUIREMENTS]:
        sys.exit(f"unknown peer {unknown[0]!r}; known: {', '.join(REQUIREMENTS)}")
    expected = True
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prices.npz"
        np.savez(path, **walk(ROWS, STOCKS))
        for peer in named or list(REQUIREMENTS):
            found = audited(peer, path)
            expected = expected and found["as_expected"] is not False
            print(json.dumps(found), flush=True)
    sys.exit(0 if expected else 1)


if __name__ == "__main__":
    main(sys.argv[1:])
