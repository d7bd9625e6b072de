"""Prompts whose pictures are grey but for one patch, by the families' real image processors."""

import torch
from PIL import Image
from reroute_conformance.tiny.qwen import IMAGE, VIDEO, VISION_END, VISION_START
from transformers import Qwen2VLImageProcessorPil

SIDE = 28  # pixels of a merged patch
WORD, LLAVA_IMAGE = 5, 190
QWEN = Qwen2VLImageProcessorPil(size={"shortest_edge": SIDE**2, "longest_edge": SIDE**2 * 100})


def painted(rows, columns, cell=None):
    """A grey picture of so many merged patches, one of which is red."""
    image = Image.new("RGB", (columns * SIDE, rows * SIDE), (90, 90, 90))
    if cell is not None:
        row, column = cell
        image.paste((250, 20, 20), (column * SIDE, row * SIDE, (column + 1) * SIDE, (row + 1) * SIDE))
    return image


def qwen_inputs(family, parts):
    """A prompt of images and videos; a part is a picture, or a list of frames, which the model places in turn."""
    ids, images, videos = [WORD], [], []
    for part in parts:
        frames = part if isinstance(part, list) else [part]
        made = QWEN(images=frames, return_tensors="pt")
        t, height, width = len(frames), *made["image_grid_thw"][0, 1:].tolist()
        token, rows = (VIDEO if isinstance(part, list) else IMAGE), height * width // 4
        if token == VIDEO and family != "qwen2_5_vl":  # a timestamp before every frame
            ids += [one for _ in frames for one in (WORD, VISION_START, *[token] * rows, VISION_END)]
        else:
            ids += [VISION_START, *[token] * (t * rows), VISION_END]
        (videos if token == VIDEO else images).append((made["pixel_values"], [t, height, width]))
        ids.append(WORD)
    ids = torch.tensor([ids])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs["mm_token_type_ids"] = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    for name, grid, found in (
        ("pixel_values", "image_grid_thw", images),
        ("pixel_values_videos", "video_grid_thw", videos),
    ):
        if found:
            inputs |= {name: torch.cat([p for p, _ in found]), grid: torch.tensor([g for _, g in found])}
    return inputs
