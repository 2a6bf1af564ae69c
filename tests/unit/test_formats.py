"""Each benchmark format, from real files that the tests write (JSON, JSON lines, parquet)."""

import io
import json
from dataclasses import fields, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from expunge import formats
from expunge.content import fingerprint
from expunge.data import TASKS, Example, read, text_only, write_jsonl
from expunge.errors import InputError
from expunge.formats import clear, mllmu, plain
from expunge.formats.picture import load_image
from expunge.formats.row import Row
from expunge.formats.wording import named

ROWS = Path(__file__).parent / "rows"
SHARED = Path(__file__).parents[3] / "shared" / "data"


def png(color, size=(5, 4)):
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, format="PNG")
    return buffer.getvalue()


def rows_of(name):
    text = (ROWS / name).read_text(encoding="utf-8")
    if name.endswith(".jsonl"):
        return [json.loads(line) for line in text.splitlines()]
    return json.loads(text)


def parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def with_pictures(rows, field="image"):
    return [
        {**row, field: {"bytes": png((40 * i + 10, 0, 0)), "path": f"{i}.png"}}
        for i, row in enumerate(rows)
    ]


def place(tmp_path, name, *pictures):
    """Copy one of our row files and create the pictures that it names."""
    (tmp_path / name).write_bytes((ROWS / name).read_bytes())
    for i, picture in enumerate(pictures):
        target = tmp_path / picture
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(png((0, 30 * i, 0)))
    return tmp_path / name


@pytest.fixture
def release(tmp_path):
    """A folder laid out as the MLLMU-Bench release: one folder per configuration."""
    for config in ("forget", "retain"):
        rows = with_pictures(rows_of(f"mllmu_{config}.json"))
        share = {"forget": "forget_5", "retain": "retain_95"}[config]
        parquet(tmp_path / share / "train-00000-of-00001.parquet", rows)
    return tmp_path


def test_table_and_plain_fields_match_the_example():
    assert set(plain.FIELDS) == {f.name for f in fields(Example)}
    assert set(formats.FORMATS) == {"plain", "mllmu", "umu", "clear", "fiubench", "tofu", "llava"}
    assert all(name == f.name and f.description for name, f in formats.FORMATS.items())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain.jsonl", "plain"),
        ("mllmu_forget.json", "mllmu"),
        ("mllmu_ft.jsonl", "mllmu"),
        ("umu.json", "umu"),
        ("clear.json", "clear"),
        ("clear_faces.json", "clear"),
        ("fiubench.json", "fiubench"),
        ("tofu.jsonl", "tofu"),
        ("llava.json", "llava"),
    ],
)
def test_every_format_is_recognised_and_claimed_once(name, expected):
    columns = rows_of(name)[0].keys()
    assert [f.name for f in formats.FORMATS.values() if f.claims(columns)] == [expected]
    assert formats.detect(columns).name == expected


def test_unclaimed_columns_fall_to_plain_and_its_error():
    assert formats.detect({"question", "answer"}).name == "plain"


def test_unknown_format_lists_what_there_is():
    with pytest.raises(InputError, match="Did you mean 'mllmu'.*auto, clear, fiubench"):
        formats.get("mlmu")


def test_mllmu_evaluation_folder(release):
    got = read(release, split="forget_5")
    assert len(got) == 2 * 7
    assert got == read(release / "forget_5", format="mllmu")
    kinds = {t: [(e.has("multi"), e.has("text")) for e in got if e.task == t] for t in TASKS}
    assert kinds["classification"] == [(True, False), (True, False), (False, True)] * 2
    assert kinds["generation"] == kinds["cloze"] == [(True, False), (False, True)] * 2
    first = got[0]
    assert first.subject == "701" and first.choices == ("glazier", "luthier", "cooper", "farrier")
    assert first.answer == "luthier" and isinstance(first.image, bytes)
    assert load_image(first.image).getpixel((0, 0)) == (10, 0, 0)
    assert got[2].answer == "luthier" and got[2].image is None
    assert [e.answer for e in got if e.task == "cloze"] == [
        "luthier", "Olomouc", "beekeeper", "Évora",
    ]  # fmt: skip


