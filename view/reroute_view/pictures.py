"""Pictures as the ``data:`` addresses that a view holds, and back."""

from __future__ import annotations

import base64
import io
from typing import Any

from reroute_spec import RerouteError

_QUALITY = 90  # of JPEG: patches stay as they are to the eye, at a tenth of a photograph's PNG


def address(frame: Any) -> str:
    """A picture [height, width, 3] of bytes, as PNG or JPEG, whichever is smaller."""
    image = _pillow("pictures")
    made = []
    for name in ("png", "jpeg"):
        file = io.BytesIO()
        image.fromarray(frame).save(file, name, quality=_QUALITY)
        made.append(f"data:image/{name};base64,{base64.b64encode(file.getvalue()).decode()}")
    return min(made, key=len)


def pixels(picture: str) -> Any:
    """The picture of an address, as Pillow has it.

    Raises:
        RerouteError: it is none.
    """
    image = _pillow("pictures")
    try:
        opened = image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2])))
        return opened.convert("RGB")
    except (OSError, ValueError, image.DecompressionBombError) as error:
        raise RerouteError("pictures", f"hold none that can be read ({error})", "give PNG or JPEG") from None


def _pillow(field: str) -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise RerouteError(field, "need Pillow", "pip install pillow") from None
    return Image
