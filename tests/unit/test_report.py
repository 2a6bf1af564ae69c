"""The report: figures equal the files, everything escaped, nothing leaks, nothing loaded."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from expunge.errors import InputError
from expunge.grid import gridded, packed
from expunge.report import write_report
from expunge.report.change import bins, threshold
from expunge.report.charts import ticks
from expunge.report.figures import short, whole
from expunge.report.folder import read_run
from expunge.report.results import Results
from expunge.report.search import search_view
from expunge.report.verdict import judge, kept, verdict

EVIL = "<script>alert('x')</script>&\"'"
SETS = ("forget", "test", "retain", "neighbor", "real", "skills")
VOID = {"meta", "link", "img", "br", "hr", "input", "base", "col", "area", "source", "wbr"}


class Page(HTMLParser):
    """Collects tags, attributes, text and table rows; checks that tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.sentence = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def row(self, *head: str) -> list[str]:
        found = [row for row in self.rows if tuple(row[: len(head)]) == head]
        assert len(found) == 1, (head, found)
        return found[0]


def cell(accuracy: float, n: int = 40, chance: float = 0.1) -> dict:
    low, high = max(0.0, accuracy - 0.03), min(1.0, accuracy + 0.03)
    entry = {"accuracy": accuracy, "n": n, "ci95": [low, high], "chance": chance}
    return {
        "generation": {**entry, "rouge_l": accuracy * 0.9},
        "classification": entry,
        "all": entry,
        "answer_probability": accuracy * 0.8,
        "nll": 0.25 + accuracy,
    }


def make_results(rng: np.random.Generator) -> dict:
    levels = {"vanilla": 0.95, "unlearned": 0.9, "gold": 0.93}
    models: dict = {}
    for model, level in levels.items():
        for name in SETS:
            for condition in ("multi", "text"):
                value = level
                if name in ("forget", "test") and model != "vanilla":
                    value = 0.14 if model == "unlearned" else 0.11
                value = round(float(value + rng.uniform(-0.02, 0.02)), 4)
                models.setdefault(model, {}).setdefault(name, {})[condition] = cell(value)
    return {
        "models": models,
        "summary": {
            "forget_accuracy": {"multi": 0.1413, "text": 0.1377},
            "depth": {"multi": 0.91, "text": 0.87},
            "modality_gap": 0.0036,
            "collapsed": False,
        },
        "method": "manu",
        "plan": {"neurons": 12, "sites": 3, "bytes": 1234},
        "seconds": {"collect": 1.5, "plan": 0.25},
        "versions": {"torch": "2.13.0"},
        "seed": 7,
    }


def make_header(sites: dict) -> dict:
    return {
        "version": 1,
        "method": "manu",
        "config": {"budget": 0.02, "importances": ["abs", "freq"]},
        "base": {"id": "tiny-llava", "model_type": "llava", "fingerprint": "f1f2f3f4a5"},
        "data": {
            "forget": {"n": 24, "subjects": ["0123456789ab", "ba9876543210"], "hash": "feed1234"},
            "retain": {"n": 120, "subjects": 20, "hash": "beef5678"},
        },
        "versions": {"transformers": "5.23.0"},
        "seed": 7,
        "date": "2025-01-02",
        "sites": sites,
    }


