"""Prints the folder of task files, for ``--include_path "$(python -m reroute_optimized.integrations.lmms)"``."""

from . import TASKS

print(TASKS)
