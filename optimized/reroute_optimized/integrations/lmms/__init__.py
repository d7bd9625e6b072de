"""Gives lmms-eval, the evaluation harness, models that take ``reroute=`` and task files for RefCOCO.

docs/how-to/evaluate.md says how they are run. Only ``models`` and ``routing`` import lmms-eval when they are loaded, so
that the folder of task files can be asked for without it; of this package they import ``api``. To add a model, write
its chat class and its simple class in ``models.py`` and list it in ``_MODELS`` here. To add a task, write its files in
a folder of ``tasks``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

TASKS = Path(__file__).parent / "tasks"
"""The folder to give to ``--include_path``."""

_MODELS = {"llava_hf": "LlavaHf", "qwen2_5_vl": "Qwen25VL", "qwen3_vl": "Qwen3VL"}


def manifests() -> list[Any]:
    """What lmms-eval reads from the entry point ``lmms_eval.models``: a chat and a simple class of every model."""
    from lmms_eval.models.registry_v2 import ModelManifest

    models = f"{__name__}.models"
    return [
        ModelManifest(
            model_id=f"reroute_{name}",
            chat_class_path=f"{models}.{routed}",
            simple_class_path=f"{models}.{routed}Simple",
        )
        for name, routed in _MODELS.items()
    ]
