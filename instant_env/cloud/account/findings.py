"""One piece of an account or one check of it, as every verb about accounts answers."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from botocore.exceptions import BotoCoreError, ClientError

from instant_env.cloud.session import error_code


@dataclass(frozen=True)
class Finding:
    """One piece or check. ``state``: there | made | missing | removed | ok | trouble | unfit | unknown."""

    what: str
    name: str
    state: str
    detail: str = ""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def refusal(error: ClientError | BotoCoreError) -> str:
    """Why a look failed, in one line: what EC2 says beside its code may be a page."""
    if isinstance(error, ClientError):
        return f"{error.operation_name}: {error_code(error)}"
    return str(error).partition("\n")[0]
