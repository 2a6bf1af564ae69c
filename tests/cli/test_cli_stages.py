"""The other commands: apply, undo, evaluate, inspect, report, list, and what goes to stderr."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest
import torch
import transformers
from commands import expunge, tree
from safetensors.torch import load_file

LISTS = ("methods", "metrics", "formats", "families", "attacks")


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(one, two):
    """Whether two checkpoints hold the same tensors, bit for bit."""
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


@pytest.fixture(scope="module")
def edited(finished, task, tmp_path_factory):
    """What `apply` writes for the plan of the finished run, and what it says."""
    out = tmp_path_factory.mktemp("edited") / "model"
    plan = finished[0] / "plan.safetensors"
    return out, expunge("apply", plan, "--model", task.vanilla, "--out", out, "--json")


def test_apply_writes_the_checkpoint_of_the_run(edited, finished, task):
    out, said = edited
    assert said.code == 0, said.err
    assert said.json == {"model": str(out), "sites": finished[1].json["plan"]["sites"]}
    assert same(weights(out), weights(finished[0] / "model"))
    assert tree(out).keys() == tree(task.vanilla).keys()


def test_apply_zeroes_the_planned_columns_and_nothing_else(edited, finished, task):
    base, now = weights(task.vanilla), weights(edited[0])
    plan = load_file(finished[0] / "plan.safetensors")
    expected = {name: tensor.clone() for name, tensor in base.items()}
    for key, indices in plan.items():
        tower, layer = key.split("/")[0].split(".")
        last = {"vision": "fc2", "language": "down_proj"}[tower]
        (name,) = [n for n in base if tower in n and f"layers.{layer}.mlp.{last}.weight" in n]
        expected[name][:, indices.long()] = 0
    assert len(plan) == len([n for n in base if not torch.equal(base[n], now[n])])
    assert same(now, expected)


def test_undo_restores_the_base(edited, task, tmp_path):
    out = tmp_path / "restored"
    said = expunge("undo", edited[0], "--model", task.vanilla, "--out", out, "--json")
    assert said.code == 0, said.err
    assert said.json == {"model": str(out)}
    assert same(weights(out), weights(task.vanilla))


def test_evaluate_by_plan_and_by_checkpoint(edited, finished, task, tmp_path):
    """The run used batches of 16; results do not depend on it beyond rounding, so it is given."""
    sets = task.options("forget", "retain")
    common = ["--model", task.vanilla, *sets, "--batch-size", "8", "--seed", "5", "--json"]
    plan = finished[0] / "plan.safetensors"
    results = tmp_path / "results.json"
    by_plan = expunge("evaluate", *common, "--plan", plan, "--out", results)
    by_model = expunge("evaluate", *common, "--unlearned", edited[0])
    for said in (by_plan, by_model):
        assert said.code == 0, said.err
        assert said.err == ""
        for name in ("vanilla", "unlearned"):
            theirs = finished[1].json["models"][name]
            assert said.json["models"][name] == {n: theirs[n] for n in ("forget", "retain")}
        assert said.json["summary"]["retain_kept"] == finished[1].json["summary"]["retain_kept"]
        assert set(said.json) == set(finished[1].json)
    assert json.loads(results.read_text()) == by_plan.json
    assert by_plan.json["plan"] == finished[1].json["plan"]
    assert by_plan.json["method"] == "manu"
    assert (by_model.json["plan"], by_model.json["method"]) == (None, None)


def test_evaluate_vanilla_alone(task):
    said = expunge("evaluate", "--model", task.vanilla, *task.options("skills"), "--json")
    assert said.code == 0, said.err
    assert set(said.json) == {"models", "seconds", "versions", "seed", "notes"}
    shown = expunge("evaluate", "--model", task.vanilla, *task.options("skills"))
    notes = [line for line in shown.out.splitlines() if line.startswith("note: skills: ")]
    assert len(notes) == 2, "some skills are asked with a picture, the others without"
    assert shown.out.splitlines()[2].split() == ["set", "asked", "with", "vanilla"]


def test_report(finished, tmp_path):
    import shutil

    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    said = expunge("report", tmp_path / "run", "--json")
    assert said.code == 0, said.err
    assert said.json == {"report": str(tmp_path / "run" / "report.html")}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<html" in page


def test_no_name_of_the_forget_set_leaves_by_default(finished, task):
    """Nothing readable in the run folder names a subject or holds a question of the forget set."""
    names = {e.subject for e in task.sets["forget"]}
    private = names | {e.text_question for e in task.sets["forget"]}
    for path in finished[0].rglob("*"):
        if path.is_file() and path.parent.name != "model":
            content = path.read_bytes()
            assert not any(word.encode() in content for word in private), path


def test_content_is_shown_on_request(task, tmp_path):
    """The forget set alone counts; what was said stands beside every question."""
    out = tmp_path / "run"
    said = expunge("run", *task.brief, "--show-content", "--out", out, "--json")
    assert said.code == 0, said.err
    rows = json.loads((out / "content.json").read_text())["forget"]
    asked = [e.question for e in task.sets["forget"]]
    asked += [e.text_question for e in task.sets["forget"]]
    assert [row["question"] for row in rows] == asked
    assert [row["subject"] for row in rows] == 2 * [e.subject for e in task.sets["forget"]]
    assert all({"vanilla", "unlearned"} <= row.keys() for row in rows)
    page = (out / "report.html").read_text()
    assert all(e.subject in page for e in task.sets["forget"])
    assert expunge("report", out).code == 0
    page = (out / "report.html").read_text()
    assert not any(e.subject in page for e in task.sets["forget"])


def test_inspect_says_what_it_looked_at_where_nothing_is_known(tmp_path):
    transformers.MambaConfig(hidden_size=32, num_hidden_layers=2).save_pretrained(tmp_path)
    said = expunge("inspect", tmp_path, "--json")
    assert (said.code, said.out) == (2, "")
    assert "layers.N.mixer.in_proj x2" in said.err
    assert "--tower language=path.to.module" in said.err


def test_inspect(task):
    said = expunge("inspect", task.vanilla, "--json")
    assert said.code == 0, said.err
    assert said.json["model_type"] == "llava"
    assert said.json["towers"] == ["vision", "connector", "language"]
    sites = said.json["sites"]
    keys = ("key", "tower", "kind", "path", "width", "parameters", "dead")
    assert all(tuple(site) == keys for site in sites)
    assert [s["key"] for s in sites if s["dead"]] == ["vision.3"]
    assert sum(s["width"] for s in sites) == 4 * 384 + 128 + 4 * 1024
    shown = expunge("inspect", task.vanilla)
    assert shown.out.startswith("llava: 9 sites, 5376 live neurons\n")
    assert len(shown.out.splitlines()) == 4 + len(sites)


@pytest.mark.parametrize("what", LISTS)
def test_list(what):
    said = expunge("list", what, "--json")
    assert said.code == 0, said.err
    assert len(said.json) >= 3
    assert all(about.strip() and "\n" not in about for about in said.json.values())
    shown = expunge("list", what)
    lines = shown.out.splitlines()
    assert [line.split()[0] for line in lines] == list(said.json)
    assert [line.partition("  ")[2].strip() for line in lines] == list(said.json.values())


def test_every_listed_family_is_tested():
    from pathlib import Path

    source = (Path(__file__).parents[1] / "models" / "families.py").read_text()
    for name in expunge("list", "families", "--json").json:
        assert f'"{name}": Family(' in source


def test_help_is_quick_and_loads_no_model_code():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = (
        "import sys; sys.argv = ['expunge', '--help']\n"
        "from expunge.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "Usage: " in done.stdout
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent < 0.5


def test_no_command_shows_help():
    said = expunge()
    assert said.code == 2
    assert said.err.startswith("Usage: ")
    assert said.out == ""
    assert expunge("--help").code == 0
    assert expunge("run", "--help").code == 0


def test_a_fault_of_ours_is_exit_code_1(monkeypatch, task):
    """An error that nobody foresaw ends with a traceback on stderr."""
    import expunge.sites as sites

    def broken(*args, **options):
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(sites, "inspect_config", broken)
    said = expunge("inspect", task.vanilla)
    assert (said.code, said.out) == (1, "")


def test_demo_without_checkpoints_says_so(tmp_path, monkeypatch):
    from expunge.fiction import shipped as place

    monkeypatch.setattr(place, "FOLDER", tmp_path / "none")
    said = expunge("demo", "--out", tmp_path / "run")
    assert said.code == 1
    assert said.err.startswith("fault: the package lacks its checkpoints")
    assert not (tmp_path / "run").exists()


def test_export_fiction(tmp_path, monkeypatch, task):
    """A small world with the task's checkpoints, as files that every other command takes."""
    from expunge.data import read
    from expunge.fiction import shipped as place
    from expunge.fiction.world import World

    small = World(private=24, public=3)
    monkeypatch.setattr(place, "World", lambda: small)
    monkeypatch.setattr(place, "FOLDER", task.home)
    (task.home / "images").rename(tmp_path / "images")
    try:
        said = expunge("data", "export-fiction", tmp_path / "world", "--percent", "15", "--json")
    finally:
        (tmp_path / "images").rename(task.home / "images")
    assert said.code == 0, said.err
    sets = small.suite(15)
    names = [*(f"{n}.jsonl" for n in (*sets, "stranger")), "gold", "vanilla"]
    assert said.json == {"files": [str(tmp_path / "world" / n) for n in names]}
    assert len(read(tmp_path / "world" / "forget.jsonl")) == len(sets["forget"]) == 4 * 18
    assert same(weights(tmp_path / "world" / "vanilla"), weights(task.vanilla))
    again = expunge("data", "export-fiction", tmp_path / "world")
    assert again.code == 2
    assert "not empty" in again.err


def test_demo(tmp_path, monkeypatch):
    """The shipped models asked about two of their people: gold never saw what is forgotten."""
    from expunge.data import Suite
    from expunge.fiction import shipped as place
    from expunge.fiction.world import World, person_rows

    if not {"vanilla", "gold"} <= set(place.checkpoints()):
        pytest.skip("the shipped checkpoints are not there yet")
    split = World().split()
    sets = {name: person_rows(split[name][:1], seen=True) for name in ("forget", "retain")}
    few = Suite.of(**sets)
    monkeypatch.setattr(place, "suite", lambda: few)
    said = expunge("demo", "--out", tmp_path / "run", "--method", "random", "--json")
    assert said.code == 0, said.err
    assert list(said.json["models"]) == ["vanilla", "unlearned", "gold"]
    vanilla, gold = (said.json["models"][name]["forget"] for name in ("vanilla", "gold"))
    for condition in ("multi", "text"):
        assert vanilla[condition]["nll"] < gold[condition]["nll"]
    assert set(said.json["summary"]["depth"]) == {"multi", "text"}
