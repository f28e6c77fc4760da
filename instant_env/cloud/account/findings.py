"""One piece of an account or one check of it, as every verb about accounts answers."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Finding:
    """One piece or check. ``state``: there | made | missing | removed | ok | trouble | unfit | unknown."""

    what: str
    name: str
    state: str
    detail: str = ""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)
