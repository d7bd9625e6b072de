"""Prints the folder of task files: ``--include_path "$(python -m reroute_optimized.integrations.lmms)"``."""

from . import TASKS

print(TASKS)
