"""The whole job: its figures, its files, and going on after a stop."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from commands import ENVIRONMENT, expunge, tree
from safetensors.torch import load_file

FILES = {
    "config.yaml",
    "figures",
    "model",
    "plan.safetensors",
    "report.html",
    "results.json",
    "run.json",
    "scores.safetensors",
    "seconds.json",
    "stats",
}
SETS = ("forget", "test", "retain", "neighbor", "real", "skills")


def timeless(results: dict) -> dict:
    """Results without what differs between two runs of the same thing."""
    return {k: v for k, v in results.items() if k != "seconds"}


@pytest.fixture
def copy(brief, tmp_path):
    """A copy of the brief run that may be changed."""
    shutil.copytree(brief[0], tmp_path / "run")
    return tmp_path / "run"


def test_json_is_the_results_and_nothing_else(finished):
    folder, said = finished
    assert said.code == 0, said.err
    assert said.err == ""
    assert said.out.count("\n") == 1
    assert said.json == json.loads((folder / "results.json").read_text())
    assert {p.name for p in folder.iterdir()} == FILES


def test_results_have_the_promised_keys(finished, task):
    results = finished[1].json
    assert set(results) == {
        "models", "summary", "method", "plan", "seconds", "versions", "seed", "notes",
    }  # fmt: skip
    assert list(results["models"]) == ["vanilla", "unlearned", "gold"]
    assert (results["method"], results["seed"]) == ("manu", 5)
    assert {"collect", "plan", "apply", "evaluate"} <= set(results["seconds"])
    assert all(v > 0 for v in results["seconds"].values())
    assert set(results["plan"]) == {"neurons", "sites", "bytes"}
    for name in ("retain_kept", "neighbor_kept", "real_kept", "skills_kept", "modality_gap"):
        assert name in results["summary"]
    assert set(results["summary"]["depth"]) == {"multi", "text"}
    assert set(results["summary"]["still_known"]) == {"multi", "text"}
    for model in results["models"].values():
        assert tuple(model) == SETS
        for name in SETS:
            asked = model[name]["text"]
            assert asked["all"]["n"] == sum(e.has("text") for e in task.sets[name])
            low, high = asked["all"]["ci95"]
            assert 0 <= low <= asked["all"]["accuracy"] <= high <= 1
        assert model["forget"]["multi"]["classification"]["chance"] == 0.25
        assert set(model["forget"]["multi"]["generation"]) == {
            "accuracy", "rouge_l", "n", "ci95",
        }  # fmt: skip
        assert 0 < model["forget"]["multi"]["answer_probability"] < 1


def test_plan_has_the_size_of_the_budget(finished):
    """3 of 4 vision layers are live: 0.1 of 3 * 384 + 4 * 1024 neurons."""
    assert finished[1].json["plan"]["neurons"] == int(0.1 * (3 * 384 + 4 * 1024))
    plan = load_file(finished[0] / "plan.safetensors")
    assert sum(t.numel() for t in plan.values()) == int(0.1 * (3 * 384 + 4 * 1024))


def test_files_and_memory_give_the_same_figures(finished, task, tmp_path):
    from expunge.config import RunConfig
    from expunge.data import Suite
    from expunge.pipeline import Run
    from expunge.planning import settled

    given = {"method": "manu", "budget": 0.1, "seed": 5, "batch_size": 8}
    paths = {"model": str(task.vanilla), "gold": str(task.gold)}
    job = Run(tmp_path / "run", settled(RunConfig.of({**given, **paths})), Suite.of(**task.sets))
    results = job.all()
    theirs = finished[1].json
    assert results["models"] == theirs["models"]
    assert results["summary"] == theirs["summary"]
    ours = load_file(tmp_path / "run" / "plan.safetensors")
    held = load_file(finished[0] / "plan.safetensors")
    assert ours.keys() == held.keys()
    assert all(torch.equal(ours[name], held[name]) for name in ours)


def test_table_names_models_sets_and_conditions(finished, task):
    said = expunge("run", *task.full, "--out", finished[0])
    assert said.code == 0, said.err
    assert said.err == ""
    header = next(line for line in said.out.splitlines() if not line.startswith("note: "))
    assert header.split() == ["set", "asked", "with", "vanilla", "unlearned", "gold"]
    for name in SETS:
        assert f"\n{name}" in said.out
    assert "image+text" in said.out
    assert "text only" in said.out
    assert "note: skills: " in said.out
    assert f"report: {finished[0] / 'report.html'}" in said.out


STOPS = {
    "after figures": ("results.json", "report.html"),
    "in evaluate": ("results.json", "report.html", "figures/unlearned.json"),
    "after plan": ("results.json", "report.html", "figures", "model"),
    "after collect": (
        "results.json", "report.html", "figures", "model", "plan.safetensors", "scores.safetensors",
    ),
}  # fmt: skip


@pytest.mark.parametrize("lost", STOPS.values(), ids=STOPS.keys())
def test_a_stopped_run_goes_on(brief, copy, task, lost):
    for name in lost:
        path = copy / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = tree(copy)
    said = expunge("run", *task.brief, "--out", copy, "--json")
    assert said.code == 0, said.err
    assert timeless(said.json) == timeless(brief[1].json)
    after = tree(copy)
    done = {
        n for n in before
        if n.startswith(("stats/", "figures/", "model/", "plan", "scores", "run.json", "config"))
    }  # fmt: skip
    assert {n: after[n] for n in done} == {n: before[n] for n in done}
    assert after.keys() == tree(brief[0]).keys()


def test_stages_one_by_one_are_the_whole_job(brief, task, tmp_path):
    out = tmp_path / "run"
    settings = ["--method", "manu", "--batch-size", "8", "--out", out, "--json"]
    collected = expunge("collect", *task.core, *settings)
    assert collected.code == 0, collected.err
    names = [f"{s}.{c}.safetensors" for s in ("forget", "retain") for c in ("multi", "text")]
    assert collected.json == {"stats": [str(out / "stats" / n) for n in names]}
    stats = tree(out / "stats")
    planned = expunge("plan", *task.core, *settings, "--budget", "0.1", "--seed", "5")
    assert planned.code == 0, planned.err
    assert planned.json["plan"] == str(out / "plan.safetensors")
    assert planned.json["bytes"] == brief[1].json["plan"]["bytes"]
    plan = (out / "plan.safetensors").stat().st_mtime_ns
    done = expunge("run", *task.brief, "--out", out, "--json")
    assert done.code == 0, done.err
    assert timeless(done.json) == timeless(brief[1].json)
    assert tree(out / "stats") == stats
    assert (out / "plan.safetensors").stat().st_mtime_ns == plan


@pytest.mark.parametrize(
    ("option", "value"), [("--budget", "0.2"), ("--seed", "6"), ("--gold", None)]
)
def test_other_settings_are_refused(finished, task, option, value):
    options = list(task.full)
    at = options.index(option)
    options[at : at + 2] = [option, value] if value else []
    before = tree(finished[0])
    said = expunge("run", *options, "--out", finished[0])
    assert (said.code, said.out) == (2, "")
    assert f"it differs in: config {option[2:]})" in said.err
    assert tree(finished[0]) == before


def test_strangers_may_still_be_given_to_a_finished_run(copy, task):
    """They are for membership inference alone; nothing that was measured changes."""
    before = tree(copy)
    options = [*task.brief, "--stranger", task.file("neighbor")]
    said = expunge("run", *options, "--out", copy, "--json")
    assert said.code == 0, said.err
    assert "stranger" not in said.json["models"]["vanilla"]
    assert tree(copy)["figures/vanilla.json"] == before["figures/vanilla.json"]
    attacked = expunge("attack", copy, "--kind", "membership", "--json")
    assert attacked.code == 0, attacked.err
    assert "stranger whom no model has seen" in attacked.json["membership"]["note"]


def test_a_plan_no_longer_takes_another_budget(copy, task):
    shutil.rmtree(copy / "figures")
    said = expunge("run", *task.brief, "--budget", "0.3", "--out", copy)
    assert said.code == 2
    assert "config budget" in said.err


def test_other_data_are_refused(finished, task, tmp_path):
    from expunge.data import write_jsonl

    changed = tmp_path / "retain.jsonl"
    write_jsonl(task.sets["retain"][1:], changed)
    options = [str(changed) if o == str(task.file("retain")) else o for o in task.full]
    said = expunge("run", *options, "--out", finished[0])
    assert said.code == 2
    assert "config retain, data retain" in said.err


def test_changed_weights_are_refused(copy, task, tmp_path, llava, processor):
    """The same path, another model in it."""
    from expunge.edit import save_checkpoint
    from expunge.fiction.build import build_model

    state = json.loads((copy / "run.json").read_text())
    state["config"]["model"] = str(tmp_path / "vanilla")
    (copy / "run.json").write_text(json.dumps(state, indent=1) + "\n")
    save_checkpoint(build_model(processor, seed=9), processor, tmp_path / "vanilla")
    options = [str(tmp_path / "vanilla") if o == str(task.vanilla) else o for o in task.brief]
    said = expunge("run", *options, "--out", copy)
    assert said.code == 2
    assert "weights of the model" in said.err


def heed_interrupts():
    """As in a terminal; what a shell starts in the background ignores them from the start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_interrupt_leaves_a_run_that_goes_on(brief, task, tmp_path):
    """Ctrl-C once vanilla has been evaluated; what was done by then is not done again.

    Nothing but our own line is on stderr: no warning of a library, though nothing hushes them.
    """
    for attempt in range(3):  # on a busy machine a run may be over before the signal comes
        out = tmp_path / f"run{attempt}"
        command = [sys.executable, "-m", "expunge", "run", *task.brief, "--out", str(out), "--json"]
        job = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
            preexec_fn=heed_interrupts,
        )
        deadline = time.monotonic() + 90
        while not (out / "figures" / "vanilla.json").exists() and time.monotonic() < deadline:
            assert job.poll() is None, job.communicate()
            time.sleep(0.01)
        job.send_signal(signal.SIGINT)
        said, complaint = job.communicate(timeout=30)
        if job.returncode:
            break
        assert (complaint, json.loads(said)["seed"]) == ("", 5)  # whole, not half interrupted
    told = "interrupted; run the same command again to go on\n"
    assert (job.returncode, said, complaint) == (130, "", told)
    assert not (out / "results.json").exists()
    before = tree(out)
    again = expunge("run", *task.brief, "--out", out, "--json")
    assert again.code == 0, again.err
    assert timeless(again.json) == timeless(brief[1].json)
    after = tree(out)
    kept = [n for n in before if n.startswith(("stats/", "plan", "model/", "figures/vanilla"))]
    assert len(kept) > 10
    assert {n: after[n] for n in kept} == {n: before[n] for n in kept}
