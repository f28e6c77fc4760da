"""EC2 Instance Connect: a key that one user of a running machine finds in IMDS for a minute.

One action, SendSSHPublicKey. The key is not put into the machine: sshd there asks IMDS for it (by Amazon's
package ec2-instance-connect, or whatever the image has instead).
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import re
import uuid
from typing import TYPE_CHECKING

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from instant_env.localec2.protocol.refusal import REQUEST_ID

if TYPE_CHECKING:
    from instant_env.localec2.api.services import Services

log = logging.getLogger(__name__)

#: EC2 User Guide, requirements of Instance Connect: ED25519, and RSA of these lengths.
RSA_BITS = (2048, 3072, 4096)
#: The pattern of the API's model (InstanceOSUser).
_USER = re.compile(
    r"[A-Za-z_][A-Za-z0-9@._-]{0,30}[A-Za-z0-9$_-]?"
    r"|(?=.{2,32}$)[0-9]{1,32}[A-Za-z@._-][A-Za-z0-9@._-]*[A-Za-z0-9$_-]?"
)

Answer = tuple[int, dict[str, str], bytes]


class ConnectError(Exception):
    """A refusal; ``code`` is the name of the API's exception."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class SendKey(BaseModel):
    """The body of SendSSHPublicKey. A parameter that we do not know is refused, not overlooked."""

    model_config = ConfigDict(extra="forbid")

    instance_id: str = Field(alias="InstanceId", pattern=r"^i-[a-f0-9]{8,30}$")
    user: str = Field(alias="InstanceOSUser", min_length=1, max_length=32)
    public_key: str = Field(alias="SSHPublicKey", min_length=80, max_length=4096)
    zone: str | None = Field(default=None, alias="AvailabilityZone")


def serve(services: Services, action: str, body: bytes, caller: str) -> Answer:
    """One request of the service ``ec2-instance-connect``; takes the state's lock itself."""
    try:
        if action != "SendSSHPublicKey":
            raise ConnectError(
                "UnsupportedOperation", f"localec2 does not support Instance Connect's {action}."
            )
        request_id = str(uuid.uuid4())
        _send(services, _parsed(body), caller, request_id)
    except ConnectError as error:
        return 400, {"Content-Type": "application/x-amz-json-1.1"}, json.dumps(
            {"__type": error.code, "Message": str(error)}
        ).encode()  # fmt: skip
    answer = json.dumps({"RequestId": request_id, "Success": True}).encode()
    return 200, {"Content-Type": "application/x-amz-json-1.1", REQUEST_ID: request_id}, answer


def _parsed(body: bytes) -> SendKey:
    try:
        request = SendKey.model_validate_json(body)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"]) or "the request"
        raise ConnectError("InvalidArgsException", f"Invalid value for {where}") from error
    if not _USER.fullmatch(request.user):
        raise ConnectError("InvalidArgsException", "Invalid value for InstanceOSUser")
    return request


def _send(services: Services, request: SendKey, caller: str, request_id: str) -> None:
    key = checked_key(request.public_key)
    signer = services.state.connect.signer()
    with services.state.lock:
        instance = services.state.instances.get(request.instance_id)
        if instance is None or request.zone not in (None, instance.zone):
            raise ConnectError(
                "EC2InstanceNotFoundException",
                f"Unable to find instance {request.instance_id}"
                + (f" in {request.zone}" * bool(request.zone)),
            )
        if instance.state != "running":
            raise ConnectError(
                "EC2InstanceStateInvalidException",
                f"Instance {instance.id} is {instance.state}; only a running one can be connected to",
            )
        services.state.connect.push(signer, instance.id, request.user, key, caller, request_id)
        services.instance_changed(instance)
    log.info("a key for %s of %s, for a minute", request.user, instance.id)


def checked_key(text: str) -> str:
    """The key as a line of authorized_keys, without comment. Raises ConnectError for what is no such key."""
    try:
        line = _openssh(text)
        if len(line.splitlines()) != 1:
            raise ValueError("not one line")
        key = serialization.load_ssh_public_key(line.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConnectError("InvalidArgsException", "The SSH public key is not valid") from error
    is_supported = isinstance(key, ed25519.Ed25519PublicKey) or (
        isinstance(key, rsa.RSAPublicKey) and key.key_size in RSA_BITS
    )
    if not is_supported:
        raise ConnectError(
            "InvalidArgsException", "The SSH public key is neither ED25519 nor RSA of 2048 bits or more"
        )
    encoding = serialization.Encoding.OpenSSH
    return key.public_bytes(encoding, serialization.PublicFormat.OpenSSH).decode()


def _openssh(text: str) -> str:
    """SSH2's format (RFC 4716) as OpenSSH's; anything else as it is."""
    lines = [line.strip() for line in text.strip().splitlines()]
    if len(lines) < 3 or lines[0] != "---- BEGIN SSH2 PUBLIC KEY ----":
        return text.strip()
    blob = "".join(line for line in lines[1:-1] if ":" not in line)
    try:
        raw = base64.b64decode(blob, validate=True)
    except binascii.Error as error:
        raise ValueError("no base64") from error
    length = int.from_bytes(raw[:4], "big")
    return f"{raw[4 : 4 + length].decode('ascii', 'replace')} {blob}"
