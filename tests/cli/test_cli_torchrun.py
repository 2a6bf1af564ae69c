"""Two processes started by torchrun: the plan of one, written and told once."""

from __future__ import annotations

import json
import subprocess
import sys

import torch
from commands import ENVIRONMENT, expunge, tree
from safetensors.torch import load_file

from expunge.plan import Plan

OPTIONS = ("--method", "filter", "--batch-size", "3", "--json")


def torchrun(*arguments):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc-per-node", "2", "-m", "expunge", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, env=ENVIRONMENT)


def test_two_processes_make_the_plan_of_one(task, tmp_path):
    alone, both = tmp_path / "alone", tmp_path / "both"
    assert expunge("plan", *task.core, *OPTIONS, "--out", alone).code == 0
    done = torchrun("run", *task.core, *OPTIONS, "--out", both)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1
    results = json.loads(done.stdout)
    assert results == json.loads((both / "results.json").read_text())
    assert {"plan.safetensors", "report.html", "model"} <= set(tree(both))
    one, two = (Plan.load(f / "plan.safetensors") for f in (alone, both))
    assert one.edits.keys() == two.edits.keys() and len(one.edits) > 2
    for key, edit in one.edits.items():
        change, other = (a @ b for a, b in (edit.lowrank, two.edits[key].lowrank))
        torch.testing.assert_close(change, other, rtol=1e-6, atol=1e-6 * float(change.abs().max()))
    scores, others = (load_file(f / "scores.safetensors") for f in (alone, both))
    for key, score in scores.items():
        torch.testing.assert_close(score, others[key], rtol=1e-6, atol=1e-6 * float(score.max()))


def test_a_wrong_input_ends_every_process(task, tmp_path):
    done = torchrun("collect", *task.core, "--method", "manu", "--out", task.home)
    assert done.returncode != 0
    assert f"error: {task.home} exists and holds no expunge run" in done.stderr
    assert done.stdout == ""