def test_mllmu_folder_needs_a_known_split(release):
    with pytest.raises(InputError, match="choose one by split: forget_5, retain_95"):
        read(release)
    with pytest.raises(InputError, match="unknown split 'forget_05'.*'forget_5'"):
        read(release, split="forget_05")


def test_mllmu_test_set_takes_its_pictures_in_turn(tmp_path):
    row = rows_of("mllmu_forget.json")[0]
    row = {k: row[k] for k in ("ID", *mllmu.TASKS)}
    pictures = [{"bytes": png((0, 0, shade)), "path": None} for shade in (50, 90, 130)]
    for shard in range(2):
        table = [{**row, "ID": f"80{shard}", "images": pictures}]
        parquet(tmp_path / "Test_Set" / f"train-0000{shard}-of-00002.parquet", table)
    got = read(tmp_path, split="Test_Set")
    assert [e.subject for e in got] == ["800"] * 7 + ["801"] * 7
    seen = [load_image(e.image).getpixel((0, 0))[2] for e in got if e.image is not None]
    assert seen == [50, 90, 130, 50] * 2


def test_mllmu_training_rows_in_both_layouts(tmp_path):
    lines = read(place(tmp_path, "mllmu_ft.jsonl", "701.png", "702.png"))
    table = [
        {
            "ID": row["ID"],
            "image": {"bytes": png((1, 2, 3)), "path": None},
            "metadata": json.dumps(row["metadata"]),
        }
        for row in rows_of("mllmu_ft.jsonl")
    ]
    path = parquet(tmp_path / "ft_Data" / "train-00000-of-00001.parquet", table)
    stored = read(path)
    assert [(e.subject, e.question, e.answer) for e in lines] == [
        (e.subject, e.question, e.answer) for e in stored
    ]
    assert lines[2].image == str(tmp_path / "702.png")
    assert mllmu.names(lines) == {"701": "Petra Quill", "702": "Anselm Rook"}
    turned, failed = text_only(lines, mllmu.names(lines))
    assert failed == [0, 2]
    assert turned[1].text_question == "What is Petra Quill's trade?"
    assert turned[3].text_question == "Where does Anselm Rook live?"


def test_mllmu_id_list_beside_a_file(tmp_path):
    path = place(tmp_path, "mllmu_ft.jsonl", "701.png", "702.png")
    with pytest.raises(InputError, match="forget_5_ids.json, which does not exist"):
        read(path, split="forget_5")
    (tmp_path / "forget_5_ids.json").write_text('["702"]')
    assert {e.subject for e in read(path, split="forget_5")} == {"702"}
    with pytest.raises(InputError, match="unknown split 'forget5'.*'forget_5'"):
        read(path, split="forget5")
    (tmp_path / "forget_5_ids.json").write_text('{"a": 1}')
    with pytest.raises(InputError, match="expected a list of ids, found dict"):
        read(path, split="forget_5")


def _broken(change):
    row = rows_of("mllmu_forget.json")[0]
    row["image"] = "x.png"
    change(row)
    return row


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda r: r["Classification_Task"]["Image_Textual_Questions"][1].update(
                Correct_Answer="E"
            ),
            r"Classification_Task.Image_Textual_Questions\[1\].Correct_Answer'.*among A, B, C, D",
        ),
        (lambda r: r["Mask_Task"][0].update(Type="Image"), r"Mask_Task\[0\].Type'.*Image_Textual"),
        (
            lambda r: r["Generation_Task"][1].pop("Ground_Truth"),
            r"Generation_Task\[1\].Ground_Truth'.*missing",
        ),
        (lambda r: r["Generation_Task"].insert(0, 3), r"Generation_Task\[0\]'.*object, found int"),
        (lambda r: r.update(Mask_Task={"a": 1}), "Mask_Task'.*expected a list, found dict"),
        (lambda r: r.update(ID=7), "'ID'.*expected text, found int"),
        (lambda r: r.pop("image"), "'image'.*images or image_path"),
        (lambda r: r.update(images=[]), "'images'.*at least one image"),
        (
            lambda r: r["Mask_Task"].__setitem__(0, {"Qestion": "a __", "Type": "Pure_Text"}),
            r"Mask_Task\[0\].Question'.*found 'Qestion'; did you mean 'Question'",
        ),
    ],
)
def test_mllmu_malformed_rows_name_the_place(tmp_path, change, message):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([_broken(lambda r: None), _broken(change)]))
    with pytest.raises(InputError, match=r"rows\.json, row 2, field '" + message.lstrip("'")):
        read(path, format="mllmu", check_images=False)


