"""Security groups: moto's own actions, recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from instant_env.localec2.api.pages import page
from instant_env.localec2.instances.admission import no_default_vpc
from instant_env.localec2.state.moto_api import ActionResult, EC2ClientError, EC2Response, EmptyResult

if TYPE_CHECKING:
    from instant_env.localec2.api.services import Services


class SecurityGroups(EC2Response):  # type: ignore[misc]  # moto is untyped
    """Mixed into the response class."""

    services: ClassVar[Services]

    def _group(self) -> Any:
        """The group that the request names."""
        name, group_id = self._get_param("GroupName"), self._get_param("GroupId")
        group = (
            self.ec2_backend.get_security_group_from_id(group_id)
            if group_id
            else self.ec2_backend.get_security_group_from_name(name, self.ec2_backend.default_vpc.id)
        )
        if group is None:
            raise _not_found(group_id or name)
        return group

    def describe_security_groups(self) -> ActionResult:
        """moto selects."""
        for group_id in self._get_param("GroupIds", []):
            if self.ec2_backend.get_security_group_from_id(group_id) is None:
                raise _not_found(group_id)
        names = {group.name for group in self.ec2_backend.groups[self.ec2_backend.default_vpc.id].values()}
        for name in self._get_param("GroupNames", []):
            if name not in names:
                raise _not_found(name)
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
        if not vpc_id and not self.services.state.strictness.switches.default_vpc:
            raise no_default_vpc()
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


def _not_found(name: str) -> EC2ClientError:
    return EC2ClientError("InvalidGroup.NotFound", f"The security group '{name}' does not exist")
