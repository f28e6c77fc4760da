"""Names that EC2 accepts for what we make, whatever they are made of."""

from __future__ import annotations

import re

#: An AMI's name is 3 to 128 letters, digits, spaces and ``( ) [ ] . / - ' @ _`` (API reference, CreateImage:
#: Name). A ``+``, as in custom-init+prealloc-eni, is refused.
_NOT_OF_IMAGES = re.compile(r"[^A-Za-z0-9()\[\] ./\-'@_]")
_IMAGE_CHARACTERS = 128


def image_name(text: str, unique: str) -> str:
    """``text-unique`` as the name of an AMI. What EC2 does not take becomes ``-``; of what is too long the
    end of ``text`` goes, so that the name stays the only one of its kind."""
    ending = f"-{unique}"
    return _NOT_OF_IMAGES.sub("-", text[: _IMAGE_CHARACTERS - len(ending)] + ending)
