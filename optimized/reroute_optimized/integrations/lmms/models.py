"""Routes lmms-eval's own model classes of LLaVA, Qwen2.5-VL and Qwen3-VL.

Only lmms-eval imports this module, because it finds the classes by their manifests. A chat class takes the messages
that a task makes. A simple class, which ``--force_simple`` asks for, takes a text and its pictures.
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
    """A base class with the changes that both of lmms-eval's LLaVA classes need beside the routing.

    lmms-eval asserts batches of one only when it generates, so a larger ``batch_size`` is refused here before the model
    is loaded. lmms-eval answers "" where a video cannot be read, so the error is raised here instead. For one process
    lmms-eval has ``device_map=""``, which transformers 5 refuses, so the device is given here.
    """

    def __init__(self, **model_args: Any) -> None:
        one_at_a_time(model_args)
        if PartialState().num_processes == 1:
            model_args = {"device_map": model_args.get("device", "cuda"), **model_args}
        super().__init__(**model_args)

    def load_video(self, video_path: Any, max_frames_num: int) -> Any:
        """The frames of a video. An error that prevents reading them is carried past lmms-eval's handlers."""
        try:
            return super().load_video(video_path, max_frames_num)  # type: ignore[misc]  # of lmms-eval's class
        except Exception as error:
            raise Failed from error


class LlavaHf(_Llava, llava_hf.LlavaHf):  # type: ignore[misc]  # lmms-eval is untyped here
    """The model ``reroute_llava_hf``."""


class LlavaHfSimple(_Llava, llava_hf_simple.LlavaHf):  # type: ignore[misc]
    """The model ``reroute_llava_hf`` under ``--force_simple``, which refuses a prompt without a picture.

    lmms-eval's class makes no inputs of such a prompt. It would run the inputs of the prompt before once more, or
    answer "".
    """

    def generate_until(self, requests: Any) -> Any:
        """Generate as lmms-eval's class does, for prompts with pictures.

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
    """The model ``reroute_qwen2_5_vl``."""


class Qwen25VLSimple(Routing, qwen2_5_vl_simple.Qwen2_5_VL):  # type: ignore[misc]
    """The model ``reroute_qwen2_5_vl`` under ``--force_simple``."""


class Qwen3VL(Routing, qwen3_vl.Qwen3_VL):  # type: ignore[misc]
    """The model ``reroute_qwen3_vl``, which also loads Qwen3.5, as lmms-eval's class does."""


class Qwen3VLSimple(Routing, qwen3_vl_simple.Qwen3_VL):  # type: ignore[misc]
    """The model ``reroute_qwen3_vl`` under ``--force_simple``."""
