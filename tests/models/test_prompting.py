"""Conversations as every family's own processor encodes them: where is the answer?"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from families import AUDIO, FAMILIES, IMAGE
from PIL import Image
from processors import NOT_BUILT, RECIPES
from scipy.io import wavfile

from expunge.collect import Counting, collect_inputs, collect_statistics
from expunge.data import Example, read
from expunge.edit import applied, save_checkpoint
from expunge.encoding import Batch, batches, encodes_apart, placeholder_mask
from expunge.errors import InputError
from expunge.evaluate import generate, teacher_forced
from expunge.formats.signal import read_signal
from expunge.models import Prompter, load, load_processor
from expunge.planning import make_plan
from expunge.positions import position_mask
from expunge.sites import find_sites

TEMPLATE = "<user>{image}{question}<assistant>"
PICTURES = sorted(name for name, recipe in RECIPES.items() if recipe.pictures)
SOUNDS = sorted(name for name, recipe in RECIPES.items() if recipe.sounds)
RATE = 16000
SIZES = [(16, 16), (24, 16), (16, 24), (40, 12)]


def example(number, question, answer):
    picture = Image.new("RGB", SIZES[number % 4], (40 * number % 255, 90, 200))
    return Example(
        f"s{number}", answer, question, picture, f"{question} in words, said of him", None
    )


EXAMPLES = [
    example(0, "what is the town?", "Bath"),
    example(1, "who?", "the end"),  # ends as the template does
    example(2, "where is the inn", "inn"),  # stands in the question too
    example(3, "say user, say assistant", "s"),  # a piece of the role's name
    example(4, "when", "in the inn, on the hat of the baker."),
]


def test_every_family_has_a_processor_or_a_reason_why_not():
    assert set(RECIPES) | set(NOT_BUILT) == set(FAMILIES)
    assert not set(RECIPES) & set(NOT_BUILT)
    assert all(NOT_BUILT.values())


@pytest.fixture(scope="module", params=sorted(RECIPES))
def case(request):
    """Name, model, prompter."""
    return made(request.param)


@pytest.fixture(scope="module")
def rows(case, tmp_path_factory):
    """The examples with what the family takes beside the text."""
    if case[0] not in SOUNDS:
        return EXAMPLES
    folder = tmp_path_factory.mktemp("sounds")
    heard = [sound(folder / f"{i}.wav", i, seconds=0.4) for i in range(len(EXAMPLES))]
    return [replace(e, image=path) for e, path in zip(EXAMPLES, heard, strict=True)]


def sound(path, seed, rate=RATE, seconds=0.3):
    """A file of noise, a second one longer by an eighth of a second and so on."""
    noise = np.random.default_rng(seed).normal(size=int(rate * (seconds + seed / 8)))
    wavfile.write(path, rate, (3000 * noise).clip(-32768, 32767).astype(np.int16))
    return str(path)


def made(name, **options):
    recipe = RECIPES[name]
    patch = pytest.MonkeyPatch()
    lacking = importlib.util.find_spec("torchvision") is None
    pixtral = "transformers.models.pixtral.image_processing_"
    if lacking and importlib.util.find_spec(f"{pixtral}pil_pixtral") is not None:
        pil = importlib.import_module(f"{pixtral}pil_pixtral")
        patch.setitem(sys.modules, f"{pixtral}pixtral", pil)  # it has the same function of sizes
    if name == "smolvlm":
        try:
            module = importlib.import_module("transformers.models.smolvlm.processing_smolvlm")
        except ModuleNotFoundError:
            pytest.skip("SmolVLM's processor needs torchvision in this transformers")
        patch.setattr(module, "num2words", str)  # for videos alone
    with patch.context():
        processor = recipe.build()
    patch.undo()
    template = None if recipe.image is not None else TEMPLATE
    if recipe.ahead:
        template = TEMPLATE.replace("{image}", "")
    options = {"template": template} | options
    return name, recipe.family(name).build(), Prompter(processor, **options)


def conditions(name):
    return ("multi", "text") if name in PICTURES + SOUNDS else ("text",)


def decoded(prompter, ids):
    return prompter.tokenizer.decode(ids).strip()


@pytest.mark.parametrize("size", [1, 2, 5])
def test_tokens_at_the_answer_are_the_answer(case, rows, size):
    name, model, prompter = case
    for condition in conditions(name):
        seen = []
        for batch in batches(model, prompter, rows, condition, batch_size=size):
            for place, row in enumerate(batch.rows):
                said = batch.tokens[place][batch.answer[place]]
                assert decoded(prompter, said) == rows[row].answer
                positions = batch.answer[place].nonzero()[:, 0]
                assert len(positions) == positions[-1] - positions[0] + 1
                closing = int(batch.closing[place])
                assert closing == int(positions[-1]) + 1
                assert batch.tokens[place, closing] == prompter.tokenizer.eos_token_id
                seen.append(row)
        assert sorted(seen) == list(range(5))


def test_prompts_are_padded_on_the_left_and_hold_no_answer(case, rows):
    name, model, prompter = case
    assert prompter.tokenizer.padding_side == "right"
    for condition in conditions(name):
        for batch in batches(model, prompter, rows, condition, batch_size=5, prompt_only=True):
            assert prompter.tokenizer.padding_side == "right"
            assert not batch.answer.any()
            if not encodes_apart(model):
                assert batch.mask[:, -1].all()
            for place, row in enumerate(batch.rows):
                words = decoded(prompter, batch.inputs["input_ids"][place][batch.mask[place]])
                asked = rows[row].prompt(condition)
                assert asked in words
                assert "<assistant>" in words.partition(asked)[2]
                assert "<assistant>" == words[-11:] or encodes_apart(model) or name == "paligemma"


def test_batches_run_and_statistics_do_not_depend_on_their_size(case, rows):
    name, model, prompter = case
    sites = [s for s in find_sites(model) if not s.dead]
    for condition in conditions(name):
        if condition == "text" and not FAMILIES[name].text:
            continue
        awake = [s for s in sites if s.key not in RECIPES[name].asleep]
        reached = [s for s in awake if condition == "multi" or s.tower == "language"]
        for unit in ("token", "example"):
            for positions in ("all", "answer"):
                one, many = (
                    collect_statistics(
                        model,
                        prompter,
                        rows,
                        condition,
                        sites=reached,
                        counting=Counting(positions, unit),
                        batch_size=size,
                    ).neurons
                    for size in (1, 5)
                )
                for site in reached:
                    assert one[site.key].count == many[site.key].count, site.key
                    torch.testing.assert_close(
                        one[site.key].absolute, many[site.key].absolute, rtol=1e-4, atol=1e-3
                    )
                    if unit == "example" and site.kind != "expert":
                        assert one[site.key].count in (5, 0)


def test_no_image_leaves_out_exactly_the_placeholders(case, rows):
    name, model, prompter = case
    if name not in PICTURES + SOUNDS:
        batch = next(batches(model, prompter, rows, "text", batch_size=5))
        kept = position_mask(model, batch, "no_image")
        alone = position_mask(model, batch, "image")
        assert (
            torch.equal(kept | alone, position_mask(model, batch, "all"))
            and not (kept & alone).any()
        )
        assert torch.equal(kept, position_mask(model, batch, "all"))
        return
    for batch in batches(model, prompter, rows, "multi", batch_size=5):
        ids, apart = batch.inputs["input_ids"], encodes_apart(model)
        held = ids == (AUDIO if name in SOUNDS else IMAGE)
        if name == "kosmos-2":
            held = batch.inputs["image_embeds_position_mask"].bool()
            assert (held.sum(1) == 64).all()
        assert held.any(1).all()
        read = Batch.of({k: v for k, v in batch.inputs.items() if "decoder" not in k})
        assert torch.equal(placeholder_mask(model, read), held)
        kept = position_mask(model, batch, "no_image")
        assert torch.equal(kept, batch.decoder_mask if apart else batch.mask & ~held)


def test_answers_are_forced_and_generated(case, rows):
    name, model, prompter = case
    condition = conditions(name)[0]
    forced = teacher_forced(model, prompter, rows, condition, batch_size=5)
    alone = teacher_forced(model, prompter, rows, condition, batch_size=1)
    for one, two in zip(forced, alone, strict=True):
        torch.testing.assert_close(one.logp, two.logp, rtol=1e-3, atol=1e-3)
    said = generate(model, prompter, rows, condition, max_new_tokens=5, batch_size=5)
    assert said == generate(model, prompter, rows, condition, max_new_tokens=5, batch_size=1)
    assert not any("<user>" in words or rows[0].question in words for words in said)


# Pictures


@pytest.mark.skipif("aria" not in RECIPES, reason="transformers 5.0 keeps its experts otherwise")
def test_only_patches_that_hold_the_picture_count():
    """Aria pads a picture to a square of 7 x 7 patches, and reads nothing where it padded."""
    _, model, prompter = made("aria")
    sites = [s for s in find_sites(model) if s.tower in ("vision", "connector")]
    found = collect_statistics(model, prompter, EXAMPLES, "multi", sites=sites).neurons
    assert found["vision.0"].count == 7 * (7 + 5 + 5 + 3 + 7)
    assert found["connector.0"].count == 5 * 4


def test_a_question_that_the_connector_reads_too_is_read_without_its_answer():
    _, model, prompter = made("instructblip-llama")
    for alone in (False, True):
        (batch,) = batches(model, prompter, EXAMPLES, "multi", batch_size=5, prompt_only=alone)
        read, mask = (batch.inputs[f"qformer_{n}"] for n in ("input_ids", "attention_mask"))
        for place, row in enumerate(batch.rows):
            words = prompter.tokenizer.decode(read[place][mask[place].bool()])
            assert words == prompter.render(EXAMPLES[row], "multi")
        assert (mask[:, 1:] <= mask[:, :-1]).all()  # its positions are counted from the left


def test_questions_that_the_connector_reads_too_share_no_beginning():
    _, model, prompter = made("instructblip-llama")
    asked = [replace(each, image=EXAMPLES[0].image) for each in EXAMPLES]
    together = teacher_forced(model, prompter, asked, "multi", batch_size=5)
    for one, each in zip(together, asked, strict=True):
        (alone,) = teacher_forced(model, prompter, [each], "multi")
        torch.testing.assert_close(one.logp, alone.logp, rtol=1e-4, atol=1e-4)


# Templates


def test_a_prompt_template_takes_the_place_of_the_chat_template():
    _, model, prompter = made("llava", template="Q: {image} {question} A: ")
    first = prompter.render(EXAMPLES[0], "multi", "Bath")
    assert first == "Q: <image> what is the town? A: Bath<end>"
    assert prompter.render(EXAMPLES[0], "text") == "Q:  what is the town? in words, said of him A: "
    batch = next(batches(model, prompter, EXAMPLES, "multi", batch_size=5))
    for place, row in enumerate(batch.rows):
        said = decoded(prompter, batch.tokens[place][batch.answer[place]])
        assert said == EXAMPLES[row].answer


def test_a_prompt_template_gets_the_tokens_that_the_tokenizer_puts_in_front():
    from tokenizers.processors import TemplateProcessing

    _, model, prompter = made("llama", template="{question} ")
    prompter.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    batch = next(batches(model, prompter, EXAMPLES, "text", batch_size=5))
    assert (batch.tokens[:, 0] == 1).all() and not (batch.tokens[:, 1:] == 1).any()
    prompter.template = "<s>{question} "
    batch = next(batches(model, prompter, EXAMPLES, "text", batch_size=5))
    assert (batch.tokens[:, 0] == 1).all() and not (batch.tokens[:, 1:] == 1).any()


def test_a_system_turn_comes_first():
    _, model, prompter = made("llava", system="be brief")
    words = prompter.render(EXAMPLES[0], "multi", "Bath")
    assert words.startswith("<system>be brief<user><image>what is")
    batch = next(batches(model, prompter, EXAMPLES, "multi", batch_size=5))
    assert batch.answer.any(1).all()


def test_wrong_templates_are_refused():
    processor = RECIPES["blip2-opt"].build()
    with pytest.raises(InputError, match="no chat template.*--prompt-template"):
        Prompter(processor)
    with pytest.raises(InputError, match="lacks {question}"):
        Prompter(processor, template="{image}")
    with pytest.raises(InputError, match="cannot be filled in"):
        Prompter(processor, template="{picture}{question}")


def test_answers_that_the_template_changes_are_refused():
    _, model, prompter = made("llama")
    prompter.tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"
    )
    with pytest.raises(InputError, match="the chat template changes it"):
        next(batches(model, prompter, EXAMPLES, "text"))
    empty = Example("s", " ", text_question="what")
    with pytest.raises(InputError, match="an answer is empty"):
        next(batches(model, made("llama")[2], [empty], "text"))


def test_pictures_need_a_processor_of_pictures():
    _, model, prompter = made("llama")
    with pytest.raises(InputError, match="tokenizer but no image processor"):
        next(batches(model, prompter, EXAMPLES, "multi"))


# Sounds


def test_only_frames_that_were_recorded_count(tmp_path):
    """Sounds are padded to one length; of every two frames the encoder makes one."""
    _, model, prompter = made("qwen2-audio")
    given = [replace(EXAMPLES[i], image=sound(tmp_path / f"{i}.wav", i)) for i in range(3)]
    sites = find_sites(model)
    found = collect_statistics(model, prompter, given, "multi", sites=sites).neurons["audio.0"]
    frames = [int(RATE * (0.3 + i / 8)) / 1000 for i in range(3)]
    assert found.count == sum(math.ceil(math.ceil(f) / 2) for f in frames)


def test_a_plan_is_made_over_sound_and_text(tmp_path):
    """From files: a checkpoint, rows that name .wav files; then the model saved and read again."""
    _, model, prompter = made("qwen2-audio")
    save_checkpoint(model, prompter.processor, tmp_path / "model")
    for name, people in (("forget", range(2)), ("retain", range(2, 6))):
        lines = []
        for i in people:
            sound(tmp_path / f"{i}.wav", i)
            asked = {"question": "who?", "text_question": f"who is {i}?", "answer": "hat"}
            lines.append(json.dumps({"subject": f"s{i}", "image": f"{i}.wav", **asked}))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    forget, retain = (read(tmp_path / f"{name}.jsonl") for name in ("forget", "retain"))
    model, processor = load(tmp_path / "model")
    plan = make_plan(
        model, processor, forget, retain, method="manu", budget=0.2, towers=("audio", "language")
    )
    assert sum(len(i) for k, i in plan.neurons().items() if k.startswith("audio")) > 0
    assert sum(len(i) for k, i in plan.neurons().items() if k.startswith("language")) > 0
    with applied(model, plan):
        save_checkpoint(model, processor, tmp_path / "edited")
        said = [f.logp for f in teacher_forced(model, Prompter(processor), forget, "multi")]
    again, processor = load(tmp_path / "edited")
    heard = [f.logp for f in teacher_forced(again, Prompter(processor), forget, "multi")]
    assert all(torch.equal(a, b) for a, b in zip(said, heard, strict=True))


def test_a_sound_is_read_as_one_channel_within_one(tmp_path):
    left = np.array([0, 16384, -32768, 100], dtype=np.int16)
    wavfile.write(tmp_path / "two.wav", 8000, np.stack([left, 0 * left], 1))
    found = read_signal(str(tmp_path / "two.wav"))
    assert found.rate == 8000 and found.samples.dtype == np.float32
    np.testing.assert_allclose(found.samples, left / 65536)
    for kind, middle in ((np.uint8, 128), (np.int32, 0), (np.float32, 0)):
        whole = {np.uint8: 128, np.int32: 2**31, np.float32: 1}[kind]
        given = (np.array([0.5, -0.25]) * whole + middle).astype(kind)
        wavfile.write(tmp_path / "one.wav", 8000, given)
        np.testing.assert_allclose(read_signal(str(tmp_path / "one.wav")).samples, [0.5, -0.25])


def test_wrong_sounds_are_refused(tmp_path):
    slow = replace(EXAMPLES[0], image=sound(tmp_path / "slow.wav", 0, rate=8000))
    for name in SOUNDS:
        _, model, prompter = made(name)
        with pytest.raises(InputError, match="8000 samples a second.*expects 16000; resample"):
            next(batches(model, prompter, [slow], "multi"))
    _, model, prompter = made("llava")
    with pytest.raises(InputError, match="have sounds.*LlavaProcessor takes images"):
        next(batches(model, prompter, [slow], "multi"))
    (tmp_path / "no.wav").write_bytes(b"RIFF and no more")
    with pytest.raises(InputError, match=r"no\.wav: not a sound that can be read"):
        read_signal(str(tmp_path / "no.wav"))


# Ready inputs


def test_ready_inputs_are_checked():
    ids = torch.tensor([[5, 6, 7]])
    batch = Batch.of({"input_ids": ids})
    assert batch.mask.all() and not batch.answer.any() and batch.rows == [0]
    with pytest.raises(InputError, match="expected input_ids"):
        Batch.of({"pixel_values": torch.zeros(1, 3, 8, 8)})
    with pytest.raises(InputError, match=r"attention_mask has shape \(1, 2\), expected \(1, 3\)"):
        Batch.of({"input_ids": ids, "attention_mask": torch.ones(1, 2)})
    with pytest.raises(InputError, match=r"answer has shape"):
        Batch.of({"input_ids": ids}, answer=torch.ones(1, 2).bool())


def test_answer_positions_of_ready_inputs_count_what_predicts_them():
    model = FAMILIES["llama"].build()
    inputs = FAMILIES["llama"].inputs(model, "text")
    answer = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    answer[0, 4:6], answer[1, 3] = True, True
    counting = Counting("answer")
    feed = [Batch.of(inputs, answer=answer)]
    found = collect_inputs(model, feed, condition="text", counting=counting).neurons
    seen = []
    site = find_sites(model)[1]
    handle = model.get_submodule(site.path).register_forward_pre_hook(
        lambda _, given: seen.append(given[0].double())
    )
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    rows = torch.stack([seen[0][0, 3], seen[0][0, 4], seen[0][1, 2]])
    assert found[site.key].count == 3
    torch.testing.assert_close(found[site.key].total, rows.sum(0))


def test_a_site_that_must_run_and_does_not_is_named():
    model = FAMILIES["llava"].build()
    text = FAMILIES["llava"].inputs(model, "text")
    with pytest.raises(InputError, match=r"vision\.0 .*never ran under multi.*--towers"):
        collect_inputs(model, [text], condition="multi")
    found = collect_inputs(model, [text], condition="text").neurons
    assert found["vision.0"].count == 0 and found["language.0"].count > 0


def test_layers_across_to_pictures_may_sleep_in_text():
    model = FAMILIES["mllama"].build()
    text = FAMILIES["mllama"].inputs(model, "text")
    found = collect_inputs(model, [text], condition="text").neurons
    assert found["language.1"].count == 0
    assert (
        found["language.0"].count == found["language.2"].count == int(text["attention_mask"].sum())
    )


def test_a_processor_that_lacks_a_library_says_so(tmp_path):
    """Not taken for a text-only model, whose tokenizer would do."""
    if importlib.util.find_spec("torchvision") is not None:
        pytest.skip("torchvision is installed, so nothing is lacking")
    processor = RECIPES["qwen2-vl"].build()
    processor.tokenizer.save_pretrained(tmp_path)
    processor.image_processor.save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text('{"processor_class": "Qwen2VLProcessor"}')
    with pytest.raises(InputError, match=r"processor of .* cannot be built.*torchvision"):
        load_processor(tmp_path)