def test_mllmu_malformed_training_text(tmp_path):
    path = tmp_path / "ft.jsonl"
    path.write_text(json.dumps({"ID": "1", "image_path": "1.png", "metadata": "[{"}) + "\n")
    with pytest.raises(InputError, match="line 1, field 'metadata': expected JSON or a Python"):
        read(path, check_images=False)


def test_umu_pairs_what_agrees(tmp_path):
    got = read(parquet(tmp_path / "umu.parquet", with_pictures(rows_of("umu.json"))))
    both = [e for e in got if e.has("multi") and e.has("text")]
    assert [(e.task, e.answer) for e in both] == [
        ("generation", "kite making"),
        ("classification", "kite making"),
        ("cloze", "Bergen"),
    ]
    assert both[0].question == "What is this person's hobby?"
    assert both[0].text_question == "What is Nils Aster's hobby?"
    assert both[1].choices == ("kite making", "chess", "rowing", "judo")
    apart = [e for e in got if not (e.has("multi") and e.has("text"))]
    assert [(e.task, e.has("multi")) for e in apart] == [
        ("generation", True),
        ("generation", False),
        ("generation", True),
        ("generation", False),
    ]
    assert apart[-1].answer == "Nils Aster isn't working; he is retired."


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("Cloze", "{'unimodal': ", "'Cloze': expected JSON or a Python literal"),
        ("Cloze", "{'unimodal': {}}", "'Cloze.muitimodal': missing"),
        ("Cloze", "__import__('os')", "'Cloze': expected JSON or a Python literal"),
        (
            "Classify",
            "{'unimodal': {}, 'muitimodal': {'1': {'question': 'q', 'options': {'A': 'x'}, "
            "'answer': 'C'}}}",
            "Classify.muitimodal.1.answer': expected a letter among A",
        ),
        ("MM_QA", "{'question': {'1': 'q'}, 'answer': {}}", "MM_QA.answer.1': missing"),
    ],
)
def test_umu_malformed(tmp_path, column, value, message):
    row = {**with_pictures(rows_of("umu.json"))[0], column: value}
    with pytest.raises(InputError, match=f"umu.parquet, row 1, field .*{message}"):
        read(parquet(tmp_path / "umu.parquet", [row]), format="umu")


def test_clear_captions_names_and_text(tmp_path):
    got = read(place(tmp_path, "clear.json", "faces/mira.png"))
    assert [e.subject for e in got] == ["Mira Solberg"] * 3
    caption, name, text = got
    assert (caption.question, caption.answer) == (
        clear.CAPTION_QUESTION,
        "Mira Solberg reads a map on a bench.",
    )
    assert name.task == "classification" and name.answer == "Mira Solberg"
    assert sorted(name.choices) == ["Ada Ferro", "Juno Park", "Lia Brandt", "Mira Solberg"]
    assert [c for c in name.choices if c != name.answer] == ["Juno Park", "Ada Ferro", "Lia Brandt"]
    assert not text.has("multi") and text.text_question == "What does Mira Solberg write?"


def test_clear_right_name_takes_every_place():
    def place_of(i):
        row = {"image": "a", "caption": "c", "name": f"N{i}", "perturbed_names": ["x", "y", "z"]}
        *_, record = clear.read(Row(row, "here"))
        return record["choices"].index(f"N{i}")

    counts = [sum(place_of(i) == k for i in range(400)) for k in range(4)]
    assert min(counts) > 60, counts


