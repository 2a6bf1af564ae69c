"""Question files as the settings name them: parts of them, and the text forms that they lack."""

import io
import json
from pathlib import Path

import datasets
import pytest
from PIL import Image

from expunge import formats
from expunge.config import RunConfig
from expunge.data import Example
from expunge.errors import InputError
from expunge.formats.picture import load_image
from expunge.formats.wording import is_name
from expunge.pipeline import read_suite
from expunge.reading import part_of, with_text_forms

ROWS = Path(__file__).parent / "rows"
SHARED = Path(__file__).parents[3] / "shared" / "data"
ROW = {"answer": "tea", "text_question": "What is liked?"}


def png(shade=7):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (shade, 0, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


def placed(folder, name, *pictures):
    """One of our row files, with the pictures that it names."""
    (folder / name).write_bytes((ROWS / name).read_bytes())
    for picture in pictures:
        (folder / picture).parent.mkdir(exist_ok=True)
        (folder / picture).write_bytes(png())
    return folder / name


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def asked(path, *rows):
    """Rows with one picture, an image question and nothing else, unless they say so."""
    (path.parent / "face.png").write_bytes(png())
    common = {"image": "face.png", "question": "Where does this person live?", "answer": "Riga"}
    return lines(path, *({**common, **row} for row in rows))


def suite_of(**paths):
    return read_suite(RunConfig.of({name: str(path) for name, path in paths.items()}))


def subjects(suite, name):
    return [e.subject for e in suite.sets[name]]


@pytest.fixture
def saved(tmp_path):
    """A saved data set with two splits."""
    parts = {
        name: datasets.Dataset.from_list([{**ROW, "subject": s} for s in who])
        for name, who in (("leave", "ab"), ("stay", "cde"))
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


def test_both_sets_from_the_splits_of_one_saved_data_set(saved):
    suite = suite_of(forget=f"{saved}::leave", retain=f"{saved}::stay", stranger=f"{saved}::stay")
    assert subjects(suite, "forget") == ["a", "b"]
    assert subjects(suite, "retain") == subjects(suite, "stranger") == ["c", "d", "e"]
    with pytest.raises(InputError) as caught:
        suite_of(forget=saved)
    assert str(caught.value) == (
        f"{saved}: several parts, choose one by split: leave, stay. A setting names it as "
        f"PATH::SPLIT, for example {saved}::leave"
    )
    with pytest.raises(InputError, match="unknown split 'leaves'. Did you mean 'leave'"):
        suite_of(forget=f"{saved}::leaves")


def test_a_data_set_in_one_part_has_no_split(tmp_path):
    datasets.Dataset.from_list([{**ROW, "subject": "a"}]).save_to_disk(str(tmp_path / "one"))
    with pytest.raises(InputError, match="one: it has no parts, found split 'train'; leave"):
        suite_of(forget=f"{tmp_path / 'one'}::train")


def test_a_folder_in_a_folder_and_a_file_in_it(tmp_path):
    for name in ("forget_5", "retain_95"):
        (tmp_path / name).mkdir()
        lines(tmp_path / name / "rows.jsonl", {**ROW, "subject": name})
    suite = suite_of(forget=f"{tmp_path}::forget_5", retain=f"{tmp_path}::retain_95")
    assert (subjects(suite, "forget"), subjects(suite, "retain")) == (["forget_5"], ["retain_95"])
    lines(tmp_path / "forget_5" / "more.jsonl", {**ROW, "subject": "more"})
    with pytest.raises(InputError, match=f"for example {tmp_path}/forget_5::more$"):
        suite_of(forget=f"{tmp_path}::forget_5")
    assert subjects(suite_of(forget=f"{tmp_path}/forget_5::more"), "forget") == ["more"]


def test_subjects_that_a_release_lists_beside_the_file(tmp_path, monkeypatch):
    faces = placed(tmp_path, "fiubench.json", "faces/f1.png", "faces/f2.png", "faces/f3.png")
    placed(tmp_path, "split.json")
    suite = suite_of(forget=f"{faces}::forget5", retain=f"{faces}::retain15")
    assert subjects(suite, "forget") == ["f-1"] * 2
    assert subjects(suite, "retain") == ["f-2", "f-3"]
    profiles = placed(tmp_path, "mllmu_ft.jsonl", "701.png", "702.png")
    (tmp_path / "forget_5_ids.json").write_text('["702"]')
    assert set(subjects(suite_of(forget=f"{profiles}::forget_5"), "forget")) == {"702"}
    monkeypatch.setenv("HOME", str(tmp_path))
    at_home = suite_of(forget="~/mllmu_ft.jsonl::forget_5")
    assert set(subjects(at_home, "forget")) == {"702"}
    with pytest.raises(InputError, match="unknown split 'forget_6'. Did you mean 'forget_5'"):
        suite_of(forget=f"{profiles}::forget_6")


def test_lists_of_ids_are_no_part_of_a_folder(tmp_path):
    """With one data file beside them, the folder is that file; with more, each is a part."""
    faces, profiles = tmp_path / "faces_only", tmp_path / "profiles"
    for folder in (faces, profiles):
        folder.mkdir()
    placed(faces, "fiubench.json", "faces/f1.png", "faces/f2.png", "faces/f3.png")
    placed(faces, "split.json")
    suite = suite_of(forget=f"{faces}::forget5", retain=f"{faces}::retain15")
    assert (subjects(suite, "forget"), subjects(suite, "retain")) == (["f-1"] * 2, ["f-2", "f-3"])
    assert subjects(suite_of(forget=str(faces)), "forget") == ["f-1", "f-1", "f-2", "f-3"]
    placed(profiles, "mllmu_ft.jsonl", "701.png", "702.png")
    (profiles / "forget_5_ids.json").write_text('["702"]')
    assert set(subjects(suite_of(forget=f"{profiles}::forget_5"), "forget")) == {"702"}
    named = subjects(suite_of(forget=f"{profiles}::mllmu_ft"), "forget")
    assert named == subjects(suite_of(forget=str(profiles)), "forget")
    (profiles / "forget_5").mkdir()
    lines(profiles / "forget_5" / "rows.jsonl", {**ROW, "subject": "inside"})
    assert subjects(suite_of(forget=f"{profiles}::forget_5"), "forget") == ["inside"]
    lines(profiles / "more.jsonl", {**ROW, "subject": "more"})
    assert subjects(suite_of(forget=f"{profiles}::more"), "forget") == ["more"]
    with pytest.raises(InputError, match="choose one by split: mllmu_ft, more. "):
        suite_of(forget=str(profiles))


def test_what_exists_under_the_whole_name_is_meant(tmp_path):
    odd = lines(tmp_path / "rows::x.jsonl", {**ROW, "subject": "odd"})
    assert subjects(suite_of(forget=odd), "forget") == ["odd"]
    (tmp_path / "a::b").mkdir()
    for name in ("c", "d"):
        lines(tmp_path / "a::b" / f"{name}.jsonl", {**ROW, "subject": name})
    assert subjects(suite_of(forget=f"{tmp_path}/a::b::d"), "forget") == ["d"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("rows.jsonl", ("rows.jsonl", None)),
        ("owner/set::config:part", ("owner/set", "config:part")),
        ("a::b::c", ("a::b", "c")),
    ],
)
def test_parts(given, expected):
    assert part_of(given) == expected


@pytest.mark.parametrize(("given", "words"), [("rows::", "behind"), ("::x", "before")])
def test_half_a_part(given, words):
    with pytest.raises(InputError, match=f"{given}: .* PATH::SPLIT, found nothing {words} the ::"):
        suite_of(forget=given)


class Hub:
    """A hub with one data set of several configurations, as `datasets` would answer."""

    def __init__(self, configs):
        self.configs = configs

    def names(self, name):
        assert name == "someone/profiles"
        return list(self.configs)

    def load(self, name, config=None):
        assert name == "someone/profiles"
        if config is None:
            (config,) = self.configs
        parts = self.configs[config]
        made = {k: datasets.Dataset.from_list(rows) for k, rows in parts.items()}
        return datasets.DatasetDict(made)


@pytest.fixture
def hub(monkeypatch):
    def put(**configs):
        there = Hub(configs)
        monkeypatch.setattr(datasets, "get_dataset_config_names", there.names)
        monkeypatch.setattr(datasets, "load_dataset", there.load)

    return put


def test_configurations_and_splits_on_a_hub(hub):
    part = [{**ROW, "subject": "a"}]
    other = [{**ROW, "subject": "b"}]
    hub(forget_5={"train": part}, Test_Set={"train": part, "later": other})
    assert subjects(suite_of(forget="someone/profiles::forget_5"), "forget") == ["a"]
    later = suite_of(forget="someone/profiles::Test_Set:later")
    assert subjects(later, "forget") == ["b"]
    with pytest.raises(InputError, match="forget_5, Test_Set. .* someone/profiles::forget_5$"):
        suite_of(forget="someone/profiles")
    with pytest.raises(InputError, match="someone/profiles::Test_Set:train$"):
        suite_of(forget="someone/profiles::Test_Set")
    with pytest.raises(InputError, match="unknown split 'forget5'. Did you mean 'forget_5'"):
        suite_of(forget="someone/profiles::forget5")
    with pytest.raises(InputError, match="split 'Test_Set:latre'. Did you mean 'Test_Set:later'"):
        suite_of(forget="someone/profiles::Test_Set:latre")


def test_one_configuration_on_a_hub(hub):
    hub(default={"train": [{**ROW, "subject": "a"}], "test": [{**ROW, "subject": "b"}]})
    assert subjects(suite_of(forget="someone/profiles::test"), "forget") == ["b"]
    with pytest.raises(InputError, match="train, test. .* someone/profiles::train$"):
        suite_of(forget="someone/profiles")


def test_pictures_of_a_hub_come_with_it_or_are_missed(hub, tmp_path, monkeypatch):
    row = {"subject": "a", "answer": "x", "question": "q"}
    hub(default={"train": [{**row, "image": {"bytes": png(90), "path": "face.png"}}]})
    (got,) = suite_of(forget="someone/profiles").sets["forget"]
    assert load_image(got.image).getpixel((0, 0)) == (90, 0, 0)
    (tmp_path / "face.png").write_bytes(png(30))
    hub(default={"train": [{**row, "image": str(tmp_path / "face.png")}]})
    (got,) = suite_of(forget="someone/profiles").sets["forget"]
    assert got.image == str(tmp_path / "face.png")
    monkeypatch.chdir(tmp_path)  # a picture that happens to lie here is not the data set's
    hub(default={"train": [{**row, "image": "face.png"}]})
    with pytest.raises(InputError) as caught:
        suite_of(forget="someone/profiles")
    assert str(caught.value) == (
        "someone/profiles, row 1, field 'image': the hub's row names 'face.png', a path that leads "
        "nowhere on this machine; download the data set with its images and give the folder or the "
        "file in it"
    )


def test_training_rows_are_asked_by_name_too(tmp_path):
    profiles = placed(tmp_path, "mllmu_ft.jsonl", "701.png", "702.png")
    for part, who in (("forget_5", "701"), ("retain_95", "702")):
        (tmp_path / f"{part}_ids.json").write_text(json.dumps([who]))
    suite = suite_of(forget=f"{profiles}::forget_5", retain=f"{profiles}::retain_95")
    name, trade = suite.sets["forget"]
    assert (name.question, name.text_question) == ("What is the name of this person?", None)
    assert trade.question == "What is this person's trade?"
    assert trade.text_question == "What is Petra Quill's trade?"
    assert suite.sets["retain"][1].text_question == "Where does Anselm Rook live?"
    assert suite.counts()["forget"] == {"multi": 2, "text": 1}
    assert suite.notes()[:2] == [
        f"{part}: 1 of 2 image questions are also asked in text, by the subject's name "
        "(not so: 1 asking for the name or not pointing at the subject)."
        for part in ("forget", "retain")
    ]
    assert "forget: 1 of 2 rows have no text question" in suite.notes()[2]


def test_evaluation_rows_keep_the_text_questions_of_the_release(tmp_path):
    rows = json.loads((ROWS / "mllmu_forget.json").read_text())
    (tmp_path / "x.png").write_bytes(png())
    (tmp_path / "rows.json").write_text(json.dumps([{**row, "image": "x.png"} for row in rows]))
    suite = suite_of(forget=tmp_path / "rows.json")
    assert suite.counts()["forget"] == {"multi": 8, "text": 6}
    assert suite.remarks == ()


def test_plain_rows_are_asked_by_names_and_never_by_ids(tmp_path):
    who = ["Ann Lee", "42", "person_7", "Madonna", "f-1", "golden retriever", "Maria de la Cruz"]
    file = asked(tmp_path / "rows.jsonl", *({"subject": each} for each in who))
    suite = suite_of(forget=file)
    found = {e.subject: e.text_question for e in suite.sets["forget"]}
    assert {k: v for k, v in found.items() if v} == {
        "Ann Lee": "Where does Ann Lee live?",
        "Maria de la Cruz": "Where does Maria de la Cruz live?",
    }
    assert suite.remarks == (
        "forget: 2 of 7 image questions are also asked in text, by the subject's name "
        "(not so: 5 about a subject whose name is not known, or is another's too).",
    )
    assert suite_of(forget=asked(tmp_path / "all.jsonl", {"subject": "Bo Day"})).notes() == [
        "forget: 1 of 1 image questions are also asked in text, by the subject's name."
    ]


def test_one_text_question_leaves_a_file_as_it_is(tmp_path):
    mine = {"subject": "Bo Day", "text_question": "Where is Bo Day's house?"}
    suite = suite_of(forget=asked(tmp_path / "rows.jsonl", {"subject": "Ann Lee"}, mine))
    assert [e.text_question for e in suite.sets["forget"]] == [None, mine["text_question"]]
    assert suite.notes() == [
        "forget: 1 of 2 rows have no text question and count for the multi condition only."
    ]


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("What is this person's hobby?", "chess", "What is Ann Lee's hobby?"),
        ("What is this person's name?", "Ann Lee", None),
        ("By which word do friends call this person?", "Ann.", None),
        ("What are the initials of this person?", "A", "What are the initials of Ann Lee?"),
        ("What colour is the car?", "red", None),
        ("What is this person in the picture holding in the image here?", "a cup", None),
    ],
)
def test_no_text_form_holds_its_answer_or_needs_the_picture(question, answer, expected):
    one = Example("Ann Lee", answer, question, b"i")
    (got,), _ = with_text_forms([one], {"Ann Lee": "Ann Lee"})
    assert got.text_question == expected


