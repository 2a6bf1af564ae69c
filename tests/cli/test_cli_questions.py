"""What commands make of question files: parts, text forms, and the release's own scoring."""

from __future__ import annotations

import html
import json
import shutil

import datasets
import pytest
from commands import expunge, tree

from expunge.data import write_jsonl

TOLD = ["Oda Brekke", "Ivo Maren", "Ann Lee", "Bo Day"]


@pytest.fixture(scope="module")
def profiles(task, tmp_path_factory):
    """Training rows laid out as MLLMU-Bench's, and the subjects of two splits beside them."""
    folder = tmp_path_factory.mktemp("profiles")
    pictures = sorted((task.home / "images" / "retain").iterdir())
    rows = []
    for number, name in enumerate(TOLD):
        shutil.copy(pictures[number], folder / f"00{number}.png")
        told = [
            {"Question": "What is the name of this person?", "Answer": f"The name is {name}."},
            {"Question": "Where does this person live?", "Answer": f"In house {number}."},
            {"Question": "What colour is the wall?", "Answer": "Red."},
        ]
        rows.append({"ID": f"00{number}", "image_path": f"00{number}.png", "metadata": told})
    (folder / "ft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "forget_50_ids.json").write_text('["000", "001"]')
    (folder / "retain_50_ids.json").write_text('["002", "003"]')
    return folder / "ft.jsonl"


@pytest.fixture(scope="module")
def halves(profiles):
    """The options that take each half of the profiles."""
    return ["--forget", f"{profiles}::forget_50", "--retain", f"{profiles}::retain_50"]


def test_training_rows_are_asked_in_text_too_and_the_command_says_so(task, halves):
    common = ["evaluate", "--model", task.vanilla, *halves]
    said = expunge(*common, "--json")
    assert said.code == 0, said.err
    cells = said.json["models"]["vanilla"]["forget"]
    assert [cells[c]["all"]["n"] for c in ("multi", "text")] == [6, 2]
    shown = expunge(*common)
    assert shown.err == ""
    notes = [line for line in shown.out.splitlines() if line.startswith("note: ")]
    assert notes[:2] == [
        f"note: {name}: 2 of 6 image questions are also asked in text, by the subject's name "
        "(not so: 4 asking for the name or not pointing at the subject)."
        for name in ("forget", "retain")
    ]
    assert notes == [f"note: {line}" for line in said.json["notes"]]
    assert "\nforget  text only" in shown.out


def test_a_run_on_two_splits_of_one_file(task, halves, tmp_path):
    out = tmp_path / "run"
    method = ["--method", "manu", "--budget", "0.1"]
    said = expunge("run", "--model", task.vanilla, *halves, *method, "--out", out, "--json")
    assert said.code == 0, said.err
    assert set(said.json["summary"]["forget_accuracy"]) == {"multi", "text"}
    assert {p.name for p in (out / "stats").iterdir()} == {
        f"{s}.{c}.safetensors" for s in ("forget", "retain") for c in ("multi", "text")
    }
    assert f"forget: {halves[1]}\n" in (out / "config.yaml").read_text()
    assert any("2 of 6 image questions are also asked in text" in n for n in said.json["notes"])
    page = html.unescape((out / "report.html").read_text("utf-8"))
    assert all(f"<li>{note}</li>" in page for note in said.json["notes"])


def test_splits_of_a_saved_data_set(task, tmp_path):
    rows = [{"subject": f"s{i}", "answer": "tea", "text_question": "What?"} for i in range(3)]
    parts = {"leave": rows[:1], "stay": rows[1:]}
    made = {name: datasets.Dataset.from_list(part) for name, part in parts.items()}
    datasets.DatasetDict(made).save_to_disk(str(tmp_path / "saved"))
    common = ["evaluate", "--model", task.vanilla, "--json"]
    both = ["--forget", f"{tmp_path}/saved::leave", "--retain", f"{tmp_path}/saved::stay"]
    said = expunge(*common, *both)
    assert said.code == 0, said.err
    counts = {n: c["text"]["all"]["n"] for n, c in said.json["models"]["vanilla"].items()}
    assert counts == {"forget": 1, "retain": 2}
    refused = expunge(*common, "--forget", tmp_path / "saved")
    assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1)
    assert f"for example {tmp_path}/saved::leave" in refused.err


def test_official_figures_beside_ours(task):
    common = ["evaluate", "--model", task.vanilla, "--gold", task.gold, *task.options("retain")]
    plain = expunge(*common, "--json")
    said = expunge(*common, "--official", "--json")
    assert said.code == 0, said.err
    assert "official" not in plain.json
    assert said.json["models"] == plain.json["models"]
    own = said.json["official"]
    assert list(own) == ["vanilla", "gold"]
    rows = task.sets["retain"]
    for cells in own.values():
        for condition, tasks in cells["retain"].items():
            for name, cell in tasks.items():
                asked = sum(e.task == name and e.has(condition) for e in rows)
                generation = name == "generation"
                assert cell["n"] == asked - (0 if generation else 2)
                keys = {"rouge1", "rouge2", "rougeL", "bleu"} if generation else {"accuracy"}
                assert set(cell) == keys | {"n"}
                assert all(0 <= cell[key] <= 1 for key in keys)
    shown = expunge(*common, "--official").out
    assert "by MLLMU-Bench's prompts and rules\n" in shown
    header, _, first = shown.partition("rules\n")[2].splitlines()[:3]
    assert header.split() == ["set", "asked", "with", "task", "score", "vanilla", "gold"]
    told = [f"{cells['retain']['multi']['generation']['rougeL']:.3f}" for cells in own.values()]
    assert first.split() == ["retain", "image+text", "generation", "rougeL", *told]


def test_a_finished_run_is_scored_officially_and_nothing_is_done_again(task, rows, tmp_path):
    folder = tmp_path / "run"
    write_jsonl(rows["forget"], tmp_path / "forget.jsonl")
    common = ["run", *task.brief, "--forget", tmp_path / "forget.jsonl", "--out", folder, "--json"]
    first = expunge(*common)
    assert first.code == 0, first.err
    before = tree(folder)
    said = expunge(*common, "--official")
    assert said.code == 0, said.err
    assert {k: said.json[k] for k in ("models", "summary")} == {
        k: first.json[k] for k in ("models", "summary")
    }
    assert list(said.json["official"]) == ["vanilla", "unlearned"]
    after = tree(folder)
    new = {f"figures/{name}.official.json" for name in ("vanilla", "unlearned")}
    assert after.keys() - before.keys() == new
    assert all(after[n] == before[n] for n in before if n.startswith(("figures/", "plan", "model")))
    again = expunge(*common, "--official")
    assert again.json["official"] == said.json["official"]
    assert {n: tree(folder)[n] for n in new} == {n: after[n] for n in new}


def test_a_set_too_small_to_score_officially(task, tmp_path):
    row = {"subject": "s", "answer": "tea", "text_question": "It is __.", "task": "cloze"}
    (tmp_path / "small.jsonl").write_text(json.dumps(row) + "\n")
    options = [*task.brief, "--retain", tmp_path / "small.jsonl", "--official"]
    options += ["--forget", task.file("retain")]
    said = expunge("run", *options, "--out", tmp_path / "run")
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert "retain, cloze under text: 2 few-shot examples" in said.err
    assert not (tmp_path / "run").exists()