def test_clear_real_faces_and_missing_caption(tmp_path):
    (face,) = read(place(tmp_path, "clear_faces.json", "faces/star.png"))
    assert (face.subject, face.choices[1], face.task) == (
        "Famous Fern",
        "Famous Fern",
        "classification",
    )
    bad = rows_of("clear_faces.json")[0] | {"answer": "Nobody"}
    (tmp_path / "bad.json").write_text(json.dumps([bad]))
    with pytest.raises(InputError, match="row 1, field 'answer': expected one of the options"):
        read(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_text(json.dumps([{"image": "a", "caption": None, "name": "b"}]))
    with pytest.raises(InputError, match="field 'caption': missing"):
        read(tmp_path / "bad.json")


def test_fiubench_splits(tmp_path):
    path = place(tmp_path, "fiubench.json", "faces/f1.png", "faces/f2.png", "faces/f3.png")
    assert [e.subject for e in read(path)] == ["f-1", "f-1", "f-2", "f-3"]
    with pytest.raises(InputError, match="split.json, which does not exist"):
        read(path, split="forget5")
    place(tmp_path, "split.json")
    assert [e.answer for e in read(path, split="forget5")] == ["AB negative", "Harbour Credit"]
    assert {e.subject for e in read(path, split="retain5")} == {"f-2"}
    assert {e.subject for e in read(path, split="retain")} == {"f-2", "f-3"}
    with pytest.raises(InputError, match="unknown split 'forget6'.*retain15"):
        read(path, split="forget6")
    (tmp_path / "split.json").write_text("[1]")
    with pytest.raises(InputError, match="expected an object of lists of ids"):
        read(path, split="forget5")


def test_tofu_authors_are_blocks_of_twenty(tmp_path):
    got = read(place(tmp_path, "tofu.jsonl"))
    assert [e.subject for e in got] == ["tofu:1"] * 20 + ["tofu:2"] * 2
    assert all(e.has("text") and not e.has("multi") for e in got)
    plain_one, ranked = got[-2:]
    assert plain_one.answer == "Otto Kvist was born in Umeå." and plain_one.choices is None
    assert ranked.answer == ranked.choices[0] == "Umeå is the birthplace of Otto Kvist."
    assert len(ranked.choices) == 3


def test_llava_turns(tmp_path):
    got = read(place(tmp_path, "llava.json", "pictures/mill.png"))
    assert [(e.subject, e.question, e.text_question, e.answer) for e in got] == [
        ("v1", "What turns the wheel?", None, "A small stream."),
        ("v1", "Is it winter?", None, "No, the trees are green."),
        ("v2", None, "What is a weir?", "A low dam."),
    ]


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "expected pairs of turns, found 0"),
        ([("human", "a")], "expected pairs of turns, found 1"),
        ([("gpt", "a"), ("human", "b")], r"conversations\[0\].from': expected 'human'"),
        ([("human", "<image>\n"), ("gpt", "b")], r"\[0\].value': expected a question"),
        ([("human", "a"), ("gpt", "")], r"\[1\].value': expected text, found an empty"),
    ],
)
def test_llava_malformed(tmp_path, turns, message):
    turns = [{"from": who, "value": words} for who, words in turns]
    (tmp_path / "l.json").write_text(json.dumps([{"id": "1", "conversations": turns}]))
    with pytest.raises(InputError, match=message):
        read(tmp_path / "l.json")


