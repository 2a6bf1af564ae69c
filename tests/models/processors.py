"""Tiny processors that fit the tiny models of `families`: real classes, a vocabulary of 99.

Where torchvision is not installed, processors that also take videos are built without their video
part; what they do with pictures and text stays their own.
"""

from __future__ import annotations

import importlib
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import transformers as tf
from families import AUDIO, END, FAMILIES, IMAGE, START, VIDEO, Family
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers.processing_utils import ProcessorMixin

CHARACTERS = [*("▁" + string.ascii_letters + ".?,':!"), "\n"]
MERGES = [("▁", "t"), ("h", "e"), ("i", "n"), ("▁", "a"), ("o", "n"), ("▁t", "h"), ("e", "r")]
ROLES = {3: "<user>", 4: "<assistant>"}
CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for p in m['content'] %}"
    "{% if p['type'] == KIND %}IMAGE{% else %}{{ p['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{% if m['role'] == 'assistant' %}<end>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SQUARE = {"height": 8, "width": 8}
QWEN = {
    IMAGE: "<|image_pad|>",
    VIDEO: "<|video_pad|>",
    START: "<|vision_start|>",
    END: "<|vision_end|>",
}
IDEFICS = {
    IMAGE: "<image>",
    80: "<fake_token_around_image>",
    81: "<end_of_utterance>",
    82: "<global-img>",
}
KOSMOS = [
    "<image>",
    "</image>",
    "</doc>",
    "</chunk>",
    "</line>",
    "<phrase>",
    "</phrase>",
    "<object>",
    "</object>",
    "</delimiter_of_multi_objects/>",
    "<grounding>",
]
PIXTRAL = {IMAGE: "[IMG]", 80: "[IMG_BREAK]", 81: "[IMG_END]"}


def pil(name: str) -> Any:
    """An image processor that does without torchvision; older versions call it so."""
    return getattr(tf, f"{name}ImageProcessorPil", None) or getattr(tf, f"{name}ImageProcessor")


def tokenizer(
    special: Mapping[int, str | AddedToken], **options: Any
) -> tf.PreTrainedTokenizerFast:
    """Pieces of one to three letters at 5 to 79, special tokens at the ids given."""
    named = {0: "<pad>", 1: "<s>", 2: "<end>", **ROLES, **special}
    pieces = CHARACTERS + [left + right for left, right in MERGES]
    vocabulary = {str(token): place for place, token in named.items()}
    vocabulary |= {piece: 5 + place for place, piece in enumerate(pieces)}
    taken = set(vocabulary.values())
    vocabulary |= {f"<unused{place}>": place for place in range(99) if place not in taken}
    pieces_of = Tokenizer(models.BPE(vocab=vocabulary, merges=MERGES))
    pieces_of.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    pieces_of.decoder = decoders.Metaspace(prepend_scheme="never")
    pieces_of.add_special_tokens(list(named.values()))
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=pieces_of,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<end>",
        clean_up_tokenization_spaces=False,
        **options,
    )


@dataclass(frozen=True)
class Recipe:
    """How to build a processor.

    Attributes:
        kind: Name of its class, or module and name where transformers hides it.
        special: Special tokens of its vocabulary, by id.
        image: What its chat template writes for a picture; None where it has no chat template.
        options: Arguments besides tokenizer and image processor.
        pictures: Makes the image processor.
        names: Special tokens that the tokenizer has under a name.
        sounds: Makes the feature extractor of a model that hears instead.
        ear: Under which name the processor takes it.
        ahead: Whether the processor itself puts the placeholders in front of a prompt.
        model: What else the tiny model's configuration says, where it is too small otherwise.
        asleep: Sites that run for other inputs than the processor makes here.
    """

    kind: str
    special: Mapping[int, str | AddedToken]
    image: str | None
    options: dict[str, Any]
    pictures: Callable[[], Any] | None = None
    names: dict[str, str] | None = None
    sounds: Callable[[], Any] | None = None
    ear: str = "feature_extractor"
    ahead: bool = False
    model: dict[str, Any] = field(default_factory=dict)
    asleep: frozenset[str] = frozenset()

    def build(self) -> Any:
        """The processor."""
        words = tokenizer(self.special, **self.names and {"extra_special_tokens": self.names} or {})
        chat = None if self.image is None else CHAT.replace("IMAGE", self.image)
        kind_of_part = "'image'" if self.sounds is None else "'audio'"
        chat = chat and chat.replace("KIND", kind_of_part)
        if self.kind == "tokenizer":
            words.chat_template = chat
            return words
        module, _, name = self.kind.rpartition(".")
        kind = getattr(importlib.import_module(f"transformers.{module}".rstrip(".")), name)
        given = {"tokenizer": words, **self.options}
        if self.pictures:
            given["image_processor"] = self.pictures()
        if self.sounds:
            given[self.ear] = self.sounds()
        unchecked = mock.patch.object(ProcessorMixin, "check_argument_for_proper_class")
        with unchecked:
            return kind(**given, **({} if chat is None else {"chat_template": chat}))

    def family(self, name: str) -> Family:
        """The family of this name, large enough for what the processor makes."""
        found = FAMILIES[name]
        return replace(found, config={**found.config, **self.model})


