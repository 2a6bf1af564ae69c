"""The benchmark scripts at a size that a test can bear."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent.parent / "benchmarks"


def run(name, *options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPTS / name), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_gpu_benchmark_runs_on_a_cpu(tmp_path):
    out = tmp_path / "gpu.json"
    small = ("--shape", "tiny", "--people", 2, "--each", 3, "--batch-size", 3, "--repeats", 1)
    run("gpu.py", *small, "--dtype", "float32", "--moment-sites", 2, "--out", out)
    found = json.loads(out.read_text())
    assert found["run"]["questions"] == {"forget": 6, "retain": 6}
    assert found["run"]["run"]["manu"]["sites"] > 1 and found["run"]["run"]["filter"]["passes"] == 1
    told = {"neurons", "moments", "tenth", "moment_sites", "seconds"}
    assert set(found["ratios"]["ratios"]) == told
    seconds = [k["seconds"] for k in found["kernels"]["kernels"]]
    assert len(seconds) == 30 and seconds == sorted(seconds, reverse=True) and seconds[-1] >= 0


def test_the_speed_benchmark_runs(tmp_path):
    out = tmp_path / "speed.json"
    run("speed.py", "neurons", "moments", "--shape", "tiny", "--repeats", 1, "--out", out)
    found = json.loads(out.read_text())
    assert found["neurons"]["ratio"] > 0.5
    arithmetic = found["moments"]["arithmetic"]
    assert arithmetic["all"] - 1 == pytest.approx(10 * (arithmetic["tenth"] - 1))


def test_jobs_take_turns_forth_and_back(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from shapes import interleaved, ratio

    seen = []
    jobs = {name: lambda name=name: seen.append(name) for name in "abc"}
    seconds = interleaved(jobs, 2)
    assert "".join(seen) == "abc" + 2 * "abccba"
    assert [len(each) for each in seconds.values()] == [2, 2, 2]
    assert ratio({"a": [2.0, 9.0, 3.0], "b": [1.0, 3.0, 3.0]}, "a", "b") == 2.0