def test_official_prompts_word_for_word(release):
    got = read(release, split="forget_5")
    classification, text = got[0], got[2]
    assert mllmu.official_prompt(classification) == (
        "USER: <image>\nWhat does this person do for a living?\nA: glazier\nB: luthier\n"
        "C: cooper\nD: farrier\nJust give ONE letter representing the answer directly.\nASSISTANT:"
    )
    assert mllmu.official_prompt(text, condition="text").startswith("USER:\nWhat is Petra Quill's")
    cloze = next(e for e in got if e.task == "cloze")
    assert mllmu.official_prompt(cloze) == (
        "USER: <image>\nThis person works as a [Blank].\nPlease **ONLY** provide the correct "
        "answer that should replace the [Blank].\nASSISTANT:"
    )
    spoken = [e for e in got if e.task == "generation"]
    assert mllmu.official_prompt(spoken[0]).endswith(
        "one sentence accurately in ENGLISH.\nASSISTANT: "
    )
    assert mllmu.official_prompt(spoken[1], condition="text") == (
        "USER: Where does Petra Quill live?\nAnswer the question based on your trained knowledge "
        "in one sentence in ENGLISH.\nASSISTANT:"
    )


def test_few_shot_is_drawn_once_by_the_seed(release):
    rows = read(release, split="retain_95") + read(release, split="forget_5")
    pool = [e for e in rows if e.task == "classification" and e.has("multi")]
    draws = [mllmu.draw_few_shot(pool, shots=2, seed=s) for s in range(30)]
    assert draws[3] == mllmu.draw_few_shot(pool, shots=2, seed=3)
    assert {e.subject for draw in draws for e in draw} == {"701", "702", "703", "704", "705"}
    firsts = {e.subject: e for e in reversed(pool)}
    assert all(draw == [firsts[e.subject] for e in draw] for draw in draws)
    assert all(len({e.subject for e in draw}) == 2 for draw in draws)
    (one,) = mllmu.draw_few_shot(pool, shots=1)
    assert one in pool
    for few, shots in ((pool, 6), (pool[:4], 3), (pool[:1] + pool[2:3], 2), ([], 1)):
        with pytest.raises(InputError, match=f"found {len(few)} questions about"):
            mllmu.draw_few_shot(few, shots=shots)


def test_few_shot_stands_before_the_question(release):
    rows = read(release, split="retain_95") + read(release, split="forget_5")
    pool = [e for e in rows if e.task == "classification" and e.has("multi")]
    asked, worked, other = pool[-1], pool[0], pool[2]
    prompt = mllmu.official_prompt(asked, few_shot=[worked, other])
    assert prompt == (
        "USER: <image>\nQuestion: What does this person do for a living?\nA: glazier\nB: saddler\n"
        "C: cooper\nD: farrier\nCorrect Answer: B\n"
        "USER: <image>\nQuestion: What does this person do for a living?\nA: glazier\nB: printer\n"
        "C: cooper\nD: farrier\nCorrect Answer: B\n"
    ) + mllmu.official_prompt(asked)
    blanks = [e for e in rows if e.task == "cloze" and e.has("text")]
    assert mllmu.official_prompt(blanks[1], condition="text", few_shot=blanks[:1]) == (
        "USER:\nTove Lind lives in [Blank].\nPlease **ONLY** provide the correct answer that "
        "should replace the [Blank].\nCorrect Answer: Visby\n"
    ) + mllmu.official_prompt(blanks[1], condition="text")
    spoken = [e for e in rows if e.task == "generation" and e.has("multi")]
    assert mllmu.official_prompt(spoken[0], few_shot=spoken[1:]) == mllmu.official_prompt(spoken[0])


@pytest.mark.parametrize(
    ("said", "right"),
    [("B", 1), (" b) luthier", 1), ("A", 0), ("luthier", 0), ("", 0), ("Z", 0), ("ß", 0)],
)
def test_official_classification_takes_the_first_letter(said, right):
    choices = ("glazier", "luthier")
    example = Example("s", "luthier", text_question="q", choices=choices, task="classification")
    assert mllmu.official_score(example, said) == {"accuracy": float(right)}


def lettered(tmp_path, options, right):
    """The one classification question of an evaluation row with these options."""
    item = {"Question": "What is this?", "Options": options, "Correct_Answer": right}
    row = {"ID": "1", "image": "x.png", "Classification_Task": {"Image_Textual_Questions": [item]}}
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    (got,) = read(tmp_path / "rows.json", format="mllmu", check_images=False)
    return got


