"""Shapes against transformers: its configurations are read, and its blocks have the weights that are counted."""

import json

import pytest
import torch
import transformers
from reroute_spec import DECODER_SHAPES, DecoderShape, RerouteError, decoder_shape, shape_from_config

FAMILIES = {
    "llava-1.5-7b": (transformers.LlamaConfig, transformers.LlamaModel),
    "llava-1.5-13b": (transformers.LlamaConfig, transformers.LlamaModel),
    "qwen2.5-vl-3b": (transformers.Qwen2_5_VLTextConfig, transformers.Qwen2_5_VLTextModel),
    "qwen2.5-vl-7b": (transformers.Qwen2_5_VLTextConfig, transformers.Qwen2_5_VLTextModel),
    "qwen3-vl-8b": (transformers.Qwen3VLTextConfig, transformers.Qwen3VLTextModel),
    "qwen3.5-9b": (transformers.Qwen3_5TextConfig, transformers.Qwen3_5TextModel),
}
QWEN35 = {
    "model_type": "qwen3_5_text",
    "num_hidden_layers": 8,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
}
QWEN2 = {
    "model_type": "qwen2",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}


def text_config(name, **changes):
    shape = DECODER_SHAPES[name]
    sizes = {
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "head_dim": shape.head_dim,
        "num_hidden_layers": shape.num_layers,
        "vocab_size": 8,
    }
    return FAMILIES[name][0](**{**sizes, **changes})


@pytest.mark.parametrize("name", DECODER_SHAPES)
def test_a_shape_counts_the_weights_that_transformers_blocks_have(name):
    shape = DECODER_SHAPES[name]
    with torch.device("meta"):
        model = FAMILIES[name][1](text_config(name, num_hidden_layers=4))
    for layer, block in enumerate(model.layers):
        mlp = sum(p.numel() for p in block.mlp.parameters())
        matrices = sum(p.numel() for p in block.parameters() if p.ndim > 1)
        assert shape.mlp_weights == mlp
        assert shape.mixer_weights(layer) == matrices - mlp


@pytest.mark.parametrize("name", DECODER_SHAPES)
def test_a_configuration_that_transformers_writes_reads_back_as_the_shape(name, tmp_path):
    text_config(name).save_pretrained(tmp_path)
    assert shape_from_config(tmp_path) == DECODER_SHAPES[name]
    assert decoder_shape(tmp_path / "config.json") == DECODER_SHAPES[name]
    nested = {"model_type": "anything", "text_config": json.loads((tmp_path / "config.json").read_text())}
    assert shape_from_config(nested) == DECODER_SHAPES[name]


def test_the_named_qwen35_is_the_one_that_transformers_documents_by_its_defaults():
    assert shape_from_config(transformers.Qwen3_5TextConfig().to_dict()) == DECODER_SHAPES["qwen3.5-9b"]


def test_llavas_published_configuration_leaves_its_sizes_to_llamas_defaults():
    published = {"model_type": "llava", "text_config": {"model_type": "llama", "vocab_size": 32064}}
    assert shape_from_config(published) == DECODER_SHAPES["llava-1.5-7b"]


def test_head_dim_and_llamas_key_value_heads_have_transformers_defaults():
    llama = {**QWEN2, "model_type": "llama"}
    del llama["num_key_value_heads"]
    assert shape_from_config(llama) == DecoderShape(2, 64, 128, 4, 4, 16)
    assert shape_from_config(QWEN2) == DecoderShape(2, 64, 128, 4, 4, 16)
    assert shape_from_config({**QWEN2, "num_key_value_heads": 2, "head_dim": 8}) == DecoderShape(
        2, 64, 128, 4, 2, 8
    )


def test_layer_types_follow_the_interval_unless_written():
    types = ["linear_attention", "full_attention"] * 4
    assert shape_from_config(QWEN35).attention_layers == (3, 7)
    assert shape_from_config({**QWEN35, "full_attention_interval": 2}).attention_layers == (1, 3, 5, 7)
    assert shape_from_config({**QWEN35, "layer_types": types}).attention_layers == (1, 3, 5, 7)


REFUSED = [
    ({**QWEN2, "model_type": "mamba"}, "model_type"),
    ({**QWEN2, "model_type": None}, "model_type"),
    ({**QWEN2, "model_type": ["qwen2"]}, "model_type"),
    ({**QWEN2, "num_key_value_heads": None}, "num_key_value_heads"),
    ({**QWEN2, "hidden_size": 66}, "hidden_size"),
    ({**QWEN2, "use_sliding_window": "false"}, "use_sliding_window"),
    ({key: value for key, value in QWEN2.items() if key != "hidden_size"}, "hidden_size"),
    ({**QWEN2, "num_hidden_layers": "2"}, "num_hidden_layers"),
    ({**QWEN2, "num_hidden_layers": True}, "num_hidden_layers"),
    ({**QWEN2, "num_key_value_heads": 3}, "num_key_value_heads"),
    ({**QWEN2, "use_sliding_window": True}, "use_sliding_window"),
    ({**QWEN2, "layer_types": ["full_attention", "sliding_attention"]}, "layer_types[1]"),
    ({**QWEN2, "layer_types": ["full_attention"]}, "layer_types"),
    ({**QWEN2, "model_type": "qwen3"}, "head_dim"),
    ({**QWEN35, "attn_output_gate": False}, "attn_output_gate"),
    ({**QWEN35, "linear_conv_kernel_dim": None}, "linear_conv_kernel_dim"),
    ({**QWEN35, "linear_num_key_heads": 3}, "linear_num_key_heads"),
    ({"text_config": {**QWEN2, "hidden_size": 0}}, "text_config.hidden_size"),
    ({"text_config": []}, "text_config"),
]


@pytest.mark.parametrize(("config", "field"), REFUSED, ids=[f"{i}-{f}" for i, (_, f) in enumerate(REFUSED)])
def test_a_configuration_that_is_not_understood_is_refused_by_field(config, field):
    with pytest.raises(RerouteError) as error:
        shape_from_config(config)
    assert error.value.field == field


def test_files_that_are_no_configuration_are_refused(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(RerouteError, match="cannot be read"):
        shape_from_config(tmp_path)
    for text, words in (("{", "is no JSON"), ("[]", "is a list"), ("[" * 100_000, "is no JSON")):
        path.write_text(text)
        with pytest.raises(RerouteError, match=words):
            shape_from_config(path)
    path.write_bytes(b"\xff")
    with pytest.raises(RerouteError, match="config: "):
        shape_from_config(path)