def qwen(kind: str) -> Recipe:
    return Recipe(
        kind,
        QWEN,
        "<|vision_start|><|image_pad|><|vision_end|>",
        {"video_processor": None},
        lambda: pil("Qwen2VL")(patch_size=4, merge_size=2, min_pixels=64, max_pixels=256),
    )


def pixtral(edge: int = 8, **options: Any) -> Recipe:
    return Recipe(
        "models.pixtral.processing_pixtral.PixtralProcessor",
        PIXTRAL,
        "[IMG]",
        {"patch_size": 4, **options},
        lambda: pil("Pixtral")(size={"longest_edge": edge}, patch_size={"height": 4, "width": 4}),
    )


def blip(kind: str, **options: Any) -> Recipe:
    return Recipe(
        kind,
        {IMAGE: "<image>"},
        None,
        {"num_query_tokens": 3, **options},
        lambda: pil("Blip")(size=SQUARE),
        ahead=True,
    )


def llava() -> Recipe:
    return Recipe(
        "LlavaProcessor",
        {IMAGE: "<image>"},
        "<image>",
        LLAVA,
        lambda: pil("CLIP")(size={"shortest_edge": 8}, crop_size=SQUARE),
    )


def words() -> Recipe:
    return Recipe("tokenizer", {}, "", {})