@pytest.mark.parametrize(
    ("options", "right", "letters"),
    [
        ({"A": "oak", "B": "elm", "C": "ash", "D": "yew"}, "C", None),
        ({"A": "oak", "B": "elm", "C": "ash", "D": None}, "C", None),
        ({"A": "oak", "B": None, "C": "ash", "D": "yew"}, "D", "ACD"),
        ({"A": None, "B": "elm", "C": None, "D": "yew"}, "B", "BD"),
        ({"A": "oak", "B": "elm", "C": "elm", "D": "yew"}, "B", None),
        ({"A": "oak", "B": "elm", "C": "elm", "D": "yew"}, "C", "ACBD"),
        ({"A": "elm", "B": None, "C": "oak", "D": "elm"}, "D", "DCA"),
        ({"B": "oak", "A": "elm", "C": "ash"}, "A", "BAC"),
    ],
)
def test_a_letter_is_that_of_the_row_and_one_alone_is_right(tmp_path, options, right, letters):
    got = lettered(tmp_path, options, right)
    given = {key: text for key, text in options.items() if text is not None}
    assert (got.choices, got.answer, got.letters) == (tuple(given.values()), given[right], letters)
    shown = "".join(f"{key}: {given[key]}\n" for key in sorted(given))
    assert mllmu.official_prompt(got).startswith(f"USER: <image>\nWhat is this?\n{shown}Just give")
    worked = mllmu.official_prompt(got, few_shot=[got])
    assert worked.startswith(
        f"USER: <image>\nQuestion: What is this?\n{shown}Correct Answer: {right}"
    )
    rights = [key for key in "ABCDE" if mllmu.official_score(got, key.lower())["accuracy"]]
    assert rights == [right]


def test_letters_are_kept_in_files_and_hashes(tmp_path):
    got = lettered(tmp_path, {"A": "oak", "B": None, "C": "ash"}, "C")
    again = tmp_path / "plain.jsonl"
    (tmp_path / "x.png").write_bytes(png((1, 2, 3)))
    write_jsonl([got], again)
    assert read(again) == [got]
    assert fingerprint([got]) != fingerprint([replace(got, letters=None)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"A": "oak", "B": None}, "at least 2, found 1"),
        ({"A": "oak", "b": "elm"}, "Options': expected capital letters, found A, b"),
        ({"A": "oak", "B2": "elm"}, "Options': expected capital letters, found A, B2"),
    ],
)
def test_options_without_letters_are_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        lettered(tmp_path, options, "A")


@pytest.mark.parametrize("letters", ["AB", "ABCD", "AAB", "abc", "A B"])
def test_wrong_letters_are_refused(tmp_path, letters):
    row = {"subject": "s", "answer": "a", "text_question": "q", "task": "classification"}
    (tmp_path / "r.json").write_text(json.dumps([{**row, "choices": [*"abc"], "letters": letters}]))
    with pytest.raises(InputError, match="field 'letters': expected 3 capital letters that differ"):
        read(tmp_path / "r.json")


def test_more_choices_than_letters():
    many = tuple(map(str, range(27)))
    example = Example("s", "3", text_question="q", choices=many, task="classification")
    with pytest.raises(InputError, match="27 choices, expected at most 26"):
        mllmu.official_prompt(example, condition="text")


