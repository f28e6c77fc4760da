"""What XML 1.0 can hold: answers of the query protocols are XML, and a listing must never be ill-formed."""

from __future__ import annotations

import re
from xml.sax.saxutils import escape

#: Everything but the characters of XML 1.0 (its section 2.2): control characters, surrogates, U+FFFE.
_IMPOSSIBLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
#: A reader turns a carriage return into a line feed (section 2.11), unless it is written as a reference.
_REFERENCES = {"\r": "&#13;"}


def impossible(text: str) -> str | None:
    """The first character that XML cannot hold, as ``U+0007``; None when there is none."""
    match = _IMPOSSIBLE.search(text)
    return f"U+{ord(match[0]):04X}" if match else None


def xml_text(text: str) -> str:
    """Text between two tags. What XML cannot hold is replaced by U+FFFD, the replacement character."""
    return escape(_IMPOSSIBLE.sub("\ufffd", text), _REFERENCES)
