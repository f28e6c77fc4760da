"""Key pairs: moto's own actions, recorded."""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, ClassVar

from cryptography.exceptions import UnsupportedAlgorithm

from instant_env.localec2.state.moto_api import (
    ActionResult,
    EC2ClientError,
    EC2Response,
    InvalidKeyPairFormatError,
)

if TYPE_CHECKING:
    from instant_env.localec2.api.services import Services


class KeyPairs(EC2Response):  # type: ignore[misc]  # moto is untyped
    """Mixed into the response class."""

    services: ClassVar[Services]

    def create_key_pair(self) -> ActionResult:
        result = super().create_key_pair()
        self._key_pair_made()
        return result

    def _key_pair_made(self) -> None:
        """Record it, an ed25519 one with the fingerprint that EC2 shows: as OpenSSH's, but padded."""
        pair = self.ec2_backend.key_pairs[self._get_param("KeyName")]
        if pair.key_type == "ed25519":
            body = base64.b64decode(pair.public_key.split()[1])
            pair.key_fingerprint = base64.b64encode(hashlib.sha256(body).digest()).decode()
        self.services.capture_key_pair(pair.key_name)

    def import_key_pair(self) -> ActionResult:
        try:
            result = super().import_key_pair()
        except (ValueError, UnsupportedAlgorithm, InvalidKeyPairFormatError) as error:
            raise EC2ClientError(
                "InvalidKey.Format", "Key is not in valid OpenSSH public key format"
            ) from error
        self._key_pair_made()
        return result

    def delete_key_pair(self) -> ActionResult:
        """By name or id; no error when there is none, as on EC2."""
        self.error_on_dryrun()
        name, key_id = self._get_param("KeyName"), self._get_param("KeyPairId")
        if not name and not key_id:
            raise EC2ClientError("MissingParameter", "The request must contain the parameter KeyName")
        pairs = self.ec2_backend.key_pairs
        pair = next((p for p in pairs.values() if (p.key_name == name if name else p.id == key_id)), None)
        if pair is not None:
            self.services.forget_key_pair(pair.id)
            self.ec2_backend.delete_key_pair(pair.key_name)
            self.ec2_backend.tags.pop(pair.id, None)
        return ActionResult({"Return": True, "KeyPairId": pair.id if pair else None})

    def describe_key_pairs(self) -> ActionResult:
        pairs, ids = self.ec2_backend.key_pairs, self._get_param("KeyPairIds", [])
        known = {pair.id: pair.key_name for pair in pairs.values()}
        for name in self._get_param("KeyNames", []):
            if name not in pairs:
                raise EC2ClientError("InvalidKeyPair.NotFound", f"The key pair '{name}' does not exist")
        for key_id in ids:
            if key_id not in known:
                raise EC2ClientError("InvalidKeyPair.NotFound", f"The key pair id '{key_id}' does not exist")
        if ids:  # moto ignores them
            self.params["KeyNames"] = [known[key_id] for key_id in ids]
        return super().describe_key_pairs()