def test_official_cloze_and_generation():
    cloze = Example("s", "Évora", text_question="__", task="cloze")
    assert mllmu.official_score(cloze, "It is éVORA.")["accuracy"] == 1
    assert mllmu.official_score(cloze, "Lisbon")["accuracy"] == 0
    spoken = Example("s", "the red boats sail", text_question="q")
    assert mllmu.official_score(spoken, spoken.answer) == {
        "rouge1": 1, "rouge2": 1, "rougeL": 1, "bleu": 1,
    }  # fmt: skip
    scores = mllmu.official_score(spoken, "the boat sails red")
    # stemmed words: the red boat sail / the boat sail red
    assert scores["rouge1"] == 1
    assert scores["rouge2"] == pytest.approx(1 / 3)
    assert scores["rougeL"] == pytest.approx(3 / 4)
    assert mllmu.official_score(spoken, "")["bleu"] == 0


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Where was this person born?", "Where was Ann Lee born?"),
        ("What is this individual's trade?", "What is Ann Lee's trade?"),
        ("How old is the person in the image?", "How old is Ann Lee?"),
        ("How old is the man in the photo's father?", "How old is Ann Lee's father?"),
        ("What does the woman shown in the image collect?", "What does Ann Lee collect?"),
        ("Who knows the individual depicted in this picture?", "Who knows Ann Lee?"),
        ("What is the person’s height?", "What is Ann Lee's height?"),
        ("Based on the image, where does this person live?", "Where does Ann Lee live?"),
        ("What is this person's profession as seen in the image?", "What is Ann Lee's profession?"),
        ("What are his hobbies?", "What are Ann Lee's hobbies?"),
        ("Who taught her?", "Who taught Ann Lee?"),
        ("Who taught her in school?", "Who taught Ann Lee in school?"),
        ("What is her pet's name?", "What is Ann Lee's pet's name?"),
        ("Where did he study?", "Where did Ann Lee study?"),
        ("What is the name of this person's cat?", "What is the name of Ann Lee's cat?"),
        ("This person was born in __.", "Ann Lee was born in __."),
        ("Where did this person spend their youth?", "Where did Ann Lee spend their youth?"),
        ("What is the name of this person?", None),
        ("What is this person's full name?", None),
        ("Who is the person in the image?", None),
        ("What is this person called?", None),
        ("What colour is the sky in the image?", None),
        ("What is the father's occupation?", None),
        ("What is behind this person in the image, and who is near the picture frame?", None),
    ],
)  # fmt: skip
def test_naming_the_subject(question, expected):
    assert named(question, "Ann Lee") == expected


@given(st.text(min_size=1).filter(lambda s: s.strip()))
def test_any_name_is_taken_literally(name):
    assert named("Where does this person live?", name) == f"Where does {name} live?"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is not here")
class TestRealRows:
    def test_mllmu_training_text(self):
        folder = SHARED / "mllmu_bench_train_text"
        path = folder / "ft_data_text.jsonl"
        got = read(path, check_images=False)
        assert len(got) == 7704 and len({e.subject for e in got}) == 500
        names = mllmu.names(got)
        assert len(names) == 500
        _, failed = text_only(got, names)
        left = [got[i].question for i in failed]
        assert sum("name" not in q for q in left) <= 20
        assert len(failed) < 0.07 * len(got)
        parts = {}
        for share, count in (("forget_5", 25), ("retain_95", 475)):
            part = read(path, split=share, check_images=False)
            parts[share] = {e.subject for e in part}
            assert len(parts[share]) == count
        assert not parts["forget_5"] & parts["retain_95"]
        with pytest.raises(InputError, match="line 1, field 'image'.*no such file"):
            read(path)

    @pytest.mark.parametrize(
        ("name", "rows", "subjects"),
        [
            ("forget01", 400, 20),
            ("forget01_perturbed", 800, 20),
            ("retain90", 3600, 180),
            ("world_facts_perturbed", 234, 117),
        ],
    )
    def test_tofu(self, name, rows, subjects):
        got = read(SHARED / "tofu" / f"{name}.json", format="tofu")
        assert (len(got), len({e.subject for e in got})) == (rows, subjects)

    def test_pictures(self):
        for path in sorted((SHARED / "llava").glob("*.jpg")):
            assert load_image(str(path)).mode == "RGB"

    def test_plain_rows_with_pictures(self, tmp_path):
        asked = json.loads((SHARED / "easy_vqa_test_200" / "questions.json").read_text())[:40]
        folder = SHARED / "easy_vqa_test_200" / "images"
        rows = [{**r, "image": str(folder / r["image"]), "subject": r["image"]} for r in asked]
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        got = read(tmp_path / "rows.json")
        assert len(got) == 40 and all(e.has("multi") for e in got)
