"""Another name of :mod:`reroute_conformance.tiny.qwen`, which scripts outside this repository import."""

import sys

from .tiny import qwen

sys.modules[__name__] = qwen
