"""IAM's roles and instance profiles: as records on disk, as objects in moto, which answers IAM's calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from instant_env.localec2.records.records import Record, Tags
from instant_env.localec2.records.store import RecordStore
from instant_env.localec2.state import moto_api as moto
from instant_env.localec2.state.patterns import compiled

#: Who assumes a role that an instance profile gives to an instance.
EC2_PRINCIPAL = "ec2.amazonaws.com"


class IdentityRecord(Record):
    """What roles and profiles have in common. Their names hold characters that file names may not."""

    id: str
    name: str
    path: str
    tags: Tags = Field(default_factory=dict)
    create_date: datetime

    @property
    def key(self) -> str:
        return self.id


class RoleRecord(IdentityRecord):
    """A role with its policies."""

    kind: ClassVar[str] = "role"
    trust_policy: str
    description: str | None = None
    max_session_duration_s: int = 3600
    policies: dict[str, str] = Field(default_factory=dict)  # name -> document
    attached_policy_arns: list[str] = Field(default_factory=list)


class PolicyVersion(BaseModel):
    """One version of a policy's document."""

    model_config = ConfigDict(extra="forbid")

    id: str
    document: str
    create_date: datetime


class PolicyRecord(IdentityRecord):
    """A managed policy of this account's own."""

    kind: ClassVar[str] = "policy"
    description: str = ""
    update_date: datetime
    default_version_id: str
    next_version: int  # numbers are not used again
    versions: list[PolicyVersion]


class InstanceProfileRecord(IdentityRecord):
    """An instance profile: the container of one role."""

    kind: ClassVar[str] = "instance-profile"
    role_name: str | None = None

    @property
    def arn(self) -> str:
        return f"arn:aws:iam::{moto.ACCOUNT_ID}:instance-profile{self.path}{self.name}"


class Identities:
    """What of IAM there is here. Methods want the state's lock held."""

    def __init__(self, store: RecordStore) -> None:
        self._store = store
        self.iam: Any = moto.iam_backend()
        self.roles: dict[str, RoleRecord] = {}
        self.profiles: dict[str, InstanceProfileRecord] = {}
        self.policies: dict[str, PolicyRecord] = {}
        self._knows_all = False

    def load(self) -> None:
        """Show in moto what is on the disk, and nothing else."""
        for table in (self.roles, self.profiles, self.iam.roles, self.iam.instance_profiles):
            table.clear()
        for arn in [arn for arn, policy in self.iam.managed_policies.items() if _is_own(policy)]:
            del self.iam.managed_policies[arn]
        self.policies.clear()
        for policy in self._store.load_all(PolicyRecord):
            self.policies[policy.name] = policy
            managed = _moto_policy(policy)
            self.iam.managed_policies[managed.arn] = managed
        for role in self._store.load_all(RoleRecord):
            self.roles[role.name] = role
            self.iam.roles[role.id] = self._moto_role(role)
        for profile in self._store.load_all(InstanceProfileRecord):
            self.profiles[profile.name] = profile
            self.iam.instance_profiles[profile.name] = self._moto_profile(profile)

    def capture(self, write: Callable[[Record], None]) -> None:
        """Record what moto has now, after a call that changed something; what ``write`` raises is raised."""
        roles = {role.name: _role(role) for role in self.iam.roles.values()}
        profiles = {item.name: _profile(item) for item in self.iam.instance_profiles.values()}
        own = [item for item in self.iam.managed_policies.values() if _is_own(item)]
        policies = {item.name: _policy(item) for item in own}
        self._record(self.policies, policies, write)
        self._record(self.roles, roles, write)
        self._record(self.profiles, profiles, write)
        self.roles, self.profiles, self.policies = roles, profiles, policies

    def _record(
        self,
        before: Mapping[str, IdentityRecord],
        after: Mapping[str, IdentityRecord],
        write: Callable[[Record], None],
    ) -> None:
        for record in after.values():
            if record != before.get(record.name):
                write(record)
        remaining_ids = {record.id for record in after.values()}
        for record in before.values():
            if record.id not in remaining_ids:
                self._store.delete(type(record), record.key)

    def know_policy(self, arn: str) -> None:
        """Let moto have one of AWS's own policies, if it is one: to load all 1,500 takes long."""
        if arn not in self.iam.managed_policies and (policy := moto.aws_managed_policy(arn)) is not None:
            self.iam.managed_policies[arn] = policy

    def know_all_policies(self) -> None:
        """Let moto have all of AWS's own policies: who lists them looks for one by its name."""
        if not self._knows_all:
            for policy in moto.aws_managed_policies():
                self.iam.managed_policies.setdefault(policy.arn, policy)
            self._knows_all = True

    def _moto_role(self, record: RoleRecord) -> Any:
        role = moto.iam_models.Role(
            moto.ACCOUNT_ID, "aws", record.id, record.name, record.trust_policy, record.path, None,
            record.description, _tag_list(record.tags), record.max_session_duration_s,
        )  # fmt: skip
        role.create_date = record.create_date.replace(tzinfo=None)
        role.policies = dict(record.policies)
        for arn in record.attached_policy_arns:
            self.know_policy(arn)
            if (policy := self.iam.managed_policies.get(arn)) is not None:
                policy.attach_to(role)
        return role

    def _moto_profile(self, record: InstanceProfileRecord) -> Any:
        role = self.roles.get(record.role_name or "")
        roles = [self.iam.roles[role.id]] if role else []
        profile = moto.iam_models.InstanceProfile(
            moto.ACCOUNT_ID, "aws", record.id, record.name, record.path, roles, _tag_list(record.tags)
        )
        profile.create_date = record.create_date.replace(tzinfo=None)
        return profile

    def allows(self, role: RoleRecord, action: str) -> bool:
        """Whether a role's policies allow an action (``ec2:DescribeInstances``) on something.

        Statements count by their actions: an Allow whatever its resources and conditions are, a Deny only
        when it has none. So what is refused here is refused on AWS too, but not the reverse.
        """
        documents = [*role.policies.values(), *self._attached_documents(role)]
        statements = [statement for document in documents for statement in _statements(document)]
        if any(_denies(statement, action) for statement in statements):
            return False
        return any(item.get("Effect") == "Allow" and _covers(item, action) for item in statements)

    def _attached_documents(self, role: RoleRecord) -> Iterator[str]:
        for arn in role.attached_policy_arns:
            policy = self.iam.managed_policies.get(arn)
            for version in policy.versions if policy is not None else ():
                if version.is_default:
                    yield version.document


