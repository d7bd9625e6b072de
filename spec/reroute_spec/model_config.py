"""A decoder's shape from a Hugging Face ``config.json``, without transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import RerouteError, unknown
from .shapes import DECODER_SHAPES, DecoderShape, HybridShape

_SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
_LINEAR = (
    "linear_num_key_heads",
    "linear_key_head_dim",
    "linear_num_value_heads",
    "linear_value_head_dim",
    "linear_conv_kernel_dim",
)

# Decoders whose blocks are those of DecoderShape or HybridShape, with the defaults of transformers' configuration that
# published files rely on. llava-hf/llava-1.5-7b-hf writes none of its text sizes: LlamaConfig's are meant.
_DECODERS: dict[str, dict[str, int]] = {
    "llama": dict(zip(_SIZES, (32, 4096, 11008, 32), strict=True)),
    "qwen2": {},
    "qwen2_5_vl": {},  # published files are flat, later ones nest a text_config
    "qwen2_5_vl_text": {},
    "qwen3": {},
    "qwen3_vl_text": {},
    "qwen3_5_text": {"full_attention_interval": 4},
}
_HEAD_DIM_IS_FREE = {"qwen3", "qwen3_vl_text", "qwen3_5_text"}  # not hidden_size / num_attention_heads


def decoder_shape(name_or_path: str | Path) -> DecoderShape:
    """A shape by name, or from a ``config.json`` or the folder that holds one.

    Args:
        name_or_path: a name of :data:`DECODER_SHAPES`, or a path.

    Raises:
        RerouteError: neither a name nor a path, or a configuration that is not understood.
    """
    if str(name_or_path) in DECODER_SHAPES:
        return DECODER_SHAPES[str(name_or_path)]
    path = Path(name_or_path)
    if not path.exists():
        if path.suffix == ".json" or len(path.parts) > 1:
            raise RerouteError("model", f"{path} does not exist", "give a config.json or a model's folder")
        raise unknown("model", str(name_or_path), [*DECODER_SHAPES])
    return shape_from_config(path)


def shape_from_config(config: str | Path | Mapping[str, Any]) -> DecoderShape:
    """The decoder's shape in a Hugging Face model configuration.

    Args:
        config: the parsed ``config.json``, its path, or the path of its folder. The decoder is its ``text_config``
            where it has one. ``head_dim`` defaults to hidden size / heads, and for Llama
            ``num_key_value_heads`` to the heads, as in transformers.

    Raises:
        RerouteError: naming the field that is missing, or that says that the blocks are not of a known kind.
    """
    data = _read(Path(config)) if isinstance(config, (str, Path)) else config
    if not isinstance(data, Mapping):
        raise RerouteError("config", f"is a {type(data).__name__}", "give the object of a config.json")
    nested = data.get("text_config")
    prefix = "" if nested is None else "text_config."
    text = data if nested is None else nested
    if not isinstance(text, Mapping):
        raise RerouteError("text_config", f"is a {type(text).__name__}", "give an object")
    kind = text.get("model_type")
    if not isinstance(kind, str) or kind not in _DECODERS:
        raise unknown(f"{prefix}model_type", kind, [*_DECODERS])
    return _shape(kind, {**_DECODERS[kind], **text}, prefix)


def _read(path: Path) -> Any:
    file = path / "config.json" if path.is_dir() else path
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise RerouteError("config", f"{file} cannot be read ({error})", "give a readable file") from None
    except (ValueError, RecursionError) as error:
        raise RerouteError("config", f"{file} is no JSON ({error})", "give a config.json") from None


def _shape(kind: str, text: Mapping[str, Any], prefix: str) -> DecoderShape:
    if text.get("use_sliding_window", False) not in (False, None):
        problem = f"is {text['use_sliding_window']!r}"
        raise RerouteError(f"{prefix}use_sliding_window", problem, "costs are of full attention: false")
    layers, hidden, intermediate, heads = (_size(text, name, prefix) for name in _SIZES)
    free = kind in _HEAD_DIM_IS_FREE
    if free or text.get("head_dim") is not None:
        head_dim = _size(text, "head_dim", prefix)
    elif hidden % heads:
        problem = f"{hidden} is no multiple of {heads} heads"
        raise RerouteError(
            f"{prefix}hidden_size", problem, "give head_dim where heads do not share it evenly"
        )
    else:
        head_dim = hidden // heads
    kv_heads = heads  # as LlamaConfig has it; the Qwen configurations have numbers of their own for a default
    if kind != "llama" or text.get("num_key_value_heads") is not None:
        kv_heads = _size(text, "num_key_value_heads", prefix)
    sizes = (layers, hidden, intermediate, heads, kv_heads, head_dim)
    attending = _attention_layers(text, layers, prefix, hybrid=kind == "qwen3_5_text")
    if kind != "qwen3_5_text":
        return DecoderShape(*sizes)
    if text.get("attn_output_gate", True) is not True:
        raise RerouteError(f"{prefix}attn_output_gate", "is not true", "Qwen3.5's full attention is gated")
    linear = {name: _size(text, name, prefix) for name in _LINEAR}
    return HybridShape(*sizes, **linear, full_attention_layers=attending)


def _size(text: Mapping[str, Any], name: str, prefix: str) -> int:
    value = text.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        problem = "is missing" if value is None else f"{value!r} is no size"
        raise RerouteError(prefix + name, problem, "a decoder's shape needs an integer >= 1")
    return value


def _attention_layers(text: Mapping[str, Any], layers: int, prefix: str, *, hybrid: bool) -> tuple[int, ...]:
    """The full-attention blocks: ``layer_types`` where given, else every n-th of a hybrid, else all."""
    types = text.get("layer_types")
    if types is None:
        interval = _size(text, "full_attention_interval", prefix) if hybrid else 1
        return tuple(range(interval - 1, layers, interval))
    if not isinstance(types, list) or len(types) != layers:
        raise RerouteError(f"{prefix}layer_types", f"does not list {layers} blocks", "one name per block")
    known = ["full_attention", "linear_attention"] if hybrid else ["full_attention"]
    for layer, name in enumerate(types):
        if name not in known:
            raise unknown(f"{prefix}layer_types[{layer}]", name, known)
    return tuple(layer for layer, name in enumerate(types) if name == "full_attention")
