"""Key pairs and security groups: moto's own actions, recorded, and applied to machines."""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Any, ClassVar

from cryptography.exceptions import UnsupportedAlgorithm

from instant_env.localec2.api.pages import page
from instant_env.localec2.state.moto_api import (
    ActionResult,
    EC2ClientError,
    EC2Response,
    EmptyResult,
    InvalidKeyPairFormatError,
)

if TYPE_CHECKING:
    from instant_env.localec2.api.services import Services


class KeysAndGroups(EC2Response):  # type: ignore[misc]  # moto is untyped
    """Mixed into the response class."""

    services: ClassVar[Services]

    # Key pairs

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

    # Security groups

    def _group(self) -> Any:
        """The group that the request names."""
        name, group_id = self._get_param("GroupName"), self._get_param("GroupId")
        group = (
            self.ec2_backend.get_security_group_from_id(group_id)
            if group_id
            else self.ec2_backend.get_security_group_from_name(name, self.ec2_backend.default_vpc.id)
        )
        if group is None:
            raise EC2ClientError(
                "InvalidGroup.NotFound", f"The security group '{group_id or name}' does not exist"
            )
        return group

    def describe_security_groups(self) -> ActionResult:
        """moto selects, and gives all at once."""
        result = super().describe_security_groups()
        groups = sorted(result.result["SecurityGroups"], key=lambda group: str(group.id))
        items, token = page(
            groups, self._get_param("NextToken"), self._get_param("MaxResults"), lambda group: str(group.id)
        )
        return ActionResult({"SecurityGroups": items, "NextToken": token})

    def create_security_group(self) -> ActionResult:
        vpc_id = self._get_param("VpcId")
        if vpc_id and vpc_id not in self.ec2_backend.vpcs:
            raise EC2ClientError("InvalidVpcID.NotFound", f"The vpc ID '{vpc_id}' does not exist")
        result = super().create_security_group()
        self.services.capture_group(result.result["GroupId"])
        return result

    def delete_security_group(self) -> ActionResult:
        group = self._group()
        if group.is_default:
            raise EC2ClientError(
                "CannotDelete",
                f'the specified group: "{group.id}" name: "default" cannot be deleted by a user',
            )
        users = [
            instance.id
            for instance in self.services.state.instances.values()
            if instance.state != "terminated" and group.id in instance.security_group_ids
        ]
        users += [
            record.id
            for record in self.services.state.interfaces.values()
            if group.id in record.security_group_ids
        ]
        referring = [
            other.id
            for other in self.ec2_backend.describe_security_groups()
            if other.id != group.id
            and any(
                rule.source_group.get("GroupId") == group.id
                for rule in [*other.ingress_rules, *other.egress_rules]
            )
        ]
        if users or referring:
            raise EC2ClientError("DependencyViolation", f"resource {group.id} has a dependent object")
        self.error_on_dryrun()
        self.services.forget_group(group.id)
        self.ec2_backend.delete_security_group(group_id=group.id)
        self.ec2_backend.tags.pop(group.id, None)
        return EmptyResult()

    def _rules_changed(self, group_id: str) -> None:
        self.services.capture_group(group_id)
        self.services.lifecycle.refresh_network()

    def authorize_security_group_ingress(self) -> ActionResult:
        group_id = self._group().id
        result = super().authorize_security_group_ingress()
        self._rules_changed(group_id)
        return result

    def revoke_security_group_ingress(self) -> ActionResult:
        group_id = self._group().id
        result = super().revoke_security_group_ingress()
        self._rules_changed(group_id)
        return result

    def authorize_security_group_egress(self) -> ActionResult:
        group_id = self._group().id
        result = super().authorize_security_group_egress()
        self._rules_changed(group_id)
        return result

    def revoke_security_group_egress(self) -> ActionResult:
        group_id = self._group().id
        result = super().revoke_security_group_egress()
        self._rules_changed(group_id)
        return result