def make_run(folder: Path, seed: int = 0, results: dict | None = None) -> dict:
    """Write a whole run folder; return what went in."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    results = make_results(rng) if results is None else results
    widths = {"language.2": 64, "language.10": 64, "vision.0": 48}
    scores = {key: rng.lognormal(0, 1, width) for key, width in widths.items()}
    limit = np.sort(np.concatenate(list(scores.values())))[-12]
    tensors: dict = {}
    sites: dict = {}
    for key, width in widths.items():
        chosen = np.flatnonzero(scores[key] >= limit).astype(np.int32)
        tensors[f"{key}/indices"] = chosen
        sites[key] = {
            "tower": key.split(".")[0],
            "kind": "prune",
            "path": "model.x",
            "width": width,
            "count": len(chosen),
        }
    factors = rng.normal(size=(24, 3)), rng.normal(size=(3, 32))
    for name, value in zip("AB", factors, strict=True):
        tensors[f"connector.0/{name}"] = value.astype(np.float32)
    sites["connector.0"] = {"tower": "connector", "kind": "lowrank", "width": 32, "count": 0}
    header = make_header(sites)
    save_file(tensors, folder / "plan.safetensors", {"expunge": json.dumps(header)})
    save_file(scores, folder / "scores.safetensors")
    config = {"forget": "people/jane-roe.jsonl", "method": "manu", "seed": 7}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    search = {
        "explanation": "The largest strength within the limit.",
        "limit": 0.05,
        "steps": [
            {"strength": 1.0, "forget": {"multi": 0.5}, "held_out_retain": 0.97, "chosen": False},
            {"strength": 2.0, "forget": {"multi": 0.2}, "held_out_retain": 0.96, "chosen": True},
        ],
    }
    attacks = {
        "relearn": {
            "title": "Relearning",
            "columns": ["steps", "unlearned", "low", "high", "gold"],
            "rows": [[0, 0.1234, 0.1, 0.2, 0.11], [10, 0.4321, 0.3, 0.5, 0.4]],
            "axes": ["fine-tuning steps", "accuracy of the attacked"],
            "figures": {"area above gold": 0.03},
            "curves": {"unlearned": [[0, 0.1234], [10, 0.4321]], "gold": [[0, 0.11], [10, 0.4]]},
            "note": "Area above gold 0.03.",
        },
        "quantize": {"title": "int4", "columns": ["bits"], "rows": [[4]]},
    }
    content = {"forget": [{"subject": "Jane Roe", "question": "Where born?", "vanilla": "Oslo"}]}
    files = {"results": results, "search": search, "attacks": attacks, "content": content}
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return {**files, "scores": scores, "limit": limit, "factors": factors, "header": header}


def read(folder: Path, **options) -> tuple[str, Page]:
    text = write_report(folder, **options).read_text("utf-8")
    return text, Page(text)


def share(value: float) -> str:
    return f"{100 * value:.1f}\u00a0%"


def measured(entry: dict) -> str:
    low, high = entry["ci95"]
    return f"{share(entry['accuracy'])} [{100 * low:.1f}, {100 * high:.1f}]"


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run"), tmp_path / "run"


def test_accuracy_table_equals_results(run):
    made, folder = run
    _, page = read(folder)
    names = {"multi": "image + text", "text": "text only"}
    for name in SETS:
        for condition, label in names.items():
            for task in ("all", "generation", "classification"):
                row = page.row(name, label, task)
                for place, model in enumerate(("vanilla", "unlearned", "gold"), start=3):
                    entry = made["results"]["models"][model][name][condition][task]
                    assert row[place] == measured(entry)
                assert row[6:] == [share(0.1), "40"]
            cells = [made["results"]["models"][m][name][condition] for m in ("vanilla", "gold")]
            loss = page.row(name, label, "answer loss")
            assert [loss[3], loss[5]] == [f"{c['nll']:.3f}" for c in cells]
            rouge = page.row(name, label, "ROUGE-L of open answers")
            assert rouge[3] == f"{cells[0]['generation']['rouge_l']:.3f}"
            assert not any(row[:3] == [name, label, "cloze"] for row in page.rows)


def test_likelihood_has_intervals_and_what_changed_a_table(run):
    """As a run writes them: means with ends, agreement of the conditions, paired differences."""
    made, folder = run
    results = made["results"]
    cell = results["models"]["unlearned"]["forget"]["multi"]
    cell |= {
        "ci95": {"nll": [1.25, 2.5]},
        "truth_ratio": {"score": 0.4375, "n": 3, "mean": "arithmetic"},
        "alignment": {"acc_r": 0.125, "acc_f": 0.5, "rouge_r": 0.25, "rouge_f": 0.375, "n": 8},
    }
    paired = {"difference": -0.5, "ci95": [-0.75, -0.25], "p": 0.001}
    results["summary"]["changed"] = {"forget": {"multi": paired}}
    asked = {"accuracy": 0.625, "n": 8}
    results["official"] = {"vanilla": {"forget": {"text": {"cloze": asked}}}}
    (folder / "results.json").write_text(json.dumps(results))
    write_report(folder)
    _, page = read(folder)
    assert page.row("forget", "text only", "cloze", "accuracy")[4] == "0.625"
    assert page.row("forget", "text only", "cloze", "n")[4] == "8"
    loss = page.row("forget", "image + text", "answer loss")
    assert loss[4] == f"{cell['nll']:.3f} [1.250, 2.500]"
    assert page.row("forget", "image + text", "truth ratio score")[4] == "0.438"
    assert page.row("forget", "both", "wrong in both conditions")[4] == "0.500"
    change = page.row("forget", "image + text", "-50.0\u00a0% [-75.0\u00a0%, -25.0\u00a0%]")
    assert change[3] == "0.001"
    assert "changed forget" not in " ".join(row[0] for row in page.rows)


def test_request_summary_balance_and_provenance_equal_files(run):
    made, folder = run
    _, page = read(folder)
    assert page.row("questions to forget") == ["questions to forget", "24"]
    assert page.row("subjects to forget")[1] == "2"
    assert page.row("subjects to retain")[1] == "20"
    assert page.rows.count(["budget", "0.02"]) == 2  # in the request and in the configuration
    assert page.row("plan bytes")[1] == "1,234"
    assert "0123456789ab" in page.text and "ba9876543210" in page.text
    assert page.row("base model")[1] == "tiny-llava"
    assert "base model tiny-llava · 2 subjects · 24 questions to forget · seed 7" in page.text
    assert page.row("strength found by search")[1] == "2"
    assert page.row("forget accuracy multi")[1] == "0.141"
    assert page.row("collapsed")[1] == "no"
    models = made["results"]["models"]
    for model in models:
        multi, text = (models[model]["forget"][c]["all"] for c in ("multi", "text"))
        gap = share(abs(multi["accuracy"] - text["accuracy"]))
        assert page.row(model, "forget") == [model, "forget", measured(multi), measured(text), gap]
    for name, value in {"base fingerprint": "f1f2f3f4a5", "forget hash": "feed1234"}.items():
        assert page.row(name)[1] == value
    assert page.rows.count(["date", "2025-01-02"]) == page.rows.count(["seed", "7"]) - 1 == 2
    assert page.row("torch")[1:] == ["–", "2.13.0"]
    assert page.row("transformers")[1:] == ["5.23.0", "–"]
    assert page.row("collect, seconds")[1] == "1.500"


def test_plan_tables_equal_the_tensors(run):
    made, folder = run
    _, page = read(folder)
    for key, values in made["scores"].items():
        count = int((values >= made["limit"]).sum())
        row = page.row(key)
        assert row[3:6] == [str(len(values)), str(count), share(count / len(values))]
    a, b = (part.astype(np.float32).astype(np.float64) for part in made["factors"])
    energy = float(((a @ b) ** 2).sum())
    assert page.row("connector.0")[6] == f"rank 3, energy |AB|² {short(energy)}"
    keys = [row[0] for row in page.rows if row and row[0] in made["header"]["sites"]]
    assert keys == ["vision.0", "connector.0", "language.2", "language.10"]
    values = [values for key, values in made["scores"].items() if key.startswith("language")]
    chosen = np.concatenate(values)
    least = chosen[chosen >= made["limit"]].min()
    assert f"threshold (least score changed) {least:.4g}" in page.text


def test_search_and_attacks_equal_files(run):
    _, folder = run
    text, page = read(folder)
    heads = ["strength", "forget recalled", "held-out retain", "choice"]
    assert page.row("strength") == heads
    assert page.row("2")[1:] == ["0.200", "0.960", "✔ chosen"]
    assert page.row("1")[1:] == ["0.500", "0.970", ""]
    assert "The largest strength within the limit." in page.text and "Limit: 0.05." in page.text
    assert page.row("10") == ["10", "0.432 [0.300, 0.500]", "0.400"]
    assert page.row("Relearning") == ["Relearning", "area above gold", "0.030"]
    assert "Area above gold 0.03." in page.text
    assert text.count("<polyline") == 3
    assert "unlearned from 0.123 at 0 to 0.432 at 10" in page.text
    for label in ("fine-tuning steps", "accuracy of the attacked", "chosen", "limit"):
        assert f">{label}</text>" in text


def test_strengths_are_drawn_in_rising_order(run):
    _, folder = run
    found = {"multi": 1.0, "text": 0.98}
    steps = [
        {"strength": 0.0, "forget": found, "kept": 1.0, "chosen": False},
        {"strength": 0.27, "forget": {"multi": 0.2, "text": 0.3}, "kept": 0.9, "chosen": False},
        {"strength": 0.09, "forget": {"multi": 0.5, "text": 0.7}, "kept": 0.97, "chosen": True},
    ]
    view = search_view({"limit": 0.95, "steps": steps})
    assert [row[0] for row in view.table.rows] == ["0", "0.090", "0.270"]
    assert view.table.rows[1][1] == "0.500\u00a0/\u00a00.700" and view.table.chosen == {1}
    paths = re.findall(r'<polyline[^>]*points="([^"]*)"', str(view.picture))
    heights = [[float(pair.split(",")[1]) for pair in path.split()] for path in paths]
    drawn = [[s["forget"]["multi"] for s in steps], [s["forget"]["text"] for s in steps],
             [s["kept"] for s in steps]]  # fmt: skip
    top = 44 + 18 * 3
    for levels, values in zip(heights, drawn, strict=True):
        expected = [top + 200 * (1 - values[place]) for place in (0, 2, 1)]
        assert levels == pytest.approx(expected, abs=0.06)
    limit = re.search(r'<line class="chance"[^>]*y1="([\d.]+)"', str(view.picture))
    assert limit is not None and float(limit[1]) == pytest.approx(top + 200 * 0.05, abs=0.06)


def test_search_over_training_runs_is_shown():
    candidates = [
        {"rate": 0.001, "steps": 10, "forget_accuracy": 0.75, "retain_accuracy": 0.99},
        {"rate": 0.001, "steps": 30, "forget_accuracy": 0.25, "retain_accuracy": 0.98},
    ]
    view = search_view(
        {
            "rule": "the least forget accuracy",
            "keep": 0.97,
            "candidates": candidates,
            "chosen": {"rate": 0.001, "steps": 30},
        }
    )
    assert view.told == ["the least forget accuracy", "Limit: 0.97."]
    assert view.table.columns[:3] == ["rate", "steps", "forget accuracy"]
    assert [row[-1] for row in view.table.rows] == ["", "✔ chosen"]
    assert view.picture is None


def plot_points(text: str, ident: str) -> list[float]:
    svg = re.search(rf'<svg[^>]*"{ident}-t.*?</svg>', text, re.S)
    assert svg is not None
    found = re.findall(r'<circle class="mark c0" cx="([\d.]+)"[^>]*><title>', svg.group(0))
    return [float(x) for x in found]


def test_dots_stand_where_the_figures_say(run):
    made, folder = run
    text, page = read(folder)
    for number, condition in enumerate(("multi", "text")):
        expected = [
            80 + 236 * made["results"]["models"]["vanilla"][name][condition]["all"]["accuracy"]
            for name in SETS
        ]
        assert plot_points(text, f"picture-{number}") == pytest.approx(expected, abs=0.06)


def test_page_is_self_contained_and_accessible(run):
    _, folder = run
    text, page = read(folder, show_content=True)
    assert text.startswith("<!DOCTYPE html>")
    assert not re.search(r"https?://|//[a-z]|url\(|@import|javascript:", text, re.I)
    names = [tag for tag, _ in page.tags]
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(names)
    for _, attributes in page.tags:
        assert "src" not in attributes and not any(name.startswith("on") for name in attributes)
        assert attributes.get("href", "#").startswith("#")
    policy = [a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [a["href"][1:] for t, a in page.tags if t == "a"]
    assert targets and set(targets) <= set(ids)
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert (
        len(drawings) == 2 + 2 + 2 + 1 + 1 + 1
    )  # sets, heat maps, scores, balance, search, attack
    for attributes in drawings:
        assert set(attributes["aria-labelledby"].split()) <= set(ids)
    assert all(a.get("scope") in ("col", "row") for t, a in page.tags if t == "th")
    assert names.count("table") == names.count("caption")
    for words in ("@media print", "prefers-color-scheme: dark", "width=device-width"):
        assert words in text


def spoil(value):
    """Put a script element into every text and every key that is free text."""
    if isinstance(value, dict):
        return {key: spoil(item) for key, item in value.items()}
    if isinstance(value, list):
        return [spoil(item) for item in value]
    return EVIL if isinstance(value, str) else value


def test_every_text_is_escaped(tmp_path):
    made = make_run(tmp_path)
    results = spoil(made["results"])
    models = results["models"]
    models[EVIL] = models["vanilla"]
    models["vanilla"][EVIL] = {EVIL: cell(0.5)}
    results["summary"][EVIL] = {EVIL: 0.5}
    results["versions"][EVIL] = results["seconds"][EVIL] = results["plan"][EVIL] = EVIL
    attacks = spoil(made["attacks"])
    attacks["relearn"]["rows"][0][0] = EVIL
    attacks["relearn"]["curves"] = {EVIL: [[0, 1], [1, 2]]}
    attacks[EVIL] = {"columns": ["a"], "rows": [], "figures": {EVIL: 1.0}}
    search = spoil(made["search"])
    search["steps"][0][EVIL] = EVIL
    content = spoil(made["content"])
    files = {"results": results, "attacks": attacks, "search": search, "content": content}
    for name, value in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({EVIL: EVIL, "a": {EVIL: [EVIL]}}))
    header = {**spoil(make_header({})), "sites": {}}
    header["sites"] = {EVIL: {"tower": EVIL, "kind": EVIL, "width": 4, "count": 2}}
    tensors = {f"{EVIL}/indices": np.array([0, 3], dtype=np.int32)}
    save_file(tensors, tmp_path / "plan.safetensors", {"expunge": json.dumps(header)})
    save_file({EVIL: np.array([4.0, 1.0, 2.0, 3.0])}, tmp_path / "scores.safetensors")
    text, page = read(tmp_path, show_content=True)
    assert "<script" not in text.lower()
    assert "script" not in [tag for tag, _ in page.tags]
    assert page.text.count("alert('x')") > 60


def test_content_only_when_asked(run):
    _, folder = run
    text, _ = read(folder)
    for secret in ("Jane Roe", "jane-roe", "Where born?", "Oslo"):
        assert secret not in text
    _, page = read(folder, show_content=True)
    assert page.row("Jane Roe") == ["Jane Roe", "Where born?", "Oslo", "–", "–"]
    assert ["forget", "people/jane-roe.jsonl"] in page.rows
    (folder / "content.json").unlink()
    assert "There is no content.json" in read(folder, show_content=True)[1].text


def test_subject_names_in_a_plan_are_withheld(run):
    made, folder = run
    header = make_header({})
    header["data"]["forget"]["subjects"] = ["0123456789ab", "Jane Roe"]
    header["config"] = {"data": {"path": "jane-roe"}, "forget_weight": 0.5, "retain_files": ["jr"]}
    header["config"]["data_format"] = "mllmu"
    save_file({}, folder / "plan.safetensors", {"expunge": json.dumps(header)})
    text, page = read(folder)
    assert "0123456789ab" in text and "(withheld: not a hash)" in text
    assert "Jane Roe" not in text and "jane-roe" not in text
    assert page.row("forget_weight")[1] == "0.5"
    assert page.row("data_format")[1] == "mllmu"
    assert page.row("retain_files")[1] == "(withheld)"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("/home/jane/models/llava-7b", "llava-7b"),
        ("./jane/llava/", "llava"),
        ("C:\\Users\\jane\\llava", "llava"),
        ("org/llava-7b", "org/llava-7b"),
    ],
)
def test_checkpoints_are_named_without_their_path(run, given, shown):
    _, folder = run
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": given, "gold": given}))
    text, page = read(folder)
    assert ["model", shown] in page.rows and ["gold", shown] in page.rows
    assert "jane" not in text


def test_smallest_run_says_what_is_missing(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    _, page = read(tmp_path)
    assert "No verdict" in page.text
    for words in (
        "model gold: not evaluated",
        "set skills: not evaluated",
        "condition text only: not evaluated",
        "plan.safetensors: not in the run folder",
        "No accuracy was measured",
        "There is no plan.safetensors",
        "No search was made",
        "No attack was run",
        "There are no scores",
    ):
        assert words in page.text


@pytest.mark.parametrize(
    ("drop", "words"),
    [("gold", "model gold"), ("test", "set test"), ("skills", "set skills")],
)
def test_parts_may_be_missing(run, drop, words):
    made, folder = run
    results = made["results"]
    results["models"].pop(drop, None)
    for sets in results["models"].values():
        sets.pop(drop, None)
    (folder / "results.json").write_text(json.dumps(results))
    _, page = read(folder)
    assert f"{words}: not evaluated" in page.text
    assert not any(drop in row[:1] for row in page.rows)


def test_one_condition_and_null_figures(run):
    made, folder = run
    results = made["results"]
    for sets in results["models"].values():
        for name in sets:
            sets[name] = {"multi": sets[name]["multi"]}
    results["models"]["gold"]["real"]["multi"] = None
    results["models"]["unlearned"]["real"]["multi"]["all"]["ci95"] = None
    results["summary"]["depth"] = {"multi": math.nan, "text": None}
    (folder / "results.json").write_text(json.dumps(results))
    _, page = read(folder)
    row = page.row("real", "image + text", "all")
    assert row[5] == "–" and row[4] == share(
        results["models"]["unlearned"]["real"]["multi"]["all"]["accuracy"]
    )
    assert "not evaluated under both conditions" in page.text
    assert "The loss on its answers" not in page.text


def test_without_all_the_tasks_are_pooled_by_questions():
    entry = {
        "generation": {"accuracy": 0.5, "n": 30, "chance": 0.0},
        "cloze": {"accuracy": 0.9, "n": 10, "chance": 0.4},
    }
    score = Results({"models": {"vanilla": {"forget": {"multi": entry}}}}).score(
        "vanilla", "forget", "multi"
    )
    assert score is not None
    assert score.accuracy == pytest.approx((0.5 * 30 + 0.9 * 10) / 40)
    assert score.chance == pytest.approx(0.1)
    assert (score.n, score.low, score.high) == (40, None, None)


def results_of(vanilla, unlearned, gold=None, retain=0.95, chance=0.1, **summary) -> Results:
    """A minimal run: accuracies (multi, text) on forget; retain is the share kept."""
    models: dict = {}
    for model, values in (("vanilla", vanilla), ("unlearned", unlearned), ("gold", gold)):
        if values is not None:
            conditions = zip(("multi", "text"), values, strict=True)
            models[model] = {"forget": {c: cell(v, chance=chance) for c, v in conditions}}
    if retain is not None:
        for model, value in (("vanilla", 1.0), ("unlearned", retain)):
            models[model]["retain"] = {c: cell(value) for c in ("multi", "text")}
    return Results({"models": models, "summary": summary})


@pytest.mark.parametrize(
    ("case", "word", "tone"),
    [
        (dict(unlearned=(0.12, 0.1), gold=(0.1, 0.1)), "Forgotten, the rest kept", "good"),
        (dict(unlearned=(0.12, 0.5), gold=(0.1, 0.1)), "Partly forgotten, the rest kept", "mixed"),
        (dict(unlearned=(0.12, 0.9), gold=(0.1, 0.1)), "Hardly forgotten, the rest kept", "bad"),
        (dict(unlearned=(0.3, 0.3), gold=(0.3, 0.3)), "Forgotten, the rest kept", "good"),
        (dict(unlearned=(0.3, 0.3)), "Partly forgotten, the rest kept", "mixed"),
        (dict(unlearned=(0.1, 0.1), retain=0.8), "Forgotten, the rest partly harmed", "mixed"),
        (dict(unlearned=(0.1, 0.1), retain=0.5), "Forgotten, the rest badly harmed", "bad"),
        (dict(unlearned=(0.1, 0.1), retain=None), "Forgotten, what was kept is not known", "mixed"),
        (dict(unlearned=(0.1, 0.1), collapsed=True), "Collapsed", "bad"),
        (
            dict(unlearned=(0.1, 0.1), depth={"multi": 0.9, "text": 0.2}),
            "Partly forgotten, the rest kept",
            "mixed",
        ),
        (
            dict(unlearned=(0.1, 0.1), still_known={"multi": 0, "text": 1}),
            "Partly forgotten, the rest kept",
            "mixed",
        ),
        (
            dict(unlearned=(0.1, 0.1), still_known={"multi": 0, "text": 0}),
            "Forgotten, the rest kept",
            "good",
        ),
        (
            dict(unlearned=(0.1, 0.1), gold=(0.95, 0.95)),
            "Nothing to forget, vanilla hardly knew it",
            "unknown",
        ),
    ],
)
def test_verdict_follows_the_numbers(case, word, tone):
    found = verdict(results_of((0.98, 0.97), **case))
    assert (found.word, found.tone) == (word, tone)
    assert found.reasons and all(reason.endswith(".") for reason in found.reasons)
    assert found.sign in "✔◐✖?"


def told(results: Results) -> str:
    return " ".join(verdict(results).reasons).replace("\u00a0", " ")


def test_verdict_holds_the_figures_with_their_intervals():
    words = told(results_of((0.9, 0.8), (0.18, 0.1), (0.1, 0.05), retain=0.97))
    assert "from 90 % to 18 % [15, 21] under image + text (90 % of the way to gold 10 %)" in words
    assert "from 80 % to 10 % [7, 13] under text only (93 % of the way to gold 5 %)" in words
    assert "97.0 % (retain, image + text)" in words


def test_verdict_names_how_many_are_still_known():
    results = results_of((0.9, 0.8), (0.1, 0.2), still_known={"multi": 0, "text": 2})
    assert "Forget subjects still known for half or more: 2 under text only." in told(results)
    none = results_of((0.9, 0.8), (0.1, 0.2), still_known={"multi": 0, "text": 0})
    assert "still known" not in told(none)


def test_verdict_counts_unseen_questions():
    results = results_of((0.98, 0.98), (0.1, 0.1), (0.1, 0.1))
    data = results.data
    for model, value in (("vanilla", 0.9), ("unlearned", 0.85), ("gold", 0.1)):
        data["models"][model]["test"] = {"multi": cell(value)}
    assert verdict(Results(data)).word == "Hardly forgotten, the rest kept"
    words = "On unseen questions about the same subjects accuracy went from 90 % to 85 % [82, 88]"
    assert words in told(Results(data))


def test_verdict_admits_a_wide_interval():
    results = results_of((0.9, 0.9), (0.15, 0.1), (0.1, 0.1))
    assert "upper end" not in told(results)
    results.data["models"]["unlearned"]["forget"]["multi"]["all"]["ci95"] = [0.05, 0.4]
    assert (
        "At the upper end of the 95 % interval (forget, image + text: 40 %) it would be partly "
        "forgotten."
    ) in told(Results(results.data))


def test_a_collapsed_model_is_called_so_first():
    results = results_of((0.9, 0.9), (0.1, 0.1), (0.1, 0.1), collapsed=True)
    assert verdict(results).reasons[0].startswith("The answers are garbage")


@pytest.mark.parametrize(
    ("value", "printed"),
    [(0.0, "0 %"), (0.004, "0.4 %"), (0.137, "14 %"), (0.998, "99.8 %"), (1.0, "100 %")],
)
def test_whole_per_cent_hides_no_loss(value, printed):
    assert whole(value).replace("\u00a0", " ") == printed


@pytest.mark.parametrize(
    ("value", "printed"),
    [(8.8e-05, "< 0.001"), (-1e-5, "> −0.001"), (0.0, "0"), (3.0, "3"), (0.14637, "0.146"),
     (12.345, "12.3"), (1234.56, "1,235"), (None, "–"), (math.nan, "–"), (5, "5"), ("a", "a")],
)  # fmt: skip
def test_short_figures(value, printed):
    assert short(value).replace("\u00a0", " ") == printed


def test_headline_shows_every_model_with_its_interval(run):
    made, folder = run
    text, _ = read(folder)
    head = text[text.index('id="kept"') : text.index('id="request"')]
    for models in made["results"]["models"].values():
        for name in SETS:
            for condition in ("multi", "text"):
                entry = models[name][condition]["all"]
                low, high = (f"{100 * end:.0f}" for end in entry["ci95"])
                assert f">{whole(entry['accuracy'])} [{low}, {high}]</text>" in head
    assert head.count(">accuracy</text>") == 2


def colours(css: str) -> list[dict[str, tuple[float, ...]]]:
    """The palettes of the style sheet (light, dark, print) as linear RGB."""
    found = []
    for block in re.findall(r":root \{(.*?)\}", css, re.S):
        pairs = re.findall(r"--(\w+): #([0-9a-f]{6})", block)
        rgb = {k: [int(v[i : i + 2], 16) / 255 for i in (0, 2, 4)] for k, v in pairs}
        found.append(
            {
                k: tuple(c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in v)
                for k, v in rgb.items()
            }
        )
    return found


# Machado, Oliveira and Fernandes (2009), severity 1.0, on linear RGB.
BLINDNESS = {
    "none": np.eye(3),
    "protan": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                        [-0.003882, -0.048116, 1.051998]]),
    "deutan": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                        [-0.011820, 0.042940, 0.968881]]),
    "tritan": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                        [0.004733, 0.691367, 0.303900]]),
}  # fmt: skip


def lab(linear: np.ndarray) -> np.ndarray:
    matrix = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = matrix @ np.clip(linear, 0, 1) / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_colours_are_legible_and_told_apart_by_the_colour_blind():
    css = (Path(write_report.__code__.co_filename).parent / "report.css").read_text("utf-8")
    palettes = colours(css)
    assert len(palettes) == 3
    weights = np.array([0.2126, 0.7152, 0.0722])
    for palette in palettes:
        paper = weights @ palette["paper"]
        for name in ("ink", "soft", "link", *(f"c{i}" for i in range(6))):
            light, dark = sorted((weights @ palette[name], paper), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, name  # WCAG 2.1, 1.4.3
        for kind, matrix in BLINDNESS.items():
            seen = [lab(matrix @ np.array(palette[f"c{i}"])) for i in range(3)]
            apart = [np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]]
            assert min(apart) > 20, kind


@pytest.mark.parametrize(
    ("value", "level"), [(0.8, 2), (0.79, 1), (0.3, 1), (0.29, 0), (-0.5, 0), (1.4, 2)]
)
def test_judge_limits(value, level):
    assert judge(value) == level


def test_kept_prefers_the_summary_and_covers_single_figures():
    results = results_of((0.9, 0.9), (0.1, 0.1), retain=0.5, skills_kept=0.75, real_kept=None)
    assert dict(kept(results)) == {
        "retain, image + text": 0.5,
        "retain, text only": 0.5,
        "skills": 0.75,
    }
    given_summary = Results(
        {**results.data, "summary": {"retain_kept": {"multi": 0.6, "text": 0.7}}}
    )
    assert dict(kept(given_summary)) == {"retain, image + text": 0.6, "retain, text only": 0.7}


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(0, 400), st.integers(0, 10**6))
def test_histogram_counts_everything_once(n, changed, seed):
    rng = np.random.default_rng(seed)
    logs = rng.normal(size=n)
    order = np.argsort(logs)
    chosen = np.zeros(n, dtype=bool)
    chosen[order[max(n - changed, 0) :]] = changed > 0
    limit = threshold(logs, chosen)
    found = bins(logs, chosen, limit)
    assert sum(item.kept for item in found) == int((~chosen).sum())
    assert sum(item.changed for item in found) == int(chosen.sum())
    assert found[0].low <= logs.min() + 1e-9 and found[-1].high >= logs.max() - 1e-9
    if limit is not None:  # an edge lies on the threshold, so no bin mixes the two
        assert all(item.kept == 0 or item.changed == 0 for item in found)


@settings(max_examples=60, deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_inside_round_and_few(low, span):
    found = ticks(low, low + span)
    assert 2 <= len(found) <= 8
    assert all(low - 1e-6 * span <= x <= low + span * (1 + 1e-6) for x in found)
    steps = np.diff(found)
    assert np.allclose(steps, steps[0], rtol=1e-6)


def test_scores_that_cannot_be_drawn_are_counted(run):
    _, folder = run
    scores = {"language.2": np.array([0.0, -1.0, np.inf, np.nan, 1.0]), "vision.0": np.zeros(3)}
    save_file(scores, folder / "scores.safetensors")
    (folder / "plan.safetensors").unlink()
    text = " ".join(read(folder)[1].text.split())
    assert "5 scores, 0 of them of changed neurons; 4 scores of zero, below or not finite" in text
    assert "Scores in the vision tower: 3 scores" in text


def test_scores_of_a_low_rank_edit_are_of_directions(run):
    _, folder = run
    scores = {"connector.0": np.array([0.5, 2.0, 8.0]), "vision.0": np.ones(48)}
    save_file(scores, folder / "scores.safetensors")
    text, page = read(folder)
    assert "Scores in the connector tower: 3 directions, each scored by forget against" in page.text
    assert "Scores in the vision tower: 48 scores" in page.text
    assert ">directions, logarithmic height</text>" in text
    assert ">neurons, logarithmic height</text>" in text


def test_scaling_and_half_precision_plans(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    sites = {
        "language.0": {"tower": "language", "kind": "scale", "width": 8, "count": 2},
        "language.1": {"tower": "language", "kind": "lowrank", "width": 8, "count": 0},
    }
    tensors = {
        "language.0/indices": np.array([1, 5], dtype=np.int32),
        "language.0/factors": np.array([0.25, 0.5], dtype=np.float32),
        "language.1/A": np.ones((4, 2), dtype=np.float16),
        "language.1/B": np.ones((2, 8), dtype=np.float16),
    }
    header = json.dumps(make_header(sites))
    save_file(tensors, tmp_path / "plan.safetensors", {"expunge": header})
    _, page = read(tmp_path)
    assert page.row("language.0")[2:] == ["scale", "8", "2", "25.0\u00a0%", "mean factor 0.375"]
    assert page.row("language.1")[6] == "rank 2, energy |AB|² 128"


def bad(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("results.json", "{", "no JSON"),
        ("results.json", "[]", "expected an object"),
        ("results.json", '{"models": []}', "expected an object"),
        (
            "results.json",
            '{"models": {"vanilla": {"forget": {"multi": {"all": {"accuracy": "1"}}}}}}',
            "expected a number",
        ),
        (
            "results.json",
            '{"models": {"vanilla": {"forget": {"multi": {"all": {"accuracy": 51.7}}}}}}',
            "share from 0 to 1",
        ),
        ("config.yaml", "a: [", "no YAML"),
        ("config.yaml", "!!python/object/apply:os.getcwd []", "no YAML"),
        ("attacks.json", '{"a": {"columns": ["x", "y"], "rows": [[1]]}}', "1 cells for 2 columns"),
        ("attacks.json", '{"a": {"curves": {"c": [[1]]}}}', "expected [x, y]"),
        ("plan.safetensors", "not a plan", "no safetensors file"),
        ("scores.safetensors", "not a file", "no safetensors file"),
    ],
)
def test_damaged_files_are_named(run, name, text, words):
    _, folder = run
    bad(folder, name, text)
    with pytest.raises(InputError) as caught:
        write_report(folder)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (folder / "report.html").exists()


def test_factors_on_a_grid_are_read_as_the_plan_reads_them(run):
    """Those that `grid` packed, A by columns."""
    _, folder = run
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, 3), (3, 9)))
    a, b = gridded(a.T, 31).T, gridded(b, 7)
    tensors = {}
    for name, rows in (("A", np.ascontiguousarray(a.T)), ("B", b)):
        tensors[f"s.0/{name}.codes"], tensors[f"s.0/{name}.steps"] = packed(rows)
    header = json.dumps(make_header({"s.0": {"tower": "s", "kind": "lowrank", "width": 9}}))
    save_file(tensors, folder / "plan.safetensors", {"expunge": header})
    _, page = read(folder)
    energy = float(((a.astype(float) @ b.astype(float)) ** 2).sum())
    assert page.row("s.0")[6] == f"rank 3, energy |AB|² {short(energy)}"
    tensors["s.0/B.codes"] = tensors["s.0/B.codes"][3:].copy()
    save_file(tensors, folder / "plan.safetensors", {"expunge": header})
    with pytest.raises(InputError, match=r"plan tensor s\.0/B: .*; make the plan again"):
        write_report(folder)


@pytest.mark.parametrize(
    ("entry", "tensors", "words"),
    [
        ({"width": 9, "count": 3}, {"s.0/indices": np.zeros(2, np.int32)}, "holds 2 indices"),
        ({"width": 9}, {"s.0/indices": np.array([9], np.int32)}, "outside its width"),
        ({"width": 9}, {"s.0/A": np.ones((4, 2)), "s.0/B": np.ones((3, 9))}, "[rank, width]"),
    ],
)
def test_plan_that_contradicts_itself_is_refused(run, entry, tensors, words):
    _, folder = run
    header = json.dumps(make_header({"s.0": {"tower": "s", "kind": "prune", **entry}}))
    save_file(tensors, folder / "plan.safetensors", {"expunge": header})
    with pytest.raises(InputError, match=re.escape(words)):
        write_report(folder)


def test_missing_folder_results_and_header(tmp_path):
    with pytest.raises(InputError, match="no run folder"):
        write_report(tmp_path / "none")
    with pytest.raises(InputError, match=r"no results\.json"):
        write_report(tmp_path)
    (tmp_path / "results.json").write_text("{}")
    save_file({"x": np.ones(1)}, tmp_path / "plan.safetensors")
    with pytest.raises(InputError, match="no `expunge` header"):
        write_report(tmp_path)


def test_page_is_written_in_one_step(run, monkeypatch):
    _, folder = run
    target = write_report(folder)
    assert target == folder / "report.html"
    first = target.read_bytes()
    assert write_report(folder).read_bytes() == first
    steps = []
    replace = os.replace

    def watch(source, destination):
        steps.append((Path(source), Path(destination), Path(source).read_bytes()))
        assert target.read_bytes() == first  # until now the old page stood untouched
        replace(source, destination)

    monkeypatch.setattr(os, "replace", watch)
    write_report(folder)
    assert [step[1:] for step in steps] == [(target, first)]
    assert steps[0][0].parent == folder and steps[0][0] != target

    def fail(source, destination):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(folder)
    assert target.read_bytes() == first
    assert not list(folder.glob(".report*"))


def test_content_file_is_not_even_opened(run):
    _, folder = run
    (folder / "content.json").write_text("{ damaged")
    assert read_run(folder, show_content=False).content is None
    with pytest.raises(InputError, match="no JSON"):
        read_run(folder, show_content=True)


def test_no_model_library_is_imported(run):
    _, folder = run
    code = (
        "import sys; from pathlib import Path; from expunge.report import write_report; "
        f"write_report(Path({str(folder)!r})); "
        "print(sorted({'torch', 'transformers', 'peft', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