LLAVA = {
    "patch_size": 4,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
}
RECIPES: dict[str, Recipe] = {
    "llava": llava(),
    "vipllava": llava(),
    "llava-next": Recipe(
        "LlavaNextProcessor",
        {IMAGE: "<image>"},
        "<image>",
        LLAVA,
        lambda: pil("LlavaNext")(
            size={"shortest_edge": 8}, crop_size=SQUARE, image_grid_pinpoints=[[8, 8]]
        ),
    ),
    "llava-onevision": Recipe(
        "LlavaOnevisionProcessor",
        {IMAGE: "<image>", VIDEO: "<video>"},
        "<image>",
        {
            "video_processor": None,
            "num_image_tokens": 4,
            "vision_feature_select_strategy": "full",
        },
        lambda: pil("LlavaOnevision")(size=SQUARE, image_grid_pinpoints=[[8, 8]]),
    ),
    "qwen2-vl": qwen("Qwen2VLProcessor"),
    "qwen2.5-vl": qwen("Qwen2_5_VLProcessor"),
    "qwen3-vl": qwen("Qwen3VLProcessor"),
    "qwen3-vl-moe": qwen("Qwen3VLProcessor"),
    "idefics2": Recipe(
        "Idefics2Processor",
        IDEFICS,
        "<image>",
        {"image_seq_len": 3},
        lambda: pil("Idefics2")(
            size={"shortest_edge": 8, "longest_edge": 8}, do_image_splitting=False
        ),
    ),
    "idefics3": Recipe(
        "Idefics3Processor",
        IDEFICS,
        "<image>",
        {"image_seq_len": 1},
        lambda: pil("Idefics3")(
            size={"longest_edge": 8}, max_image_size={"longest_edge": 8}, do_image_splitting=False
        ),
    ),
    "smolvlm": Recipe(
        "SmolVLMProcessor",
        IDEFICS,
        "<image>",
        {"video_processor": SimpleNamespace(num_frames=1, fps=1), "image_seq_len": 1},
        lambda: pil("SmolVLM")(
            size={"longest_edge": 8}, max_image_size={"longest_edge": 8}, do_image_splitting=False
        ),
    ),
    "gemma3": Recipe(
        "Gemma3Processor",
        {IMAGE: "<image_soft_token>", START: "<start_of_image>", END: "<end_of_image>"},
        "<start_of_image>",
        {"image_seq_length": 4},
        lambda: pil("Gemma3")(size=SQUARE),
        {
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
    ),
    "paligemma": Recipe(
        "PaliGemmaProcessor",
        {IMAGE: "<image>"},
        None,
        {},
        lambda: pil("Siglip")(size=SQUARE, image_seq_length=4),
    ),
    "internvl": Recipe(
        "InternVLProcessor",
        {IMAGE: "<IMG_CONTEXT>", START: "<img>", END: "</img>", VIDEO: "<video>"},
        "<IMG_CONTEXT>",
        {"video_processor": None, "image_seq_length": 1},
        lambda: pil("GotOcr2")(size=SQUARE, crop_to_patches=False),
        {
            "context_image_token": "<IMG_CONTEXT>",
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "video_token": "<video>",
        },
    ),
    "llava-pixtral": pixtral(),
    "mistral3": pixtral(16, spatial_merge_size=2),
    "mllama": Recipe(
        "MllamaProcessor",
        {IMAGE: "<|image|>"},
        "<|image|>",
        {},
        lambda: pil("Mllama")(size=SQUARE, max_image_tiles=1),
    ),
    "blip2-opt": blip("Blip2Processor"),
    "blip2-t5": blip("Blip2Processor"),
    "instructblip": blip("InstructBlipProcessor", qformer_tokenizer=tokenizer({})),
    "instructblip-llama": blip("InstructBlipProcessor", qformer_tokenizer=tokenizer({})),
    "glm4v": Recipe(
        "Glm4vProcessor",
        {IMAGE: "<|image|>", VIDEO: "<|video|>", START: "<|begin|>", END: "<|end|>"},
        "<|begin|><|image|><|end|>",
        {"video_processor": None},
        lambda: pil("Glm4v")(
            patch_size=4, merge_size=2, size={"shortest_edge": 64, "longest_edge": 256}
        ),
    ),
    "qwen2-audio": Recipe(
        "Qwen2AudioProcessor",
        {AUDIO: "<|AUDIO|>", START: "<|audio_bos|>", END: "<|audio_eos|>"},
        "<|audio_bos|><|AUDIO|><|audio_eos|>",
        {},
        sounds=lambda: tf.WhisperFeatureExtractor(
            feature_size=8, sampling_rate=16000, hop_length=1000, chunk_length=1, n_fft=400
        ),
    ),
    "aria": Recipe(
        "AriaProcessor",
        {IMAGE: "<|img|>"},
        "<|img|>",
        {"size_conversion": {980: 4}},
        lambda: pil("Aria")(),
        {"image_token": "<|img|>"},
        model={
            "vision_config": {
                **FAMILIES["llava"].config["vision_config"],
                "model_type": "idefics3_vision",
                "image_size": 980,
                "patch_size": 140,
            },
            "projector_patch_to_query_dict": {49: 4},
        },
    ),
    "ovis2": Recipe(
        "Ovis2Processor",
        {
            IMAGE: "<IMG_ATOM>",
            START: "<IMG_START>",
            END: "<IMG_END>",
            80: "<IMG_GRID>",
            81: "<image>",
        },
        "<image>",
        {"image_seq_length": 4},
        lambda: pil("Ovis2")(size=SQUARE),
    ),
    "kosmos-2": Recipe(
        "Kosmos2Processor",
        {
            80 + place: AddedToken(token, lstrip=True, normalized=False)
            for place, token in enumerate(KOSMOS)
        },
        None,
        {"num_patch_index_tokens": 0},
        lambda: pil("CLIP")(size={"shortest_edge": 8}, crop_size=SQUARE),
        {"unk_token": "<assistant>"},  # pictures stand at the ids behind it, those of letters
        ahead=True,
        model={
            "latent_query_num": 64,
            "text_config": {
                **FAMILIES["kosmos-2"].config["text_config"],
                "max_position_embeddings": 256,
            },
        },
    ),
    "florence-2": Recipe(
        "Florence2Processor",
        {IMAGE: "<image>"},
        None,
        {},
        lambda: pil("CLIP")(size=SQUARE, do_center_crop=False, image_seq_length=5),
        {"image_token": "<image>"},
        ahead=True,
    ),
    "phi4-multimodal": Recipe(
        "Phi4MultimodalProcessor",
        {IMAGE: "<|image|>", AUDIO: "<|audio|>"},
        "<|audio|>",
        {"image_processor": None},  # it needs torchvision
        names={"image_token": "<|image|>", "audio_token": "<|audio|>"},
        sounds=lambda: tf.Phi4MultimodalFeatureExtractor(feature_size=16),
        ear="audio_processor",
        asleep=frozenset({"vision.0", "vision.1", "connector.0", "connector.2"}),
    ),
    "llama": words(),
    "qwen3": words(),
    "mistral": words(),
    "gpt2": words(),
    "opt": words(),
    "t5": words(),
    "mixtral": words(),
    "qwen3-moe": words(),
    "qwen2-moe": words(),
    "gpt-oss": words(),
    "llama4": words(),
}
NOT_BUILT = {
    "lfm2-vl": "its image processor needs torchvision",
    "voxtral": "its processor takes sounds through the tokenizer of mistral-common alone",
    "granite-speech": "its feature extractor needs torchaudio",
}
if "aria" not in FAMILIES:
    del RECIPES["aria"]
