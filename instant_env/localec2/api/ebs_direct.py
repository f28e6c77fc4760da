"""The EBS direct APIs: snapshots read and written block by block, without a volume or machine (rest-json).

Not documented, and chosen here: the Reason of a refused checksum or count (INVALID_PARAMETER_VALUE).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from instant_env.errors import InstantEnvError
from instant_env.localec2.protocol.refusal import rest
from instant_env.localec2.records.journal import StorageError
from instant_env.localec2.volumes.blocks import TOKEN_LIFETIME_S
from instant_env.localec2.volumes.uploads import BLOCK_BYTES, DirectError, invalid

if TYPE_CHECKING:
    from instant_env.localec2.api.services import Services

log = logging.getLogger(__name__)

#: API_ListSnapshotBlocks, MaxResults: 100 to 10,000.
MAX_RESULTS = range(100, 10_001)
#: API_StartSnapshot, Timeout, in minutes, and its default.
DEFAULT_TIMEOUT_MIN = 60
#: The largest gp3 volume, in GiB.
MAX_VOLUME_GIB = 16_384

_ID = r"(?P<id>snap-[0-9a-f]{1,17})"
_INDEX = r"(?P<index>[0-9]{1,10})"
_ROUTES = {
    "StartSnapshot": ("POST", re.compile(r"/snapshots")),
    "PutSnapshotBlock": ("PUT", re.compile(rf"/snapshots/{_ID}/blocks/{_INDEX}")),
    "CompleteSnapshot": ("POST", re.compile(rf"/snapshots/completion/{_ID}")),
    "ListSnapshotBlocks": ("GET", re.compile(rf"/snapshots/{_ID}/blocks")),
    "GetSnapshotBlock": ("GET", re.compile(rf"/snapshots/{_ID}/blocks/{_INDEX}")),
    "ListChangedBlocks": ("GET", re.compile(rf"/snapshots/{_ID}/changedblocks")),
}

Answer = tuple[int, dict[str, str], bytes]


@dataclass(frozen=True)
class Call:
    """One request: the operation, and what its path and query say."""

    action: str
    snapshot_id: str
    block_index: int
    query: Mapping[str, str]


class _Tag(BaseModel):
    model_config = ConfigDict(extra="forbid")

    key: str = Field(alias="Key", min_length=1, max_length=127)
    value: str = Field(alias="Value", max_length=255)


class _Start(BaseModel):
    """The body of StartSnapshot. A parameter that we do not know is refused, not overlooked."""

    model_config = ConfigDict(extra="forbid")

    size_gib: int = Field(alias="VolumeSize", ge=1)
    description: str = Field(default="", alias="Description", max_length=255)
    tags: list[_Tag] = Field(default_factory=list, alias="Tags", max_length=50)
    token: str | None = Field(default=None, alias="ClientToken", max_length=255, pattern=r"^\S+$")
    encrypted: bool = Field(default=False, alias="Encrypted")
    timeout_min: int = Field(default=DEFAULT_TIMEOUT_MIN, alias="Timeout", ge=10, le=4320)


def is_route(path: str) -> bool:
    """Whether a path is of these APIs."""
    return path == "/snapshots" or path.startswith("/snapshots/")


def may_be_unsigned(method: str, path: str) -> bool:
    """Whether a signature need not cover the body: the block's own checksum is a signed header.

    The API's model says so of PutSnapshotBlock (``"authtype": "v4-unsigned-body"``).
    """
    verb, route = _ROUTES["PutSnapshotBlock"]
    return method == verb and route.fullmatch(path) is not None


def find(method: str, path: str, query: Mapping[str, str]) -> Call | None:
    """What a request asks for; None when there is no such operation."""
    for action, (verb, route) in _ROUTES.items():
        if verb == method and (match := route.fullmatch(path)):
            named = match.groupdict()
            return Call(action, named.get("id", ""), int(named.get("index", 0)), query)
    return None


def serve(services: Services, call: Call, headers: Mapping[str, str], body: bytes) -> Answer:
    """Answer one request; ``headers`` has lower-case names. No lock is held."""
    try:
        match call.action:
            case "StartSnapshot":
                return _start(services, body)
            case "PutSnapshotBlock":
                return _put(services, call, headers, body)
            case "CompleteSnapshot":
                return _complete(services, call.snapshot_id, headers)
            case "ListSnapshotBlocks":
                return _list(services, call)
            case "GetSnapshotBlock":
                return _get(services, call)
            case _:
                return _list_changed(services, call)
    except DirectError as error:
        return rest(error.status, error.code, str(error), error.reason)
    except StorageError as error:
        return rest(500, "InternalServerException", error.message)
    except (OSError, InstantEnvError) as error:
        log.error("%s %s: %s", call.action, call.snapshot_id, error)
        return rest(500, "InternalServerException", f"{call.action} failed; server.log says why.")


def _start(services: Services, body: bytes) -> Answer:
    try:
        request = _Start.model_validate_json(body)
    except ValidationError as error:
        where = str(error.errors()[0]["loc"][0]) if error.errors()[0]["loc"] else "the body"
        reason = {"VolumeSize": "INVALID_VOLUME_SIZE", "Tags": "INVALID_TAG"}.get(
            where, "INVALID_PARAMETER_VALUE"
        )
        raise invalid(reason, f"localec2 does not take this value of {where}") from error
    if request.size_gib > MAX_VOLUME_GIB:
        raise invalid("INVALID_VOLUME_SIZE", f"VolumeSize is at most {MAX_VOLUME_GIB} GiB")
    tags = {tag.key: tag.value for tag in request.tags}
    if any(key.lower().startswith("aws:") for key in tags):
        raise invalid("INVALID_TAG", "Tag keys starting with 'aws:' are reserved for internal use")
    digest = hashlib.sha256(request.model_dump_json(exclude={"token"}).encode()).hexdigest()
    with services.state.lock, services.state.request():
        snapshot = services.uploads.start(
            request.size_gib, request.description, tags, encrypted=request.encrypted,
            timeout_min=request.timeout_min, token=request.token, digest=digest,
        )  # fmt: skip
        answer = {
            "SnapshotId": snapshot.id, "OwnerId": snapshot.owner_id, "Status": snapshot.state,
            "StartTime": snapshot.start_time.timestamp(), "VolumeSize": snapshot.size_gib,
            "BlockSize": BLOCK_BYTES, "Description": snapshot.description,
            "Tags": [{"Key": key, "Value": value} for key, value in snapshot.tags.items()],
        }  # fmt: skip
    return _json(201, answer)


def _put(services: Services, call: Call, headers: Mapping[str, str], body: bytes) -> Answer:
    length = headers.get("x-amz-data-length", "")
    if length != str(BLOCK_BYTES) or len(body) != BLOCK_BYTES:
        raise invalid("INVALID_BLOCK", f"A block has {BLOCK_BYTES} bytes, and x-amz-Data-Length says so")
    if headers.get("x-amz-checksum-algorithm") != "SHA256":
        raise invalid("INVALID_PARAMETER_VALUE", "x-amz-Checksum-Algorithm is SHA256")
    digest = hashlib.sha256(body).digest()
    if _checksum(headers.get("x-amz-checksum", "")) != digest:
        raise invalid("INVALID_PARAMETER_VALUE", "The checksum is not that of the block's data")
    services.uploads.put(call.snapshot_id, call.block_index, body, digest)
    checksum = {"x-amz-Checksum": base64.b64encode(digest).decode(), "x-amz-Checksum-Algorithm": "SHA256"}
    return 201, {"Content-Type": "application/json", **checksum}, b"{}"


def _complete(services: Services, snapshot_id: str, headers: Mapping[str, str]) -> Answer:
    try:
        count = int(headers.get("x-amz-changedblockscount", ""))
    except ValueError as error:
        raise invalid("INVALID_PARAMETER_VALUE", "x-amz-ChangedBlocksCount is a number") from error
    checksum = None
    if "x-amz-checksum" in headers:
        method = headers.get("x-amz-checksum-aggregation-method")
        if (headers.get("x-amz-checksum-algorithm"), method) != ("SHA256", "LINEAR"):
            raise invalid("INVALID_PARAMETER_VALUE", "A checksum is SHA256, aggregated by LINEAR")
        checksum = _checksum(headers["x-amz-checksum"])
    snapshot = services.uploads.complete(snapshot_id, count, checksum)
    return _json(202, {"Status": snapshot.state})


def _list(services: Services, call: Call) -> Answer:
    snapshot = services.blocks.snapshot(call.snapshot_id)
    indexes, token = _page(services.blocks.indexes(snapshot), call.query)
    expiry = int(time.time()) + TOKEN_LIFETIME_S
    answer = {
        "Blocks": [
            {"BlockIndex": index, "BlockToken": services.blocks.token(snapshot.id, index, expiry)}
            for index in indexes
        ],
        "ExpiryTime": expiry, "VolumeSize": snapshot.size_gib, "BlockSize": BLOCK_BYTES, "NextToken": token,
    }  # fmt: skip
    return _json(200, {name: value for name, value in answer.items() if value is not None})


def _list_changed(services: Services, call: Call) -> Answer:
    second = services.blocks.snapshot(call.snapshot_id)
    first_id = call.query.get("firstSnapshotId")
    if first_id is None:
        differences = dict.fromkeys(services.blocks.indexes(second), (False, True))
    else:
        differences = services.blocks.changed(services.blocks.snapshot(first_id), second)
    indexes, token = _page(list(differences), call.query)
    expiry = int(time.time()) + TOKEN_LIFETIME_S
    changed = []
    for index in indexes:
        in_first, in_second = differences[index]
        block: dict[str, Any] = {"BlockIndex": index}
        if in_first and first_id is not None:
            block["FirstBlockToken"] = services.blocks.token(first_id, index, expiry)
        if in_second:
            block["SecondBlockToken"] = services.blocks.token(second.id, index, expiry)
        changed.append(block)
    answer = {
        "ChangedBlocks": changed, "ExpiryTime": expiry, "VolumeSize": second.size_gib,
        "BlockSize": BLOCK_BYTES, "NextToken": token,
    }  # fmt: skip
    return _json(200, {name: value for name, value in answer.items() if value is not None})


def _get(services: Services, call: Call) -> Answer:
    snapshot = services.blocks.snapshot(call.snapshot_id)
    services.blocks.check_token(call.query.get("blockToken", ""), snapshot.id, call.block_index)
    data = services.blocks.read(snapshot, call.block_index)
    headers = {
        "Content-Type": "application/octet-stream", "x-amz-Data-Length": str(len(data)),
        "x-amz-Checksum": base64.b64encode(hashlib.sha256(data).digest()).decode(),
        "x-amz-Checksum-Algorithm": "SHA256",
    }  # fmt: skip
    return 200, headers, data


def _page(indexes: list[int], query: Mapping[str, str]) -> tuple[list[int], str | None]:
    """The blocks of one page, and the token of the next: where it starts."""
    try:
        most = int(query.get("maxResults", MAX_RESULTS[-1]))
        start = int(query.get("startingBlockIndex", 0))
    except ValueError as error:
        raise invalid("INVALID_PARAMETER_VALUE", "maxResults and startingBlockIndex are numbers") from error
    if most not in MAX_RESULTS or start < 0:
        raise invalid("INVALID_PARAMETER_VALUE", "maxResults is 100 to 10000, startingBlockIndex 0 or more")
    if (token := query.get("pageToken")) is not None:
        try:
            start = int(base64.b64decode(token, validate=True))
        except ValueError as error:
            raise invalid("INVALID_PAGE_TOKEN", "The page token is not one of ours") from error
    rest = [index for index in indexes if index >= start]
    following = base64.b64encode(str(rest[most]).encode()).decode() if len(rest) > most else None
    return rest[:most], following


def _checksum(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise invalid("INVALID_PARAMETER_VALUE", "A checksum is base64") from error


def _json(status: int, value: dict[str, Any]) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()
