"""Comparisons: figures equal those of single runs, runs resume, the picture shows the numbers."""

from __future__ import annotations

import csv
import json
import re
import xml.etree.ElementTree as tree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from expunge.cli import app
from expunge.compare import (
    compare,
    distance,
    mark_front,
    picture,
    runs,
    settings_of,
    share_list,
)
from expunge.config import RunConfig
from expunge.data import Suite, write_jsonl
from expunge.edit import save_checkpoint
from expunge.errors import InputError
from expunge.evaluate import evaluate
from expunge.fiction.build import build_model
from expunge.plan import Plan
from expunge.progress import Progress
from expunge.report.charts import Point
from expunge.report.scatter import BOTTOM, LEFT, RIGHT, TOP, Spot, scatter

EVERY = {"forget": 9, "test": 12, "retain": 20, "neighbor": 16, "real": 9}


@pytest.fixture(scope="module")
def suite(rows):
    return Suite.of(**{name: rows[name][::step] for name, step in EVERY.items()})


@pytest.fixture(scope="module")
def config(tmp_path_factory, llava, processor, suite):
    home = tmp_path_factory.mktemp("task")
    save_checkpoint(llava, processor, home / "vanilla")
    save_checkpoint(build_model(processor, seed=4), processor, home / "gold")
    files = {}
    for name, examples in suite.sets.items():
        files[name] = str(home / f"{name}.jsonl")
        write_jsonl(examples, files[name], f"images/{name}")
    return RunConfig(model=str(home / "vanilla"), gold=str(home / "gold"), batch_size=8, **files)


