"""The coordinates of every family, without lmms-eval: a box written as the family writes it is found where it was."""

import importlib
import re

import pytest
from PIL import Image
from reroute_conformance.tiny import picture
from reroute_optimized.integrations.lmms import TASKS
from reroute_optimized.integrations.lmms.tasks.refcoco import utils

WIDE, TALL = picture(640, 480), picture(427, 640)
BOX = [64.0, 48.0, 128.0, 96.0]  # x, y, width, height


def document(image, box=BOX):
    return {
        **{"image": image, "answer": "the red ball", "bbox": box},
        **{"image_width": image.width, "image_height": image.height},
    }


def corners(box):
    x, y, width, height = box
    return x, y, x + width, y + height


@pytest.mark.parametrize("image", [WIDE, TALL], ids=["wide", "tall"])
def test_llava_reads_fractions_of_the_padded_square(image):
    side = max(image.size)
    left, top = (side - image.width) // 2, (side - image.height) // 2
    x1, y1, x2, y2 = corners(BOX)
    said = [(x1 + left) / side, (y1 + top) / side, (x2 + left) / side, (y2 + top) / side]
    judged = utils.llava_results(document(image), [f"[{', '.join(f'{value:.4f}' for value in said)}]"])
    assert judged["refcoco_iou"] == pytest.approx(1, abs=1e-2)
    assert judged["refcoco_acc"] == judged["refcoco_answered"] == 1
    (square,) = utils.llava_visual(document(image))
    assert square.size == (side, side)
    assert square.crop((left, top, left + image.width, top + image.height)).tobytes() == image.tobytes()
    assert square.getpixel((0, 0)) == (122, 116, 104)


def test_qwen3_vl_reads_thousandths_of_the_picture():
    said = '```json\n[\n\t{"bbox_2d": [100, 100, 300, 300], "label": "the red ball"}\n]\n```'
    assert utils.qwen3_vl_results(document(WIDE), [said])["refcoco_iou"] == pytest.approx(1)
    assert utils.visual(document(WIDE))[0].size == WIDE.size


@pytest.mark.parametrize("image", [WIDE, TALL, picture(320, 240)], ids=["wide", "tall", "small"])
def test_qwen2_5_vl_reads_pixels_of_the_picture_as_it_is_resized(image):
    pytest.importorskip("qwen_vl_utils", reason="lmms-eval is not installed: make lmms")
    from transformers import Qwen2VLImageProcessor  # needs torchvision, which comes with it

    (seen,) = utils.qwen2_5_vl_visual(document(image))
    across, down = seen.width / image.width, seen.height / image.height
    x1, y1, x2, y2 = corners(BOX)
    said = f'{{"bbox_2d": [{x1 * across:.0f}, {y1 * down:.0f}, {x2 * across:.0f}, {y2 * down:.0f}]}}'
    assert utils.qwen2_5_vl_results(document(image), [said])["refcoco_iou"] == pytest.approx(1, abs=0.03)
    processor = Qwen2VLImageProcessor(min_pixels=256 * 28 * 28, max_pixels=1605632)
    _, high, wide = processor(images=[seen], return_tensors="pt")["image_grid_thw"][0].tolist()
    assert (wide * 14, high * 14) == seen.size  # the processor resizes no more


@pytest.mark.parametrize("said", ["", "there is no ball", "[0.1, 0.2]", "[0.9, 0.9, 0.1, 0.1]"])
def test_no_box_and_no_area_are_misses(said):
    judged = utils.llava_results(document(WIDE), [said])
    assert judged["refcoco_acc"] == judged["refcoco_iou"] == 0
    assert judged["refcoco_answered"] == (said.count(",") == 3)


def test_the_first_box_counts():
    said = "[0.0, 0.0, 0.01, 0.01] [0.1, 0.2, 0.3, 0.35]"
    assert utils.llava_results(document(WIDE), [said])["refcoco_iou"] == 0


def test_half_an_overlap_is_enough():
    far = [0.0, 0.0, 100.0, 100.0]
    image = Image.new("RGB", (1000, 1000))
    assert utils.qwen3_vl_results(document(image, far), ["[0, 0, 100, 50]"])["refcoco_acc"] == 1
    assert utils.qwen3_vl_results(document(image, far), ["[0, 0, 100, 49]"])["refcoco_acc"] == 0


def test_task_files_name_functions_that_there_are():
    files = sorted((TASKS / "refcoco").glob("*yaml"))
    assert len(files) == 4 + 3 * 3
    for file in files:
        for module, function in re.findall(r"!function (\w+)\.(\w+)", file.read_text()):
            found = importlib.import_module(f"reroute_optimized.integrations.lmms.tasks.refcoco.{module}")
            assert callable(getattr(found, function)), (file, function)
