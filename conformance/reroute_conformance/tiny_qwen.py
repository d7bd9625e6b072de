"""Another name of :mod:`reroute_conformance.tiny.qwen`, which scripts outside this repository import."""

import sys

from .tiny import qwen
from .tiny.qwen import qwen_inputs as qwen_inputs
from .tiny.qwen import tiny_qwen as tiny_qwen

sys.modules[__name__] = qwen
