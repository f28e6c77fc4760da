"""Key pairs: moto's own actions, recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from instant_env.localec2.api.requests.public_keys import (
    created_rsa_fingerprint,
    ed25519_fingerprint,
    imported,
)
from instant_env.localec2.state.moto_api import (
    ActionResult,
    EC2ClientError,
    EC2Response,
)

if TYPE_CHECKING:
    from instant_env.localec2.api.services import Services


class KeyPairs(EC2Response):  # type: ignore[misc]  # moto is untyped
    """Mixed into the response class."""

    services: ClassVar[Services]

    def create_key_pair(self) -> ActionResult:
        result = super().create_key_pair()
        pair = self.ec2_backend.key_pairs[self._get_param("KeyName")]
        pair.key_fingerprint = (
            ed25519_fingerprint(pair.public_key)
            if pair.key_type == "ed25519"
            else created_rsa_fingerprint(pair.material)
        )
        self.services.capture_key_pair(pair.key_name)
        return result

    def import_key_pair(self) -> ActionResult:
        """In whatever form it came, a key is kept as OpenSSH's line: machines get it so."""
        name, material = self._get_param("KeyName"), self._get_param("PublicKeyMaterial")
        if not name or not material:
            missing = "PublicKeyMaterial" if name else "KeyName"
            raise EC2ClientError("MissingParameter", f"The request must contain the parameter {missing}")
        key = imported(material if isinstance(material, bytes) else str(material).encode())
        self.params["PublicKeyMaterial"] = key.line.encode()
        result = super().import_key_pair()
        self.ec2_backend.key_pairs[name].key_fingerprint = key.fingerprint
        self.services.capture_key_pair(name)
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
        name_of = {pair.id: pair.key_name for pair in pairs.values()}
        for name in self._get_param("KeyNames", []):
            if name not in pairs:
                raise EC2ClientError("InvalidKeyPair.NotFound", f"The key pair '{name}' does not exist")
        for key_id in ids:
            if key_id not in name_of:
                raise EC2ClientError("InvalidKeyPair.NotFound", f"The key pair id '{key_id}' does not exist")
        if ids:  # moto ignores them
            self.params["KeyNames"] = [name_of[key_id] for key_id in ids]
        return super().describe_key_pairs()
