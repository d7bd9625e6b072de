"""Runs a model on a prompt with pictures, under one schedule or two, and returns the traces as a view that can be drawn.

The reference runs the model. Where the schedule is a preset of Nüwa and the model's family has a described vision
tower, Nüwa's first stage runs before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from reroute_reference import run
from reroute_reference.families import block_kinds, family_of, text_decoder_of
from reroute_reference.nuwa import first_stage, second_stage
from reroute_spec import RerouteError, Schedule, presets
from reroute_spec.errors import unknown
from reroute_spec.view import Run, View
from reroute_view.inputs import Given, images_of, with_pictures
from torch import nn

from ..tiny.llava import tiny_llava, tiny_processor
from ..tiny.qwen import tiny_qwen
from ..tiny.qwen_processor import TinyQwenProcessor

_TINY_QWEN = {"tiny-qwen2.5-vl": "qwen2_5_vl", "tiny-qwen3-vl": "qwen3_vl", "tiny-qwen3.5": "qwen3_5"}
TINY = ("tiny", *_TINY_QWEN)
"""Models with random weights that are built in code; the first is a LLaVA."""
_DEPTH = 8


def load(name: str) -> tuple[nn.Module, Any]:
    """Model and processor: one of :data:`TINY`, or a checkpoint by its path or name.

    Raises:
        RerouteError: it cannot be loaded, or is of no described family.
    """
    if name in _TINY_QWEN:
        return tiny_qwen(_TINY_QWEN[name], num_layers=_DEPTH), TinyQwenProcessor()
    if name == TINY[0]:
        return tiny_llava(num_layers=_DEPTH), tiny_processor()
    if name.startswith("tiny") and not Path(name).exists():
        raise unknown("model", name, list(TINY))
    from transformers import AutoModelForImageTextToText, AutoProcessor

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model: Any = AutoModelForImageTextToText.from_pretrained(name, dtype="auto")
        processor = AutoProcessor.from_pretrained(name)
    except (OSError, ValueError, ImportError) as error:
        problem = f"{name} cannot be loaded ({' '.join(str(error).split())})"
        remedy = f"give a checkpoint's folder or name, or one of {', '.join(TINY)}"
        raise RerouteError("model", problem, remedy) from None
    family_of(model)
    return model.to(device).eval(), processor


def open_pictures(paths: Sequence[Path]) -> list[Image.Image]:
    """The pictures, in RGB and the way up that their camera says, as transformers' own loading has them.

    Raises:
        RerouteError: one cannot be read.
    """
    found = []
    for path in paths:
        try:
            with Image.open(path) as opened:
                if opened.mode[0] in "IF":  # Pillow cuts what is above 255, so that the model would see white
                    raise ValueError("it is grey with more than 8 bits")
                found.append(ImageOps.exif_transpose(opened).convert("RGB"))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            problem = f"{path} cannot be read ({error})"
            raise RerouteError("image", problem, "give a picture that Pillow reads") from None
    return found


def ask(model: nn.Module, processor: Any, prompt: str, pictures: Sequence[Image.Image]) -> dict[str, Any]:
    """What the processor makes of a question about pictures, as the checkpoint's chat template has it.

    Raises:
        RerouteError: the processor refuses them.
    """
    token = getattr(processor, "image_token", "<image>")
    if processor.chat_template is not None:
        content = [{"type": "image"} for _ in pictures] + [{"type": "text", "text": prompt}]
        messages = [{"role": "user", "content": content}]
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
    else:
        text = f"user : {f'{token} ' * (0 if token in prompt else len(pictures))}{prompt} assistant :"
    try:
        made = processor(images=list(pictures) or None, text=text, return_tensors="pt")
    except (ValueError, TypeError, IndexError) as error:
        problem = f"the processor refuses prompt and pictures ({' '.join(str(error).split())})"
        if token in prompt or not pictures:
            raise RerouteError(
                "prompt", problem, f"leave {token} out, or write it once per --image"
            ) from None
        raise RerouteError("image", problem, "give pictures that it takes") from None
    parameter = next(model.parameters())
    return {
        name: value.to(parameter.device, parameter.dtype if value.is_floating_point() else None)
        for name, value in made.items()
        if isinstance(value, torch.Tensor)
    }


def load_schedule(name: str, model: nn.Module) -> Schedule:
    """A preset or a file, for the model's depth and its blocks."""
    decoder: Any = text_decoder_of(model)[0]
    kinds = block_kinds(decoder)
    plain = [layer for layer, kind in enumerate(kinds) if kind == "full_attention"]
    return Schedule.load(name, len(kinds), None if len(plain) == len(kinds) else plain)


def augmented(name: str, schedule: Schedule) -> tuple[str, Schedule] | None:
    """The pruning method that a reroute schedule augments: its preset by name, or the same schedule that removes.

    None where there is none: the schedule removes already, decides nothing, or lets more rows run later on.
    """
    if schedule.action == "delete" or not schedule.decisions:
        return None
    method = name.removeprefix("reroute-")
    if name in presets() and method in presets():
        return method, schedule
    data = {key: value for key, value in schedule.to_dict().items() if key not in ("pool", "label")}
    try:
        return f"{Path(name).stem}, removing", Schedule.from_dict({**data, "action": "delete"})
    except RerouteError:
        return None


def trace(
    model: nn.Module,
    processor: Any,
    inputs: Mapping[str, Any],
    schedules: Sequence[tuple[str, Schedule]],
    *,
    prompt: str = "",
    name: str = "",
) -> View:
    """One request under one or two schedules, with what it takes to draw them.

    Args:
        model: a described one.
        processor: that made ``inputs``, for the colours of the pictures.
        inputs: of one request.
        schedules: with their names; a preset of Nüwa runs its first stage, where that is defined.
        prompt, name: for the heading.
    """
    ids = inputs["input_ids"].tolist()
    family, config = family_of(model), model.config
    found = images_of(family.media, config, ids, inputs)
    images = [] if found is None else found[0]
    shown = with_pictures(images, config, inputs, processor)
    runs = tuple(_run(model, inputs, own, schedule, images) for own, schedule in schedules)
    return View(runs, shown if found is not None else (), prompt, name)


def _run(
    model: nn.Module, inputs: Mapping[str, Any], name: str, schedule: Schedule, images: Sequence[Given]
) -> Run:
    method, _, tier = name.rpartition("-")
    if method not in ("nuwa", "reroute-nuwa") or family_of(model).tower is None or not images:
        return Run(name, run(model, inputs, schedule).traces[0], schedule)
    stage = first_stage(model, inputs, tier)
    kept, start = list[int](), 0
    for image, pillars in zip(images, stage["pillars"], strict=True):
        kept += [start + patch for patch in pillars]
        start += image.size
    schedule = second_stage(schedule, len(kept))
    given = {key: value for key, value in stage.items() if key not in ("metric", "pillars")}
    trace = run(model, given, schedule).traces[0]
    return Run(name, trace, schedule, tuple(kept[: len(trace.visual_rows)]))
