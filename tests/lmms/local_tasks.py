"""Task files over drawn pictures, and RefCOCO's own with a local file for data."""

import textwrap

from reroute_conformance.tiny import picture
from reroute_optimized.integrations.lmms import TASKS

QUESTIONS = (
    "where is the red ball ?",
    "what is under the blue box ?",
    "how many triangle are there ?",
    "describe the scene .",
)

_FUNCTIONS = """
def visual(doc):
    return [doc["image"].convert("RGB")]


def mostly(doc):
    return [] if "under" in doc["question"] else visual(doc)


def rounds(doc, lmms_eval_specific_kwargs=None, previous_output=None, round_idx=None, previous_round_info=None):
    if round_idx is None:
        return doc["question"]
    return visual(doc), "are you there ?", round_idx == 2, previous_output, None


def said(doc, results):
    return {"words": float(sum(len(answer.split()) for answer in results[0]))}
"""

_QUESTIONS = """
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {folder}/questions.parquet
test_split: test
doc_to_visual: !function functions.visual
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
output_type: generate_until
generation_kwargs:
  max_new_tokens: 12
  temperature: 0
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""

_TASKS = {
    "questions": "include: common_yaml",
    "unseen": """
        include: common_yaml
        doc_to_visual: !function functions.mostly
        """,
    "choices": """
        include: common_yaml
        output_type: multiple_choice
        doc_to_choice: ["red", "blue"]
        doc_to_target: 0
        metric_list:
          - metric: acc
            aggregation: mean
            higher_is_better: true
        """,
    "rounds": """
        include: common_yaml
        output_type: generate_until_multi_round
        doc_to_text: !function functions.rounds
        process_results: !function functions.said
        metric_list:
          - metric: words
            aggregation: mean
            higher_is_better: true
        """,
}

_REFCOCO = """
include: {tasks}/refcoco/refcoco_{family}_testA.yaml
task: local_refcoco_{family}
dataset_path: parquet
dataset_kwargs:
  data_files:
    testA: {folder}/refcoco.parquet
"""


def write(folder):
    """The folder, ready for ``--include_path``."""
    from datasets import Dataset

    pictures = [picture(320 - 20 * index, 240) for index in range(len(QUESTIONS))]
    rows = [
        {"image": image, "question": question, "answer": "red"}
        for image, question in zip(pictures, QUESTIONS, strict=True)
    ]
    Dataset.from_list(rows).to_parquet(folder / "questions.parquet")
    referred = [
        {
            "image": pictures[0],
            "answer": ["the red ball", "ball on the left"],
            "bbox": [26.0, 108.0, 80.0, 79.0],
        },
        {"image": pictures[1], "answer": ["the blue box"], "bbox": [126.0, 96.0, 60.0, 84.0]},
    ]
    Dataset.from_list(referred).to_parquet(folder / "refcoco.parquet")
    (folder / "functions.py").write_text(_FUNCTIONS)
    (folder / "common_yaml").write_text(_QUESTIONS.format(folder=folder))
    for name, text in _TASKS.items():
        (folder / f"{name}.yaml").write_text(f"task: local_{name}\n{textwrap.dedent(text)}")
    for family in ("llava", "qwen2_5_vl", "qwen3_vl"):
        (folder / f"refcoco_{family}.yaml").write_text(
            _REFCOCO.format(tasks=TASKS, family=family, folder=folder)
        )
    return folder
