"""Reading, writing, hashing and turning examples."""

import dataclasses
import hashlib
import hmac
import io
import json
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from expunge import data
from expunge.content import check_overlap, fingerprint, salt_for, salted
from expunge.data import SETS, TASKS, Example, Suite, read, text_only, write_jsonl
from expunge.errors import InputError
from expunge.formats.picture import MAX_PIXELS, load_image

ROWS = Path(__file__).parent / "rows"
GOOD = {"subject": "Oda", "answer": "tea", "text_question": "What does Oda drink?"}


def encoded(color=(9, 8, 7), size=(3, 2), kind="PNG", **options):
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, format=kind, **options)
    return buffer.getvalue()


def huge_header(width, height):
    """A PNG that claims a size and holds no pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    idat = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    return b"\x89PNG\r\n\x1a\n" + chunk + idat


def lines(path, *rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def parquet(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = dict.fromkeys(key for row in rows for key in row)
    table = pa.table({c: pa.array([row.get(c) for row in rows]) for c in columns})
    pq.write_table(table, path)
    return path


@pytest.fixture
def plain(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/oda.png").write_bytes(encoded())
    path = tmp_path / "plain.jsonl"
    path.write_bytes((ROWS / "plain.jsonl").read_bytes())
    return path


def test_import_is_light():
    heavy = "torch", "transformers", "datasets", "pyarrow", "PIL", "numpy"
    code = f"import expunge.data, sys; print([m for m in {heavy} if m in sys.modules])"
    path = str(Path(data.__file__).parents[1])
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {path!r}); {code}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert run.stdout.strip() == "[]"


def test_read_plain_lines(plain):
    oda, choice, ivo = read(plain)
    picture = str(plain.parent / "pictures" / "oda.png")
    assert oda == Example(
        "Oda Brekke",
        "the nyckelharpa",
        "What instrument does this person play?",
        picture,
        "What instrument does Oda Brekke play?",
        attribute="instrument",
    )
    assert choice.choices == ("Skagen", "Tórshavn", "Husavik") and choice.task == "classification"
    assert (ivo.subject, ivo.task, ivo.image) == ("Ivo Màrtens", "cloze", None)
    assert [(e.has("multi"), e.has("text")) for e in (oda, choice, ivo)] == [
        (True, True),
        (True, False),
        (False, True),
    ]


def test_the_same_rows_from_every_container(plain, tmp_path):
    expected = read(plain)
    rows = [json.loads(line) for line in plain.read_text(encoding="utf-8").splitlines()]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b.json").write_bytes(plain.read_bytes())
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + plain.read_bytes() + b"\r\n\n")
    parquet(tmp_path / "c.parquet", *rows)
    for name in ("a.json", "b.json", "bom.jsonl", "c.parquet"):
        assert read(tmp_path / name) == expected
    pictured = [{**r, "image": {"bytes": encoded(), "path": "x.png"}} for r in rows[:2]]
    embedded = read(parquet(tmp_path / "d.parquet", *pictured))
    assert [e.image for e in embedded] == [encoded()] * 2
    assert fingerprint(embedded) == fingerprint(expected[:2])


def test_image_struct_with_a_path_only(plain, tmp_path):
    row = {**GOOD, "question": "q", "image": {"bytes": None, "path": "pictures/oda.png"}}
    (got,) = read(parquet(tmp_path / "p.parquet", row))
    assert got.image == str(tmp_path / "pictures" / "oda.png")
    row["image"] = {"bytes": None, "path": None}
    table = pa.table(
        {
            **{k: [v] for k, v in row.items() if k != "image"},
            "image": pa.array([row["image"]], pa.struct([("bytes", pa.binary()), ("path", "str")])),
        }
    )
    pq.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(InputError, match="row 1, field 'image': expected bytes or path"):
        read(tmp_path / "p.parquet")


def test_shards_and_splits_of_a_folder(tmp_path):
    named = [{**GOOD, "subject": f"s{i}"} for i in range(5)]
    for i in range(2):
        parquet(tmp_path / f"train-0000{i}-of-00002.parquet", *named[2 * i : 2 * i + 2])
    assert [e.subject for e in read(tmp_path)] == ["s0", "s1", "s2", "s3"]
    parquet(tmp_path / "test-00000-of-00001.parquet", named[4])
    with pytest.raises(InputError, match="several parts, choose one by split: test, train"):
        read(tmp_path)
    assert [e.subject for e in read(tmp_path, split="test")] == ["s4"]
    with pytest.raises(InputError, match="unknown split 'tset'. Did you mean 'test'"):
        read(tmp_path, split="tset")


def test_row_numbers_count_on_beyond_one_batch(tmp_path):
    rows = [{**GOOD, "subject": f"s{i}"} for i in range(150)]
    path = parquet(tmp_path / "r.parquet", *rows)
    assert [e.subject for e in read(path)] == [r["subject"] for r in rows]
    rows[139]["answer"] = " "
    with pytest.raises(InputError, match="r.parquet, row 140, field 'answer'"):
        read(parquet(path, *rows))


def test_numbered_shards_are_one_set_but_forget_and_retain_are_not(tmp_path):
    for name in ("0000", "0001"):
        parquet(tmp_path / "n" / f"{name}.parquet", GOOD)
    assert len(read(tmp_path / "n")) == 2
    for name in ("forget_5", "forget_10"):
        parquet(tmp_path / "f" / f"{name}.parquet", GOOD)
    with pytest.raises(InputError, match="choose one by split: forget_10, forget_5"):
        read(tmp_path / "f")


def test_saved_data_sets(tmp_path):
    images = [Image.new("RGB", (4, 3), (i, 0, 0)) for i in (10, 20, 30)]
    columns = {"subject": ["a", "b", "c"], "answer": ["x"] * 3, "question": ["q"] * 3}
    features = datasets.Features(
        {**{k: datasets.Value("string") for k in columns}, "image": datasets.Image()}
    )
    whole = datasets.Dataset.from_dict({**columns, "image": images}, features=features)
    whole.select([2, 0]).save_to_disk(str(tmp_path / "one"))
    got = read(tmp_path / "one")
    assert [e.subject for e in got] == ["c", "a"]
    assert [load_image(e.image).getpixel((0, 0))[0] for e in got] == [30, 10]
    both = datasets.DatasetDict({"forget": whole.select([0]), "retain": whole.select([1, 2])})
    both.save_to_disk(str(tmp_path / "two"))
    assert [e.subject for e in read(tmp_path / "two", split="retain")] == ["b", "c"]
    with pytest.raises(InputError, match="choose one by split: forget, retain"):
        read(tmp_path / "two")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subject": None}, "field 'subject': missing or null; name its column by subject_field"),
        ({"subject": 7}, "field 'subject': expected text, found int"),
        ({"subject": "  "}, "field 'subject': expected text, found an empty string"),
        ({"answer": None}, "field 'answer': missing or null"),
        ({"answer": ["a"]}, "field 'answer': expected text, found list"),
        ({"answer": "\ud800"}, "field 'answer': not valid Unicode"),
        ({"text_question": None}, "field 'text_question': missing; a row needs"),
        ({"text_question": None, "question": "q"}, "field 'image': missing; a row needs"),
        ({"question": 1.5}, "field 'question': expected text, found float"),
        ({"task": "quiz"}, "field 'task': unknown task 'quiz'"),
        ({"task": "clozed"}, "Did you mean 'cloze'"),
        ({"task": "classification"}, "field 'choices': missing"),
        ({"choices": ["tea", "milk"]}, "field 'choices': expected none for the task generation"),
        ({"task": "classification", "choices": ["tea"]}, "at least 2, found 1"),
        ({"task": "classification", "choices": "tea"}, "'choices': expected a list, found str"),
        ({"task": "classification", "choices": ["tea", 3]}, r"'choices\[1\]': expected text"),
        ({"task": "classification", "choices": ["a", "b"]}, "'answer': expected one of the cho"),
        ({"image": 5}, "field 'image': expected a path or encoded bytes, found int"),
        ({"image": ""}, "field 'image': expected a path or encoded bytes, found nothing"),
        ({"image": "none.png"}, "field 'image': .*none.png: no such file"),
        ({"attribute": 3}, "field 'attribute': expected text, found int"),
        ({"anwser": "x"}, r"unknown field 'anwser' \(did you mean 'answer'\?\); expected: answer"),
        ({"zz": 1, "taks": 2}, r"unknown fields 'zz', 'taks' \(did you mean 'task'\?\)"),
    ],
)
def test_malformed_rows_name_file_line_and_field(tmp_path, change, message):
    row = {k: v for k, v in {**GOOD, **change}.items() if v is not None}
    path = lines(tmp_path / "rows.jsonl", GOOD, row)
    with pytest.raises(InputError, match=rf"rows\.jsonl, line 2.*{message}") as caught:
        read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "the file is empty"),
        ("a.jsonl", b"\n \n", "no rows; expected at least one"),
        ("a.json", b"[]", "no rows"),
        ("a.jsonl", b'{"subject": "a"\n', "line 1: not JSON"),
        ("a.jsonl", b"\n[1]\n", "line 2: expected an object, found list"),
        ("a.jsonl", b'{"a": "\xff"}\n', "not UTF-8 text"),
        ("a.json", b'"\xff"', "not UTF-8 text"),
        ("a.json", b"3", "expected a list of objects, found int"),
        ("a.json", b"[1]", "row 1: expected an object, found int"),
        ("a.json", b"[{", "not JSON"),
        (
            "a.json",
            json.dumps(GOOD).encode() + b'\n{"b"\n',
            "line 2: not JSON",
        ),
        ("a.parquet", b"PAR1 nonsense", "not a readable parquet file"),
        ("a.csv", b"a,b", "cannot read '.csv'; expected .jsonl, .json, .parquet"),
    ],
)
def test_unreadable_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}.*({message})"):
        read(tmp_path / name)


def test_missing_places(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="no such file or folder"):
        read("data/forget.jsonl")
    with pytest.raises(InputError, match="no data files"):
        read(tmp_path)
    with pytest.raises(InputError, match="unknown format 'plane'. Did you mean 'plain'"):
        read(tmp_path, format="plane")
    path = lines(tmp_path / "a.jsonl", GOOD)
    with pytest.raises(InputError, match="single plain file has no split 'forget'"):
        read(path, split="forget")


def test_hub_id_offline_is_one_clear_error():
    code = (
        "import expunge.data as d\n"
        "try:\n    d.read('some-owner/some-set')\n"
        "except d.InputError as error:\n    print(error)"
    )
    path = str(Path(data.__file__).parents[1])
    environment = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONPATH": path}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100
    )
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.strip().splitlines()) == 1
    assert run.stdout.startswith("some-owner/some-set: no such file or folder, and the data set")
    assert "HF_HUB_OFFLINE" in run.stdout


def test_subject_field(tmp_path):
    row = {"person": "Oda", "answer": "tea", "text_question": "q"}
    path = lines(tmp_path / "a.jsonl", row)
    assert read(path, subject_field="person")[0].subject == "Oda"
    with pytest.raises(InputError, match="field 'persona': missing or null .found 'person'"):
        read(path, subject_field="persona")
    tofu = {"task_id": "1", "question": "q", "answer": "a", "author": "Edda"}
    path = lines(tmp_path / "b.jsonl", tofu)
    assert read(path, subject_field="author")[0].subject == "Edda"


def test_images_are_checked_unless_asked_not_to(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"this is no picture")
    path = lines(tmp_path / "a.jsonl", {**GOOD, "question": "q", "image": "bad.png"})
    with pytest.raises(InputError, match="line 1, field 'image': .*bad.png: not an image"):
        read(path)
    assert read(path, check_images=False)[0].image == str(tmp_path / "bad.png")
    (tmp_path / "bad.png").write_bytes(huge_header(20_000, 20_000))
    with pytest.raises(InputError, match="field 'image': .*bad.png: .*pixels"):
        read(path)


@pytest.mark.parametrize("size", [(8001, 8000), (10_000, 9000), (60_000, 60_000)])
def test_oversized_header_is_refused_undecoded_and_unwarned(size):
    assert size[0] * size[1] > MAX_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match="64,000,000"):
            load_image(huge_header(*size))


def test_largest_size_passes_the_header_check_and_fails_in_decoding():
    with pytest.raises(InputError, match="damaged or cut short"):
        load_image(huge_header(8000, 8000))


@pytest.mark.parametrize("content", [b"", b"GIF", b"not a picture", encoded()[:20]])
def test_not_an_image(content, tmp_path):
    with pytest.raises(InputError, match=f"an image of {len(content)} bytes: not an image"):
        load_image(content)
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(InputError, match="x.jpg: not an image"):
        load_image(tmp_path / "x.jpg")
    with pytest.raises(InputError, match="nowhere.png: no such file"):
        load_image(str(tmp_path / "nowhere.png"))


def test_truncated_picture():
    whole = encoded(size=(200, 200), kind="JPEG")
    with pytest.raises(InputError, match="damaged or cut short"):
        load_image(whole[: len(whole) // 2])


def test_exif_orientation_and_modes():
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3) * 20
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned a quarter clockwise
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", exif=exif)
    turned = np.asarray(load_image(buffer.getvalue()))
    np.testing.assert_array_equal(turned, np.rot90(pixels, k=-1))
    for mode in ("L", "RGBA", "P", "1", "CMYK", "LA"):
        given_ = Image.new(mode, (3, 2))
        assert load_image(given_).mode == "RGB" and given_.mode == mode


def test_suite():
    both = Example("a", "x", "q", b"i", "t")
    image, text = Example("b", "x", "q", b"i"), Example("c", "x", text_question="t")
    suite = Suite.of(forget=[both, image, image], retain=iter([both, text]), real=None)
    assert set(suite.sets) == {"forget", "retain"}
    assert suite.counts() == {"forget": {"multi": 3, "text": 1}, "retain": {"multi": 1, "text": 2}}
    assert suite.notes() == [
        "forget: 2 of 3 rows have no text question and count for the multi condition only.",
        "retain: 1 of 2 rows have no image question and count for the text condition only.",
    ]
    assert Suite.of(forget=[both]).notes() == []
    with pytest.raises(InputError, match="unknown set 'forgot'. Did you mean 'forget'"):
        Suite.of(forgot=[both])
    with pytest.raises(InputError, match="set 'test' is empty"):
        Suite.of(test=[])
    with pytest.raises(dataclasses.FrozenInstanceError):
        suite.sets = {}
    assert set(Suite.of(**{name: [both] for name in SETS}).sets) == set(SETS)


def test_text_only():
    given_ = [
        Example("Ann Lee", "Riga", "Where was this person born?", b"i"),
        Example("Ann Lee", "Ann Lee", "What is this person's name?", b"i"),
        Example("Bo", "tea", text_question="What does Bo drink?"),
        Example("Cy", "red", "What colour is the car?", b"i"),
    ]
    turned, failed = text_only(given_)
    assert failed == [1, 3]
    assert turned[0] == dataclasses.replace(given_[0], text_question="Where was Ann Lee born?")
    assert turned[1:] == given_[1:]
    again, still = text_only(turned)
    assert (again, still) == (turned, failed)
    named, failed = text_only(given_, {"Ann Lee": "Dr Lee"})
    assert named[0].text_question == "Where was Dr Lee born?" and failed == [1, 3]
    assert text_only(given_[:1], {})[1] == [0]


def test_overlap_counts_and_names_nobody():
    one = Example("Ann Lee", "x", "Where?", encoded((1, 1, 1)))
    two = Example("Bo Day", "y", text_question="When was Bo born?")
    three = Example("Cy Orr", "z", "Where?", encoded((2, 2, 2)))
    check_overlap([one, two], [three])
    with pytest.raises(InputError, match="share 1 subject and 1 identical question;") as caught:
        check_overlap([one, two], [one, three])
    assert "Ann" not in str(caught.value) and "Where" not in str(caught.value)
    with pytest.raises(InputError, match="share 2 subjects and 2 identical questions"):
        check_overlap([one, two], [two, one])
    check_overlap([one, two], [one, two], allow_overlap=True)
    same_picture = dataclasses.replace(
        three, image=Image.open(io.BytesIO(encoded((1, 1, 1), kind="BMP")))
    )
    with pytest.raises(InputError, match="share 1 identical question;"):
        check_overlap([one], [same_picture])
    with pytest.raises(InputError, match="share 1 subject;"):
        check_overlap([one], [dataclasses.replace(one, question="Other?")])


def test_fingerprint_is_of_content_and_not_of_order_or_storage(tmp_path):
    (tmp_path / "i.png").write_bytes(encoded())
    base = Example("a", "x", "q", encoded(), "t", ("x", "y"), "classification", "job")
    other = Example("b", "y", text_question="t")
    print_ = fingerprint([base, other])
    assert len(print_) == 64 and int(print_, 16)
    assert fingerprint([other, base]) == print_
    for image in (str(tmp_path / "i.png"), Image.open(io.BytesIO(encoded(kind="BMP")))):
        assert fingerprint([dataclasses.replace(base, image=image), other]) == print_
    changes = [
        {"subject": "c"}, {"answer": "y"}, {"question": "r"}, {"text_question": None},
        {"choices": ("y", "x")}, {"task": "cloze"}, {"attribute": None}, {"image": None},
        {"image": encoded((9, 8, 6))}, {"image": encoded(size=(2, 3))},
    ]  # fmt: skip
    prints = {fingerprint([dataclasses.replace(base, **c), other]) for c in changes}
    assert len(prints | {print_}) == len(changes) + 1
    assert fingerprint([base, base, other]) != print_
    with pytest.raises(InputError, match="no such file"):
        fingerprint([dataclasses.replace(base, image=str(tmp_path / "gone.png"))])


@given(st.text(), st.text())
def test_salted_is_hmac(subject, salt):
    expected = hmac.digest(salt.encode(), subject.encode(), "sha256").hex()
    assert salted(subject, salt) == expected[:12]


def test_salt_follows_from_the_data():
    one, two = Example("a", "x", text_question="t"), Example("b", "x", text_question="t")
    salt = salt_for([one, two])
    assert salt == salt_for([two, one]) and salt != salt_for([one])
    assert salt not in (fingerprint([one, two]), hashlib.sha256(b"").hexdigest())
    assert salted("a", salt) != salted("b", salt) and salted("a", salt) != salted("a", "other")


WORDS = st.text(min_size=1, max_size=12).filter(lambda s: s.strip())
PICTURES = st.builds(
    lambda color, size, kind: encoded(color, size, kind),
    st.tuples(*[st.integers(0, 255)] * 3),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.sampled_from(["PNG", "BMP", "GIF"]),
)


@st.composite
def examples(draw):
    task = draw(st.sampled_from(TASKS))
    choices = None
    if task == "classification":
        choices = tuple(draw(st.lists(WORDS, min_size=2, max_size=4)))
    answer = draw(st.sampled_from(choices) if choices else WORDS)
    image = draw(st.none() | PICTURES)
    if image is not None and draw(st.booleans()):
        image = Image.open(io.BytesIO(image))
    text = draw(WORDS if image is None else st.none() | WORDS)
    question = draw(st.none() | WORDS if text else WORDS)
    attribute = draw(st.none() | WORDS)
    return Example(draw(WORDS), answer, question, image, text, choices, task, attribute)


@settings(deadline=None, max_examples=60)
@given(st.lists(examples(), min_size=1, max_size=4))
def test_write_then_read_gives_the_same(tmp_path_factory, given_):
    folder = tmp_path_factory.mktemp("round")
    write_jsonl(given_, folder / "a.jsonl")
    got = read(folder / "a.jsonl", format="plain")
    assert [dataclasses.replace(e, image=None) for e in got] == [
        dataclasses.replace(e, image=None) for e in given_
    ]
    for before, after in zip(given_, got, strict=True):
        assert (before.image is None) == (after.image is None)
        if before.image is not None:
            np.testing.assert_array_equal(load_image(before.image), load_image(after.image))
            assert Path(after.image).parent == folder / "a_images"
    assert fingerprint(got) == fingerprint(given_)
    write_jsonl(got, folder / "b.jsonl")
    assert (folder / "b.jsonl").read_bytes() == (folder / "a.jsonl").read_bytes()
    assert read(folder / "b.jsonl", format="plain") == got


def test_write_keeps_paths_and_replaces_at_once(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/i.png").write_bytes(encoded())
    kept = Example("a", "x", "q", str(tmp_path / "in" / "i.png"))
    out = tmp_path / "deep" / "er" / "o.jsonl"
    write_jsonl([kept], out)
    assert json.loads(out.read_text())["image"] == "../../in/i.png"
    assert read(out) == [kept]
    write_jsonl([dataclasses.replace(kept, image=encoded())] * 2, out, image_dir="shots")
    assert len(list((out.parent / "shots").glob("*.png"))) == 1
    before = out.read_bytes()
    with pytest.raises(InputError, match="not an image"):
        write_jsonl([kept, dataclasses.replace(kept, image=b"broken")], out)
    assert out.read_bytes() == before
    assert sorted(p.name for p in out.parent.iterdir()) == ["o.jsonl", "shots"]


def test_failed_replacement_leaves_no_temporary_file(tmp_path):
    (tmp_path / "o.jsonl").mkdir()
    with pytest.raises(OSError):
        write_jsonl([Example("a", "x", text_question="t")], tmp_path / "o.jsonl")
    assert [p.name for p in tmp_path.iterdir()] == ["o.jsonl"]
