"""Conversations as every family's own processor encodes them: where is the answer?"""

from __future__ import annotations

import importlib
import importlib.util
import sys

import pytest
import torch
from families import FAMILIES, IMAGE
from PIL import Image
from processors import RECIPES

from expunge.collect import Counting, collect_inputs, collect_statistics, position_mask
from expunge.data import Example
from expunge.errors import InputError
from expunge.evaluate import generate, teacher_forced
from expunge.models import (
    Batch,
    Prompter,
    batches,
    encodes_apart,
    load_processor,
    placeholder_mask,
)
from expunge.sites import find_sites

TEMPLATE = "<user>{image}{question}<assistant>"
PICTURES = sorted(name for name, recipe in RECIPES.items() if recipe.pictures)
TEXTS = sorted(set(RECIPES) - set(PICTURES))
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


@pytest.fixture(scope="module", params=sorted(RECIPES))
def case(request):
    """Name, model, prompter."""
    return made(request.param)


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
    if name == "blip2-opt":  # its processor puts the placeholders in front by itself
        template = template.replace("{image}", "")
    options = {"template": template} | options
    return name, FAMILIES[name].build(), Prompter(processor, **options)


def conditions(name):
    return ("multi", "text") if name in PICTURES else ("text",)


def decoded(prompter, ids):
    return prompter.tokenizer.decode(ids).strip()


@pytest.mark.parametrize("size", [1, 2, 5])
def test_tokens_at_the_answer_are_the_answer(case, size):
    name, model, prompter = case
    for condition in conditions(name):
        rows = []
        for batch in batches(model, prompter, EXAMPLES, condition, batch_size=size):
            for place, row in enumerate(batch.rows):
                said = batch.tokens[place][batch.answer[place]]
                assert decoded(prompter, said) == EXAMPLES[row].answer
                positions = batch.answer[place].nonzero()[:, 0]
                assert len(positions) == positions[-1] - positions[0] + 1
                closing = int(batch.closing[place])
                assert closing == int(positions[-1]) + 1
                assert batch.tokens[place, closing] == prompter.tokenizer.eos_token_id
                rows.append(row)
        assert sorted(rows) == list(range(5))


def test_prompts_are_padded_on_the_left_and_hold_no_answer(case):
    name, model, prompter = case
    for condition in conditions(name):
        for batch in batches(model, prompter, EXAMPLES, condition, batch_size=5, prompt_only=True):
            assert not batch.answer.any()
            if not encodes_apart(model):
                assert batch.mask[:, -1].all()
            for place, row in enumerate(batch.rows):
                words = decoded(prompter, batch.inputs["input_ids"][place][batch.mask[place]])
                asked = EXAMPLES[row].prompt(condition)
                assert asked in words
                assert "<assistant>" in words.partition(asked)[2]
                assert "<assistant>" == words[-11:] or encodes_apart(model) or name == "paligemma"


def test_batches_run_and_statistics_do_not_depend_on_their_size(case):
    name, model, prompter = case
    sites = [s for s in find_sites(model) if not s.dead]
    for condition in conditions(name):
        if condition == "text" and not FAMILIES[name].text:
            continue
        reached = [s for s in sites if condition == "multi" or s.tower == "language"]
        for unit in ("token", "example"):
            for positions in ("all", "answer"):
                one, many = (
                    collect_statistics(
                        model,
                        prompter,
                        EXAMPLES,
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


def test_no_image_leaves_out_exactly_the_placeholders(case):
    name, model, prompter = case
    if name not in PICTURES:
        batch = next(batches(model, prompter, EXAMPLES, "text", batch_size=5))
        kept = position_mask(model, batch, "no_image")
        alone = position_mask(model, batch, "image")
        assert (
            torch.equal(kept | alone, position_mask(model, batch, "all"))
            and not (kept & alone).any()
        )
        assert torch.equal(kept, position_mask(model, batch, "all"))
        return
    for batch in batches(model, prompter, EXAMPLES, "multi", batch_size=5):
        ids = batch.inputs["input_ids"]
        assert (ids == IMAGE).any(1).all()
        assert torch.equal(placeholder_mask(model, ids), ids == IMAGE)
        kept = position_mask(model, batch, "no_image")
        assert torch.equal(kept, batch.mask & (ids != IMAGE))


def test_answers_are_forced_and_generated(case):
    name, model, prompter = case
    condition = conditions(name)[0]
    forced = teacher_forced(model, prompter, EXAMPLES, condition, batch_size=5)
    alone = teacher_forced(model, prompter, EXAMPLES, condition, batch_size=1)
    for one, two in zip(forced, alone, strict=True):
        torch.testing.assert_close(one.logp, two.logp, rtol=1e-3, atol=1e-3)
    said = generate(model, prompter, EXAMPLES[:2], condition, max_new_tokens=3, batch_size=2)
    assert len(said) == 2
    assert not any("<user>" in words or EXAMPLES[0].question in words for words in said)


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
