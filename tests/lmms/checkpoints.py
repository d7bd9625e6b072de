"""Tiny checkpoints as lmms-eval finds them: a folder with weights and a processor."""

import copy

import torch
from reroute_conformance.tiny import qwen as tiny_qwen
from reroute_conformance.tiny import tiny_llava, tiny_processor
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

_TURNS = (  # lmms-eval's chat classes give parts, its simple LLaVA a text with its placeholders
    "{% for message in messages %}{{ message['role'] }} : {% if message['content'] is string %}{{ message['content'] }} "
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE {% else %}{{ part['text'] }} "
    "{% endif %}{% endfor %}{% endif %}{% endfor %}assistant :"
)
_PATCH = {
    "qwen2_5_vl": 14,
    "qwen3_vl": 16,
    "qwen3_5": 16,
}  # lmms-eval resizes pictures to multiples of twice that


def llava(folder):
    processor = copy.deepcopy(tiny_processor())  # one for all tests
    processor.tokenizer.eos_token = "<pad>"  # lmms-eval asks for one
    processor.chat_template = _TURNS.replace("IMAGE", "<image>")
    processor.save_pretrained(folder)
    tiny_llava().save_pretrained(folder)
    return folder


def qwen(folder, family):
    layers = 16 if family == "qwen3_5" else 8  # every fourth block of Qwen3.5 can decide
    drawn = tiny_qwen.tiny_qwen(family, num_layers=layers)
    drawn.config.vision_config.patch_size = _PATCH[family]
    model, weights = type(drawn)(drawn.config), drawn.state_dict()
    for name, now in model.state_dict().items():
        if weights[name].shape != now.shape:  # the embedding of patches
            weights[name] = torch.randn(now.shape, generator=torch.Generator().manual_seed(0)) * 0.1
    model.load_state_dict(weights)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    _qwen_processor(family).save_pretrained(folder)
    return folder


def _qwen_processor(family):
    from transformers import (  # these need torchvision, which is installed beside lmms-eval
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    kinds = {
        "qwen2_5_vl": (Qwen2_5_VLProcessor, Qwen2VLVideoProcessor),
        "qwen3_vl": (Qwen3VLProcessor, Qwen3VLVideoProcessor),
        "qwen3_5": (Qwen3VLProcessor, Qwen3VLVideoProcessor),
    }
    processor, video_processor = kinds[family]
    patches = {"patch_size": _PATCH[family], "merge_size": 2, "temporal_patch_size": 2}
    template = _TURNS.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    return processor(
        Qwen2VLImageProcessor(**patches),
        _qwen_tokenizer(),
        video_processor(**patches),
        chat_template=template,
    )


def _qwen_tokenizer():
    """The words of the other tiny tokenizer, and placeholders where the tiny models have them."""
    words = [word for word in tiny_processor().tokenizer.get_vocab() if not word.startswith("<")]
    vocabulary = {"<pad>": 0, "<unk>": 1} | {word: 2 + index for index, word in enumerate(sorted(words))}
    special = {
        "<|image_pad|>": tiny_qwen.IMAGE,
        "<|video_pad|>": tiny_qwen.VIDEO,
        "<|vision_start|>": tiny_qwen.VISION_START,
        "<|vision_end|>": tiny_qwen.VISION_END,
        "<|im_end|>": 199,
    }
    taken = {*vocabulary.values(), *special.values()}
    vocabulary |= special | {f"w{index}": index for index in range(200) if index not in taken}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        additional_special_tokens=[name for name in special if name != "<|im_end|>"],
    )
