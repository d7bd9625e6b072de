"""RefCOCO as every family was trained for it: one sentence in, one box out, in the family's own prompt and coordinates.

Documents have ``image``, ``answer`` (the sentences of one object) and ``bbox`` (x, y, width, height in pixels). A box that
is read from an answer is put back on the original picture, and judged there.

Sources:
    LLaVA-1.5: the prompt and two decimals in [0, 1] as in its training data, https://github.com/haotian-liu/LLaVA/issues/623;
        of the picture padded to a square, https://github.com/haotian-liu/LLaVA/issues/606#issuecomment-1774076879. It has to
        be padded here, since the processors of the llava-hf checkpoints cut a square out of it instead, see "Note regarding
        reproducing original implementation" in https://huggingface.co/docs/transformers/model_doc/llava.
    Qwen2.5-VL: the prompt of its grounding example, ``qwen-vl-finetune/README.md`` in https://github.com/QwenLM/Qwen3-VL;
        pixels of the picture as it is resized for the model, ``cookbooks/spatial_understanding.ipynb`` of its time there.
    Qwen3-VL: prompt and thousandths of the picture, ``cookbooks/2d_grounding.ipynb`` there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from PIL import Image

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2."""

_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_BOX = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")
_CLIP_MEAN = (122, 116, 104)  # CLIP's mean colour of 255, with which LLaVA pads
_QWEN2_5_FACTOR = 28
_QWEN2_5_PIXELS = (256 * 28 * 28, 1605632)  # min_pixels and max_pixels of lmms-eval's model


def sentences(dataset: Any) -> Any:
    """One document per sentence, with the picture's size, which is all that judging needs of it."""
    from datasets import Image as ImageFeature

    def split(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        rows = [(row, text) for row, texts in enumerate(batch["answer"]) for text in texts]
        columns = {name: [values[row] for row, _ in rows] for name, values in batch.items()}
        return {**columns, "answer": [text for _, text in rows]}

    def measured(document: Mapping[str, Any]) -> dict[str, int]:
        return {"image_width": document["image"].width, "image_height": document["image"].height}

    measured_once = dataset.map(measured)
    encoded = measured_once.cast_column("image", ImageFeature(decode=False))
    return encoded.map(split, batched=True, batch_size=64).cast_column("image", ImageFeature())


def visual(document: Mapping[str, Any]) -> list[Image.Image]:
    """The picture as it is."""
    return [document["image"].convert("RGB")]


def llava_visual(document: Mapping[str, Any]) -> list[Image.Image]:
    """The picture in the middle of a square."""
    picture = document["image"].convert("RGB")
    side, left, top = _square(*picture.size)
    square = Image.new("RGB", (side, side), _CLIP_MEAN)
    square.paste(picture, (left, top))
    return [square]


def qwen2_5_vl_visual(document: Mapping[str, Any]) -> list[Image.Image]:
    """The picture in the size in which the model sees it: its processor then finds nothing to do."""
    picture = document["image"].convert("RGB")
    return [picture.resize(_qwen2_5_size(*picture.size))]


def llava_text(document: Mapping[str, Any]) -> str:
    """LLaVA-1.5's question."""
    return f"Please provide the bounding box coordinate of the region this sentence describes: {document['answer']}"


def qwen2_5_vl_text(document: Mapping[str, Any]) -> str:
    """Qwen2.5-VL's question."""
    return f"Locate {document['answer']} in this image and output the bbox coordinates in JSON format."


def qwen3_vl_text(document: Mapping[str, Any]) -> str:
    """Qwen3-VL's question."""
    return f"Locate {document['answer']}, output its bbox coordinates using JSON format."


def llava_results(document: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """LLaVA-1.5's answer judged."""
    side, left, top = _square(document["image_width"], document["image_height"])
    return _judged(document, results, lambda x, y: (x * side - left, y * side - top))


def qwen2_5_vl_results(document: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """Qwen2.5-VL's answer judged."""
    width, height = document["image_width"], document["image_height"]
    seen_width, seen_height = _qwen2_5_size(width, height)
    return _judged(document, results, lambda x, y: (x / seen_width * width, y / seen_height * height))


def qwen3_vl_results(document: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """Qwen3-VL's answer judged."""
    width, height = document["image_width"], document["image_height"]
    return _judged(document, results, lambda x, y: (x / 1000 * width, y / 1000 * height))


def _square(width: int, height: int) -> tuple[int, int, int]:
    """The side of the square, and where the picture begins in it."""
    side = max(width, height)
    return side, (side - width) // 2, (side - height) // 2


def _qwen2_5_size(width: int, height: int) -> tuple[int, int]:
    from qwen_vl_utils import smart_resize

    least, most = _QWEN2_5_PIXELS
    seen_height, seen_width = smart_resize(height, width, _QWEN2_5_FACTOR, least, most)
    return seen_width, seen_height


def _judged(document: Mapping[str, Any], results: list[str], on_picture: Any) -> dict[str, float]:
    """Of the first box in the answer; none is a miss."""
    x, y, width, height = document["bbox"]
    found = _BOX.search(results[0])
    overlap = 0.0
    if found is not None:
        x1, y1, x2, y2 = map(float, found.groups())
        overlap = _overlap((*on_picture(x1, y1), *on_picture(x2, y2)), (x, y, x + width, y + height))
    return {
        "refcoco_acc": float(overlap >= 0.5),
        "refcoco_iou": overlap,
        "refcoco_answered": float(found is not None),
    }


def _overlap(one: Box, other: Box) -> float:
    """Intersection over union; 0 where one has no area."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    if wide <= 0 or high <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return wide * high / (sum(areas) - wide * high)
