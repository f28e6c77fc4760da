"""The actions on the rules of security groups: authorized, revoked, modified and described.

moto keeps the rules and shows them. Its own actions are not used: they make half of a request before they
refuse the rest, and answer with the last permission's rules only.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from instant_env.localec2.api.groups.permissions import Permission, base_of, cidr, read, source_group
from instant_env.localec2.state.moto_api import ActionResult, EC2ClientError, EC2Response

if TYPE_CHECKING:
    from instant_env.localec2.api.services import Services

#: Amazon VPC quotas: "Inbound or outbound rules per security group".
MAX_RULES = 60
_SOURCES = ("CidrIpv4", "CidrIpv6", "PrefixListId", "ReferencedGroupId")


class GroupRules(EC2Response):  # type: ignore[misc]  # moto is untyped
    """Mixed into the response class."""

    services: ClassVar[Services]

    if TYPE_CHECKING:

        def _group(self) -> Any: ...

    def authorize_security_group_ingress(self) -> ActionResult:
        return self._authorize(egress=False)

    def authorize_security_group_egress(self) -> ActionResult:
        return self._authorize(egress=True)

    def _authorize(self, *, egress: bool) -> ActionResult:
        group = self._group()
        tags = self._parse_tag_specification().get("security-group-rule", {})
        entries = read(self.ec2_backend, self.params, group.vpc_id)
        rules = _rules(group, egress)
        existing = {Permission.of(rule) for rule in rules}
        if any(permission in existing for permission, _ in entries):
            raise EC2ClientError("InvalidPermission.Duplicate", "the specified rule already exists")
        if len(rules) + len(entries) > MAX_RULES:
            raise EC2ClientError(
                "RulesPerSecurityGroupLimitExceeded",
                f"The maximum number of rules per security group has been reached: {MAX_RULES}.",
            )
        self.error_on_dryrun()
        new_rules = [
            permission.rule(self.ec2_backend, group.id, described, egress, tags)
            for permission, described in entries
        ]
        rules.extend(new_rules)
        self._rules_changed(group.id)
        return ActionResult({"Return": True, "SecurityGroupRules": new_rules})

    def revoke_security_group_ingress(self) -> ActionResult:
        return self._revoke(egress=False)

    def revoke_security_group_egress(self) -> ActionResult:
        return self._revoke(egress=True)

    def _revoke(self, *, egress: bool) -> ActionResult:
        """By ids or by permissions. The default VPC's groups need not have the latter (API reference)."""
        group = self._group()
        rules = _rules(group, egress)
        unknown: list[Permission] = []
        if ids := self._get_param("SecurityGroupRuleIds", []):
            revoked = [self._rule(group, rule_id, egress) for rule_id in dict.fromkeys(ids)]
        else:
            rule_of = {Permission.of(rule): rule for rule in rules}
            permissions = [permission for permission, _ in read(self.ec2_backend, self.params, group.vpc_id)]
            unknown = [permission for permission in permissions if permission not in rule_of]
            revoked = [rule_of[permission] for permission in permissions if permission in rule_of]
            if unknown and group.vpc_id != self.ec2_backend.default_vpc.id:
                raise EC2ClientError(
                    "InvalidPermission.NotFound", "The specified rule does not exist in this security group."
                )
        self.error_on_dryrun()
        for rule in revoked:
            rules[:] = [item for item in rules if item is not rule]  # moto's rules compare by what they admit
            self.ec2_backend.tags.pop(rule.id, None)
        self._rules_changed(group.id)
        return ActionResult(
            {
                "Return": True,
                "RevokedSecurityGroupRules": [_revoked(rule) for rule in revoked],
                "UnknownIpPermissions": [permission.as_structure() for permission in unknown],
            }
        )

    def modify_security_group_rules(self) -> ActionResult:
        group = self._group()
        changes = []
        for item in self._get_param("SecurityGroupRules", []):
            rule = self._rule(group, item.get("SecurityGroupRuleId"))
            request = item.get("SecurityGroupRule") or {}
            changes.append((rule, self._modified(group, rule, request), request.get("Description")))
        if not changes:
            raise EC2ClientError(
                "MissingParameter", "The request must contain the parameter SecurityGroupRule"
            )
        self._check_no_duplicates(group, {rule.id: permission for rule, permission, _ in changes})
        self.error_on_dryrun()
        for rule, permission, described in changes:
            new = permission.rule(self.ec2_backend, group.id, described, rule.is_egress)
            self.ec2_backend.tags.pop(new.id, None)
            rule.ip_protocol, rule.from_port, rule.to_port = new.ip_protocol, new.from_port, new.to_port
            rule.ip_range, rule.source_group = new.ip_range, new.source_group
        self._rules_changed(group.id)
        return ActionResult({"Return": True})

    def _modified(self, group: Any, rule: Any, request: dict[str, Any]) -> Permission:
        """What a rule is to admit. Of which kind its source is stays (API_ModifySecurityGroupRules)."""
        kinds = [name for name in _SOURCES if request.get(name)]
        if len(kinds) != 1:
            raise EC2ClientError(
                "InvalidParameterCombination" if kinds else "MissingParameter",
                f"A rule has exactly one of {', '.join(_SOURCES)}, not {len(kinds)}",
            )
        base = base_of(request.get("IpProtocol"), request.get("FromPort"), request.get("ToPort"))
        earlier = Permission.of(rule)
        match kinds[0]:
            case "CidrIpv4" if earlier.cidr:
                return replace(base, cidr=cidr(request["CidrIpv4"], 4))
            case "CidrIpv6" if earlier.cidr_v6:
                return replace(base, cidr_v6=cidr(request["CidrIpv6"], 6))
            case "ReferencedGroupId" if earlier.group_id:
                pair = {"GroupId": request["ReferencedGroupId"]}
                return replace(base, group_id=source_group(self.ec2_backend, pair, group.vpc_id))
        raise EC2ClientError(
            "InvalidParameterValue",
            f"Invalid rule type for security group rule '{rule.id}'. You may not specify {kinds[0]} for it.",
        )

    @staticmethod
    def _check_no_duplicates(group: Any, changes: dict[str, Permission]) -> None:
        for egress in (False, True):
            after = [changes.get(rule.id) or Permission.of(rule) for rule in _rules(group, egress)]
            if len(set(after)) < len(after):
                raise EC2ClientError("InvalidPermission.Duplicate", "the specified rule already exists")

    def update_security_group_rule_descriptions_ingress(self) -> ActionResult:
        return self._describe_rules(egress=False)

    def update_security_group_rule_descriptions_egress(self) -> ActionResult:
        return self._describe_rules(egress=True)

    def _describe_rules(self, *, egress: bool) -> ActionResult:
        """A description that is left out is removed."""
        group = self._group()
        described = self._get_param("SecurityGroupRuleDescriptions", [])
        if bool(described) == bool(self._get_param("IpPermissions")):
            raise EC2ClientError(
                "InvalidParameterCombination",
                "Give either IpPermissions or SecurityGroupRuleDescriptions",
            )
        changes = [
            (self._rule(group, item.get("SecurityGroupRuleId"), egress), item.get("Description"))
            for item in described
        ]
        if not described:
            rule_of = {Permission.of(rule): rule for rule in _rules(group, egress)}
            for permission, text in read(self.ec2_backend, self.params, group.vpc_id):
                if permission not in rule_of:
                    raise EC2ClientError(
                        "InvalidPermission.NotFound",
                        "The specified rule does not exist in this security group.",
                    )
                changes.append((rule_of[permission], text))
        self.error_on_dryrun()
        for rule, text in changes:
            source = rule.source_group or rule.ip_range
            source.pop("Description", None)
            if text:
                source["Description"] = text
        self._rules_changed(group.id)
        return ActionResult({"Return": True})

    @staticmethod
    def _rule(group: Any, rule_id: str | None, egress: bool | None = None) -> Any:
        """A rule of the group by its id. Raises EC2ClientError."""
        for rule in [*group.ingress_rules, *group.egress_rules]:
            if rule.id == rule_id and egress in (None, rule.is_egress):
                return rule
        raise EC2ClientError(
            "InvalidSecurityGroupRuleId.NotFound", f"The security group rule ID '{rule_id}' does not exist"
        )

    def _rules_changed(self, group_id: str) -> None:
        self.services.capture_group(group_id)
        self.services.lifecycle.refresh_network()


def _rules(group: Any, egress: bool) -> list[Any]:
    rules: list[Any] = group.egress_rules if egress else group.ingress_rules
    return rules


def _revoked(rule: Any) -> dict[str, Any]:
    structure = {
        "SecurityGroupRuleId": rule.id, "GroupId": rule.group_id, "IsEgress": rule.is_egress,
        "IpProtocol": rule.ip_protocol,
        "FromPort": -1 if rule.from_port is None else rule.from_port,
        "ToPort": -1 if rule.to_port is None else rule.to_port,
        "CidrIpv4": rule.ip_range.get("CidrIp"), "CidrIpv6": rule.ip_range.get("CidrIpv6"),
        "ReferencedGroupId": rule.source_group.get("GroupId"),
        "Description": (rule.source_group or rule.ip_range).get("Description"),
    }  # fmt: skip
    return {name: value for name, value in structure.items() if value is not None}