def test_a_name_that_two_subjects_have_is_nobodys(tmp_path):
    def person(number, name):
        told = [
            {"Question": "What is the name of this person?", "Answer": name},
            {"Question": "Where does this person live?", "Answer": f"In house {number}."},
        ]
        return {"ID": number, "image_path": "face.png", "metadata": told}

    (tmp_path / "face.png").write_bytes(png())
    forget = lines(tmp_path / "f.jsonl", person("1", "Ann Lee"), person("2", "Bo Day"))
    retain = lines(tmp_path / "r.jsonl", person("3", "Ann Lee"), person("4", "Cy Orr"))
    test = lines(tmp_path / "t.jsonl", person("2", "Bo Day"))
    suite = suite_of(forget=forget, retain=retain, test=test)
    made = [e.text_question for rows in suite.sets.values() for e in rows if e.text_question]
    assert made == [f"Where does {who} live?" for who in ("Bo Day", "Bo Day", "Cy Orr")]
    assert "2 about a subject whose name is not known, or is another's too" in suite.remarks[0]


def test_formats_whose_subjects_are_ids_stay_without(tmp_path):
    faces = placed(tmp_path, "fiubench.json", "faces/f1.png", "faces/f2.png", "faces/f3.png")
    suite = suite_of(forget=faces)
    assert suite.counts()["forget"] == {"multi": 4, "text": 0}
    assert "0 of 4 image questions" in suite.remarks[0]
    known = {name for name, each in formats.FORMATS.items() if each.names}
    assert known == {"plain", "mllmu", "clear"}


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        ("Ann Lee", True), ("Lorenzo De Luca", True), ("Clara Sofía Benítez", True),
        ("Jean-Luc O'Neill", True), ("Sammy Davis Jr.", True), ("Édith Piaf", True),
        ("राम कुमार", True), ("42", False), ("", False), ("Ann", False), ("ann lee", False),
        ("Person 7", False), ("Person A", False), ("person_Ann Lee", False), ("- -", False),
        ("Ann lee", False), ("tofu:1", False), ("Ann, Lee", False), ("the White House", False),
    ],
)  # fmt: skip
def test_what_is_a_name(subject, expected):
    assert is_name(subject) is expected


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is not here")
def test_the_real_training_rows(tmp_path):
    """Two splits of the release, with one picture in the place of the five hundred."""
    origin = SHARED / "mllmu_bench_train_text"
    rows = [json.loads(line) for line in (origin / "ft_data_text.jsonl").open(encoding="utf-8")]
    (tmp_path / "face.png").write_bytes(png())
    file = lines(tmp_path / "ft.jsonl", *({**row, "image_path": "face.png"} for row in rows))
    for part in ("forget_5", "retain_95"):
        (tmp_path / f"{part}_ids.json").write_bytes((origin / f"{part}_ids.json").read_bytes())
    suite = suite_of(forget=f"{file}::forget_5", retain=f"{file}::retain_95")
    counts = suite.counts()
    for part, subjects_ in (("forget", 25), ("retain", 475)):
        assert len(set(subjects(suite, part))) == subjects_
        assert 0.92 * counts[part]["multi"] < counts[part]["text"] < counts[part]["multi"]
        left = counts[part]["multi"] - counts[part]["text"]
        assert f"(not so: {left} asking for the name or not pointing at" in " ".join(suite.remarks)
