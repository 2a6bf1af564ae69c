"""Wrong input: one clear line, exit code 2, and nothing left behind."""

from __future__ import annotations

import json
import shutil
import struct
import zlib

import pytest
from commands import expunge, tree
from safetensors.torch import load_file, save_file

PERSON = {"subject": "A", "answer": "x", "question": "q?", "text_question": "t?"}


def put(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def huge_png() -> bytes:
    """A few bytes that promise a picture of 20000 x 20000 pixels, 1.2 GB decoded."""

    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels)


def swap(options, name, value):
    """The options with another value for one of them."""
    changed = list(options)
    changed[changed.index(name) + 1] = str(value)
    return changed


def refused(said, *words):
    """Exit code 2, nothing on stdout, and one line on stderr that holds every word."""
    assert said.code == 2, said
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    for word in words:
        assert str(word) in said.err


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run_refused(task, here):
    """Run with some options changed; must be refused and leave the folder as it was."""

    def check(options, *words, out="run"):
        before = tree(here)
        refused(expunge("run", *options, "--out", out), *words)
        assert tree(here) == before

    return check


def test_missing_question_file(run_refused, task):
    run_refused(swap(task.brief, "--forget", "nowhere.jsonl"), "nowhere.jsonl")


def test_empty_forget_set(run_refused, task, here):
    run_refused(
        swap(task.brief, "--forget", put(here / "none.jsonl")), "none.jsonl", "the file is empty"
    )


def test_row_without_answer(run_refused, task, here):
    row = {k: v for k, v in PERSON.items() if k != "answer"}
    file = put(here / "bad.jsonl", PERSON, row)
    run_refused(swap(task.brief, "--forget", file), file, "line 2", "answer")


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"no picture", "image"), (huge_png(), "more than 64,000,000 pixels"), (b"", "image")],
    ids=["text", "huge", "empty"],
)
def test_bad_image(run_refused, task, here, content, words):
    (here / "bad.png").write_bytes(content)
    file = put(here / "bad.jsonl", {**PERSON, "image": "bad.png"})
    run_refused(swap(task.brief, "--forget", file), file, "line 1", words)


def test_image_cut_short(run_refused, task, here):
    picture = next((task.home / "images" / "forget").iterdir()).read_bytes()
    (here / "cut.png").write_bytes(picture[: len(picture) // 2])
    file = put(here / "bad.jsonl", {**PERSON, "image": "cut.png"})
    run_refused(swap(task.brief, "--forget", file), "cut.png", "cut short")


def test_overlap_is_said_and_can_be_allowed(run_refused, task, here):
    both = swap(task.brief, "--retain", task.file("forget"))
    run_refused(both, "share", "subject", "allow")
    said = expunge("plan", *both, "--allow-overlap", "--out", "allowed", "--json")
    assert said.code == 0, said.err


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--method", "manuu", ("unknown method", "'manu'")),
        ("--format", "clera", ("unknown format", "'clear'")),
        ("--towers", "visoin", ("unknown tower", "'vision'")),
        ("--towers", "audio", ("no live site in audio", "connector, language, vision")),
        ("--tower", "eeg", ("--tower is 'eeg'", "name=path.to.module")),
        ("--tower", "=x", ("--tower is '=x'",)),
        ("--tower", "eeg=no.such.module", ("no.such.module",)),
        ("--budget", "1.5", ("budget is 1.5", "between 0 and 1")),
        ("--budget", "-0.1", ("budget is -0.1",)),
        ("--budget", "nan", ("budget is nan",)),
        ("--budget", "much", ("--budget", "valid number")),
        ("--keep", "0", ("keep is 0.0",)),
        ("--keep", "1.01", ("keep is 1.01",)),
        ("--keep", "nan", ("keep is nan",)),
        ("--strength", "-1", ("strength is -1.0",)),
        ("--strength", "nan", ("strength is nan",)),
        ("--seed", "-1", ("seed is -1",)),
        ("--batch-size", "0", ("batch_size is 0",)),
        ("--prompt-template", "Q: {query}", ("prompt template", "{question}")),
        ("--prompt-template", "no question", ("lacks {question}",)),
        ("--gold", "./nowhere", ("nowhere",)),
        ("--nonsense", "1", ("--nonsense",)),
    ],
)
def test_bad_option(run_refused, task, option, value, words):
    run_refused([*task.brief, option, value], *words)


