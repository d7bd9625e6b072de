"""What the commands share: numbers that are checked as they are read, and files that are written whole or not at all."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path


def whole(least: int) -> Callable[[str], int]:
    """The type of an option that is a whole number from ``least`` on."""

    def read(text: str) -> int:
        if not text.strip().lstrip("+-").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}: give a whole number, {least} or more")
        return int(text)

    return read


def minutes(text: str) -> float:
    """The type of an option that is a time, 0 or more."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 <= found < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number of minutes, 0 or more")
    return found


def file_to_write(text: str) -> Path:
    """The type of an option that is a file to be written; its folder is made."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder: give a file")
    folder_to_write(str(path.parent))
    return path


def folder_to_write(text: str) -> Path:
    """The type of an option that is a folder to write in; it is made."""
    try:
        Path(text).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text} cannot be a folder ({error})") from None
    return Path(text)


def write(path: Path, text: str) -> None:
    """The file, or what was there before."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, "utf-8")
    part.replace(path)
