"""Offline, and with data sets in a folder that goes: both are read when the libraries are imported."""

import importlib.util
import os
import tempfile

if importlib.util.find_spec("lmms_eval") is not None:
    _HOME = tempfile.TemporaryDirectory()
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": _HOME.name}
