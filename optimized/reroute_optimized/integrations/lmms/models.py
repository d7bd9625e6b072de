"""lmms-eval's own model classes, routed. Imported by lmms-eval alone, which finds them by their manifests.

A chat class takes the messages that a task makes; a simple one, asked for by ``--force_simple``, a text and its pictures.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from accelerate import PartialState
from lmms_eval.models.chat import llava_hf, qwen2_5_vl, qwen3_vl
from lmms_eval.models.simple import llava_hf as llava_hf_simple
from lmms_eval.models.simple import qwen2_5_vl as qwen2_5_vl_simple
from lmms_eval.models.simple import qwen3_vl as qwen3_vl_simple
from reroute_spec import RerouteError

from .routing import Failed, Routing, one_at_a_time


class _Llava(Routing):
    """lmms-eval's LLaVA asserts batches of one only when it generates, answers "" where a video cannot be read, and has
    ``device_map=""`` for one process, which transformers 5 refuses.
    """

    def __init__(self, **model_args: Any) -> None:
        one_at_a_time(model_args)
        if PartialState().num_processes == 1:
            model_args = {"device_map": model_args.get("device", "cuda"), **model_args}
        super().__init__(**model_args)

    def load_video(self, video_path: Any, max_frames_num: int) -> Any:
        """The frames, or what stands in their way."""
        try:
            return super().load_video(video_path, max_frames_num)  # type: ignore[misc]  # of lmms-eval's class
        except Exception as error:
            raise Failed from error


class LlavaHf(_Llava, llava_hf.LlavaHf):  # type: ignore[misc]  # lmms-eval is untyped here
    """``reroute_llava_hf``."""


class LlavaHfSimple(_Llava, llava_hf_simple.LlavaHf):  # type: ignore[misc]
    """``reroute_llava_hf`` under ``--force_simple``. lmms-eval's class makes no inputs of a prompt without a picture: it would
    run those of the prompt before once more, or answer "".
    """

    def generate_until(self, requests: Any) -> Any:
        """As lmms-eval's, of prompts with pictures.

        Raises:
            RerouteError: a prompt has none.
        """
        return super().generate_until([_pictured(request) for request in requests])


def _pictured(request: Any) -> Any:
    """The request, which fails where it has no picture as lmms-eval asks for them."""
    context, options, visuals, *where = request.args

    def pictures(doc: Any) -> Any:
        found = visuals(doc)
        if not found:
            problem = f"{context!r} has no picture, and lmms-eval's simple class answers none without"
            raise RerouteError("prompt", problem, "take tasks that show pictures, or another model")
        return found

    return replace(request, arguments=(context, options, pictures, *where))


class Qwen25VL(Routing, qwen2_5_vl.Qwen2_5_VL):  # type: ignore[misc]
    """``reroute_qwen2_5_vl``."""


class Qwen25VLSimple(Routing, qwen2_5_vl_simple.Qwen2_5_VL):  # type: ignore[misc]
    """``reroute_qwen2_5_vl`` under ``--force_simple``."""


class Qwen3VL(Routing, qwen3_vl.Qwen3_VL):  # type: ignore[misc]
    """``reroute_qwen3_vl``; also loads Qwen3.5, as lmms-eval's class does."""


class Qwen3VLSimple(Routing, qwen3_vl_simple.Qwen3_VL):  # type: ignore[misc]
    """``reroute_qwen3_vl`` under ``--force_simple``."""