def trusts_ec2(role: RoleRecord) -> bool:
    """Whether the role's trust policy lets instances assume it."""
    return any(
        statement.get("Effect") == "Allow"
        and _covers(statement, "sts:AssumeRole")
        and isinstance(principal := statement.get("Principal"), dict)
        and EC2_PRINCIPAL in _listed(principal.get("Service"))
        for statement in _statements(role.trust_policy)
    )


def _statements(document: str) -> list[dict[str, Any]]:
    content = json.loads(document)
    return [item for item in _listed(content.get("Statement")) if isinstance(item, dict)]


def _listed(value: Any) -> list[Any]:
    """IAM's JSON has one thing where it could have a list of one."""
    return [] if value is None else value if isinstance(value, list) else [value]


def _covers(statement: dict[str, Any], action: str) -> bool:
    """Actions are compared without regard to case; * and ? are wildcards."""

    def matches(patterns: list[Any]) -> bool:
        return any(compiled(str(pattern), ignore_case=True).fullmatch(action) for pattern in patterns)

    if "NotAction" in statement:
        return not matches(_listed(statement["NotAction"]))
    return matches(_listed(statement.get("Action")))


def _denies(statement: dict[str, Any], action: str) -> bool:
    everywhere = _listed(statement.get("Resource")) == ["*"] and not statement.get("Condition")
    return statement.get("Effect") == "Deny" and everywhere and _covers(statement, action)


def _role(role: Any) -> RoleRecord:
    return RoleRecord(
        id=role.id, name=role.name, path=role.path, trust_policy=role.assume_role_policy_document,
        description=role.description, max_session_duration_s=int(role.max_session_duration),
        policies=dict(role.policies), attached_policy_arns=sorted(role.managed_policies),
        tags={tag["Key"]: tag["Value"] for tag in role.tags}, create_date=role.create_date,
    )  # fmt: skip


def _profile(profile: Any) -> InstanceProfileRecord:
    return InstanceProfileRecord(
        id=profile.id, name=profile.name, path=profile.path,
        role_name=profile.roles[0].name if profile.roles else None,
        tags={tag["Key"]: tag["Value"] for tag in profile.tags}, create_date=profile.create_date,
    )  # fmt: skip


def _is_own(policy: Any) -> bool:
    """Whether a policy is this account's, and not one of AWS's."""
    return not isinstance(policy, moto.iam_models.AWSManagedPolicy)


def _policy(policy: Any) -> PolicyRecord:
    return PolicyRecord(
        id=policy.id, name=policy.name, path=policy.path, description=policy.description,
        tags={tag["Key"]: tag["Value"] for tag in policy.tags.values()}, create_date=policy.create_date,
        update_date=policy.update_date, default_version_id=policy.default_version_id,
        next_version=policy.next_version_num,
        versions=[
            PolicyVersion(id=item.version_id, document=item.document, create_date=item.create_date)
            for item in policy.versions
        ],
    )  # fmt: skip


def _moto_policy(record: PolicyRecord) -> Any:
    policy = moto.iam_models.ManagedPolicy(
        record.name, account_id=moto.ACCOUNT_ID, region="aws", path=record.path,
        description=record.description, default_version_id=record.default_version_id,
        create_date=record.create_date.replace(tzinfo=None),
        update_date=record.update_date.replace(tzinfo=None),
        tags={key.lower(): {"Key": key, "Value": value} for key, value in record.tags.items()},
    )  # fmt: skip
    policy.id, policy.next_version_num = record.id, record.next_version
    policy.versions = [
        moto.iam_models.PolicyVersion(
            policy.arn, item.document, item.id == record.default_version_id, item.id,
            item.create_date.replace(tzinfo=None),
        )
        for item in record.versions
    ]  # fmt: skip
    return policy


def _tag_list(tags: Tags) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]