def test_missing_options(run_refused, task):
    run_refused(["--retain", task.file("retain")], "--model is missing")
    run_refused(["--model", task.vanilla, *task.options("retain")], "--forget is missing")


def test_model_folder_missing(run_refused, task):
    run_refused(swap(task.brief, "--model", "./nowhere"), "no model folder", "nowhere")
    run_refused(swap(task.brief, "--model", "no/where"), "no/where", "is no folder here")


def test_model_folder_without_weights(run_refused, task, here):
    (here / "bare").mkdir()
    shutil.copy(task.vanilla / "config.json", here / "bare")
    run_refused(swap(task.brief, "--model", "bare"), "no weights")
    (here / "bare" / "config.json").unlink()
    run_refused(swap(task.brief, "--model", "bare"), "no config.json")


def test_damaged_weights(run_refused, task, here):
    shutil.copytree(task.vanilla, here / "damaged")
    weights = here / "damaged" / "model.safetensors"
    tensors = load_file(task.vanilla / "model.safetensors")
    weights.write_bytes(weights.read_bytes()[:100_000])
    run_refused(swap(task.brief, "--model", "damaged"), "damaged cannot be loaded")
    lost = "model.language_model.layers.1.mlp.down_proj.weight"
    kept = {name: tensor for name, tensor in tensors.items() if "layers.1.mlp.down" not in name}
    assert len(kept) == len(tensors) - 1
    save_file(kept, weights, {"format": "pt"})
    run_refused(swap(task.brief, "--model", "damaged"), "lacks 1 of its weights", lost)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bugdet: 0.1", ("unknown configuration key 'bugdet'", "'budget'")),
        ("budget: [1]", ("budget is [1], expected a number",)),
        ("- 1", ("holds list",)),
        ("a: [", ("cannot be read as YAML",)),
        ("positions: every", ("unknown positions 'every'",)),
        ("unit: tokn", ("unknown unit 'tokn'", "'token'")),
        ("importances: {ab: 1}", ("unknown importance 'ab'", "'abs'")),
        ("device: nonsense", ("nonsense",)),
    ],
)
def test_bad_configuration(run_refused, task, here, text, words):
    (here / "run.yaml").write_text(text)
    run_refused([*task.brief, "--config", "run.yaml"], *words)


def test_missing_configuration(run_refused, task):
    run_refused([*task.brief, "--config", "none.yaml"], "none.yaml")


def test_output_cannot_be_written(run_refused, task, here):
    (here / "file").write_text("mine")
    run_refused(task.brief, "file/run", out="file/run")
    run_refused(task.brief, "file", out="file")
    plan = here / "plan.safetensors"
    for said in (
        expunge("data", "export-fiction", "file/world"),
        expunge("data", "export-fiction", "file"),
        expunge("evaluate", "--model", task.vanilla, *task.options("forget"), "--out", "file/x"),
    ):
        refused(said, "file")
    assert not plan.exists()
    assert (here / "file").read_text() == "mine"


def test_output_folder_with_other_files(run_refused, task, here):
    (here / "mine").mkdir()
    (here / "mine" / "letter.txt").write_text("mine")
    run_refused(task.brief, "holds no expunge run", out="mine")