@pytest.fixture(scope="module")
def compared(config, suite, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared") / "out"
    return out, compare(config, suite, ["random", "filter"], out, budgets=[0.02, 0.3])


def times(folder):
    return {p.relative_to(folder): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_there_is_a_row_for_each_model_and_run(compared):
    out, value = compared
    names = [row["name"] for row in value["rows"]]
    assert names == ["vanilla", "gold", "random 0.02", "random 0.3", "filter"]
    assert json.loads((out / "compare.json").read_text("utf-8")) == value
    for row in value["rows"][2:]:
        folder = out / row["run"]
        assert {p.name for p in folder.iterdir()} >= {"plan.safetensors", "results.json"}
        assert not (folder / "model").exists()
        assert row["bytes"] == Plan.load(folder / "plan.safetensors").bytes
        results = json.loads((folder / "results.json").read_text("utf-8"))
        assert row["summary"] == results["summary"]


def test_figures_are_those_of_a_direct_evaluation(compared, config, suite, llava, processor):
    out, value = compared
    plan = Plan.load(out / "runs" / "random-0.3" / "plan.safetensors")
    undo = plan.apply(llava)
    try:
        direct = evaluate(llava, processor, suite, batch_size=16)
    finally:
        undo()
    row = value["rows"][3]
    for name, conditions in direct.items():
        for condition, cell in conditions.items():
            found = row["accuracy"][name][condition]
            assert found["value"] == cell["all"]["accuracy"]
            assert [found["low"], found["high"]] == cell["all"]["ci95"]


def test_vanilla_is_evaluated_once(compared):
    out, _ = compared
    for name in ("vanilla", "gold"):
        texts = {p.read_text("utf-8") for p in out.rglob(f"figures/**/{name}.json")}
        assert len(texts) == 1 and len(list(out.rglob(f"figures/**/{name}.json"))) == 4


def test_csv_holds_the_figures_of_json(compared):
    out, value = compared
    with open(out / "compare.csv", encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["name"] for line in lines] == [row["name"] for row in value["rows"]]
    for line, row in zip(lines, value["rows"], strict=True):
        for name, conditions in row["accuracy"].items():
            for condition, cell in conditions.items():
                assert float(line[f"{name} {condition}"]) == cell["value"]
                assert float(line[f"{name} {condition} high"]) == cell["high"]
        assert line["skills text"] == ""
        assert float(line["distance"]) == row["distance"]
        assert (line["budget"] == "") == (row["budget"] is None)


def test_it_resumes_and_takes_further_methods(compared, config, suite):
    out, value = compared
    before = times(out / "runs")
    more = compare(config, suite, ["random", "filter", "manu"], out, budgets=[0.02, 0.3])
    after = times(out / "runs")
    kept = {p for p in before if p.name in ("plan.safetensors", "vanilla.json", "unlearned.json")}
    assert all(after[p] == before[p] for p in kept)
    assert [row["name"] for row in more["rows"][5:]] == ["manu 0.02", "manu 0.3"]
    for old, new in zip(value["rows"], more["rows"], strict=False):
        assert {**old, "front": None} == {**new, "front": None}


def test_another_task_is_refused(compared, config, suite):
    out, _ = compared
    fewer = Suite({n: rows for n, rows in suite.sets.items() if n != "real"})
    with pytest.raises(InputError, match="holds another run .*real"):
        compare(config, fewer, ["random"], out)
    with pytest.raises(InputError, match="unknown method 'randon'"):
        compare(config, suite, ["random", "randon"], out)
    with pytest.raises(InputError, match="no method"):
        compare(config, suite, [], out)


def test_the_command_prints_the_comparison(compared, config):
    out, value = compared
    options = [part for n in EVERY for part in (f"--{n}", getattr(config, n))]
    common = ["compare", "--model", config.model, "--gold", config.gold, *options]
    common += ["--batch-size", "8", "--methods", "random", "--budgets", "0.02", "--out", str(out)]
    done = CliRunner().invoke(app, [*common, "--json"])
    rows = json.loads(done.stdout)["rows"]
    assert [row["name"] for row in rows] == ["vanilla", "gold", "random 0.02"]
    assert rows[2]["accuracy"] == value["rows"][2]["accuracy"]
    assert "random 0.02" in CliRunner().invoke(app, common).stdout


# Pure parts


def cell(value, chance=None):
    found = {"accuracy": value, "ci95": [value, value]}
    return {"all": found if chance is None else {**found, "chance": chance}}


def test_distance_adds_what_is_known_and_what_is_lost():
    vanilla = {n: {"multi": cell(1.0), "text": cell(0.8)} for n in ("forget", "retain", "real")}
    ours = {
        "forget": {"multi": cell(0.3), "text": cell(0.05)},
        "retain": {"multi": cell(0.9), "text": cell(0.8)},
        "real": {"multi": cell(1.0), "text": cell(0.9)},
    }
    gold = {"forget": {"multi": cell(0.1), "text": cell(0.1)}}
    told = {"vanilla": vanilla, "unlearned": ours, "gold": gold}
    assert distance(told) == pytest.approx((0.2 + 0.05) / 2 + (0.1 + 0) / 2 + 0)
    del told["gold"]
    assert distance(told) == pytest.approx((0.3 + 0.05) / 2 + 0.05)
    ours["forget"] = {"multi": cell(0.3, chance=0.25)}
    assert distance(told) == pytest.approx(0.05 + 0.05)


shares = st.integers(0, 4).map(lambda n: n / 4)


@given(st.lists(st.tuples(shares, shares), min_size=1, max_size=12))
def test_the_front_is_what_nobody_beats(points):
    rows = [{"forget": {"value": x}, "kept": {"value": y}, "front": False} for x, y in points]
    mark_front(rows)
    for row, (x, y) in zip(rows, points, strict=True):
        beaten = any(a <= x and b >= y and (a < x or b > y) for a, b in points)
        assert row["front"] == (not beaten)
    assert any(row["front"] for row in rows)


def test_rows_without_a_kept_set_are_not_on_the_front():
    rows = [{"forget": {"value": 0.1}, "kept": None, "front": False}]
    mark_front(rows)
    assert rows[0]["front"] is False


def test_budgets_are_shares():
    assert share_list(None) is None and share_list("0.01,0.5") == [0.01, 0.5]
    with pytest.raises(InputError, match="expected numbers"):
        share_list("0.01;0.05")
    with pytest.raises(InputError):
        share_list("2")


def test_a_method_may_bring_a_setting_of_its_own(config, suite, tmp_path):
    jobs = runs(config, suite, ["filter=3", "manu=0.1", "auto"], tmp_path, [0.02], Progress())
    assert list(jobs) == ["filter 3", "manu 0.1", "auto"]
    assert jobs["filter 3"].config.strength == 3.0 and jobs["filter 3"].config.budget is None
    assert jobs["manu 0.1"].config.budget == 0.1
    assert jobs["manu 0.1"].folder.name == "manu-0.1"
    with pytest.raises(InputError, match="ga has neither a budget nor a strength"):
        settings_of("ga=0.1", None)
    with pytest.raises(InputError, match="expected a number after ="):
        settings_of("manu=much", None)


def test_the_picture_is_a_svg_file_with_every_run(compared):
    out, value = compared
    assert (out / "compare.svg").is_file()
    root = tree.fromstring(picture(value["rows"]))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    text = " ".join(root.itertext())
    for row in value["rows"]:
        assert row["name"] in text


def test_marks_lie_where_the_figures_say():
    spots = [
        Spot("vanilla", Point(0.9, 0.8, 1.0), Point(0.9)),
        Spot("<gold>", Point(0.1), Point(0.8), front=True),
        Spot("method", Point(0.3), Point(0.85, 0.7, 0.95), front=True),
    ]
    text = str(scatter("x", "T", "D", ("a", "b"), spots))
    assert "&lt;gold&gt; (front)" in text and "<gold>" not in text
    line = re.search(r'<polyline[^>]*points="([^"]*)"', text)
    assert line is not None
    (x1, y1), (x2, y2) = ([float(v) for v in p.split(",")] for p in line[1].split())
    x_room, y_room = 0.06 * (1.0 - 0.1), 0.02
    scale_x = (RIGHT - LEFT) / (0.9 + 2 * x_room)
    scale_y = (BOTTOM - TOP) / (0.25 + 2 * y_room)
    assert x2 - x1 == pytest.approx(0.2 * scale_x, abs=0.11)
    assert y1 - y2 == pytest.approx(0.05 * scale_y, abs=0.11)
    assert x1 == pytest.approx(LEFT + x_room * scale_x, abs=0.06)
    assert text.count("whisker") == 2


def test_numbers_of_marks_on_one_place_stand_side_by_side():
    spots = [Spot(name, Point(1.0), Point(0.9)) for name in "abc"]
    spots.append(Spot("d", Point(0.2), Point(0.5)))
    text = str(scatter("x", "T", "D", ("across", "up"), spots))
    places = {n: float(x) for x, n in re.findall(r'<text x="([\d.]+)"[^>]*>(\d)</text>', text)}
    gaps = [places[b] - places[a] for a, b in ("12", "23")]
    assert gaps == pytest.approx([12, 12]) and places["4"] < places["1"] - 100
    height = float(re.search(r'viewBox="0 0 \d+ (\d+)"', text)[1])
    assert max(float(y) for y in re.findall(r'<text [^>]*y="([\d.]+)"', text)) < height - 5