def test_row_that_the_model_cannot_be_asked(run_refused, task, here, processor):
    """A text-only model, and rows with pictures."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = processor.tokenizer
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        LlamaForCausalLM(config).save_pretrained(here / "llama")
    tokenizer.chat_template = processor.chat_template
    try:
        tokenizer.save_pretrained(here / "llama")
    finally:
        tokenizer.chat_template = None
    options = swap(task.brief, "--model", "llama")
    run_refused(options, "no image processor")
    files = {}
    for name in ("forget", "retain"):
        rows = [{"subject": e.subject, "answer": e.answer, "text_question": e.text_question}
                for e in task.sets[name]]  # fmt: skip
        files[name] = put(here / f"{name}.jsonl", *rows)
    for name, file in files.items():
        options = swap(options, f"--{name}", file)
    said = expunge("evaluate", "--model", "llama", "--forget", files["forget"], "--json")
    assert said.code == 0, said.err
    assert list(said.json["models"]["vanilla"]["forget"]) == ["text"]
    assert expunge("plan", *options, "--out", "texts").code == 0


def test_failure_in_a_stage_takes_the_new_folder_away(task, here):
    """Activations that are no numbers are found out only while planning."""
    import torch

    from expunge.edit import save_checkpoint
    from expunge.models import load

    model, processor = load(task.vanilla)
    with torch.no_grad():
        model.model.language_model.layers[2].mlp.up_proj.weight.fill_(float("nan"))
    save_checkpoint(model, processor, here / "broken")
    before = tree(here)
    for command in ("plan", "run"):
        said = expunge(command, *swap(task.brief, "--model", "broken"), "--out", "run")
        refused(said, "scores of site language.2 are not numbers")
        assert tree(here) == before


@pytest.fixture
def plan(finished):
    return finished[0] / "plan.safetensors"


def test_plan_for_other_weights(plan, task, here):
    said = expunge("apply", plan, "--model", task.gold, "--out", "edited")
    refused(said, "other weights")
    said = expunge("evaluate", "--model", task.gold, "--plan", plan, *task.options("forget"))
    refused(said, "other weights")
    assert tree(here) == {}


def corrupt(kind, source, target):
    """Damage a plan file in one of several ways."""
    content = source.read_bytes()
    tensors = load_file(source)
    if kind == "cut":
        target.write_bytes(content[: len(content) // 2])
    elif kind == "text":
        target.write_text("not a plan")
    elif kind == "empty":
        target.write_bytes(b"")
    elif kind == "no header":
        save_file(tensors, target)
    elif kind == "no json":
        save_file(tensors, target, {"expunge": "{"})
    elif kind == "no version":
        save_file(tensors, target, {"expunge": "{}"})
    elif kind == "newer":
        save_file(tensors, target, {"expunge": '{"version": 99, "sites": {}}'})


@pytest.mark.parametrize("kind", ["cut", "text", "empty", "no header", "no json", "no version",
                                  "newer", "missing"])  # fmt: skip
def test_corrupted_plan(plan, task, here, kind):
    corrupt(kind, plan, here / "bad.safetensors")
    before = tree(here)
    said = expunge("apply", "bad.safetensors", "--model", task.vanilla, "--out", "edited")
    refused(said, "bad.safetensors")
    assert tree(here) == before


def test_apply_and_undo_refuse_a_folder_in_use(plan, task, finished, here):
    (here / "mine").mkdir()
    (here / "mine" / "letter.txt").write_text("mine")
    (here / "file").write_text("mine")
    before = tree(here)
    for out in ("mine", "file", "file/below"):
        refused(expunge("apply", plan, "--model", task.vanilla, "--out", out), out)
        refused(expunge("undo", finished[0] / "model", "--model", task.vanilla, "--out", out), out)
    assert tree(here) == before


def test_undo_refuses_another_base(task, finished, here):
    said = expunge("undo", finished[0] / "model", "--model", task.gold, "--out", "restored")
    refused(said, "was not made from")
    assert tree(here) == {}


def test_evaluate_needs_something_to_do(task, plan, here):
    refused(expunge("evaluate", "--model", task.vanilla), "--forget")
    both = ["--plan", plan, "--unlearned", task.gold]
    refused(expunge("evaluate", "--model", task.vanilla, *task.options("forget"), *both), "--plan")
    refused(expunge("evaluate", "--model", "./nowhere", *task.options("forget")), "nowhere")
    gold = ["--gold", "./nowhere"]
    refused(expunge("evaluate", "--model", task.vanilla, *task.options("forget"), *gold), "nowhere")


def test_report_without_a_run(here):
    refused(expunge("report", here), "results.json")
    refused(expunge("report", here / "none"), "no run folder")
    assert tree(here) == {}


def test_inspect_without_a_model(here):
    refused(expunge("inspect", "./nowhere"), "nowhere")
    (here / "bare").mkdir()
    refused(expunge("inspect", "bare"), "bare")


def test_unknown_list(here):
    refused(expunge("list", "metric"), "unknown list 'metric'", "'metrics'")


@pytest.mark.parametrize("value", ["0", "51", "nan", "-5"])
def test_fiction_share_out_of_range(here, value):
    refused(expunge("data", "export-fiction", "world", "--percent", value), "forget share")
    assert tree(here) == {}


def test_unknown_command(here):
    refused(expunge("runn"), "runn")
    refused(expunge("run"), "--out")
