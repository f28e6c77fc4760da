"""Launch templates as records, and the look-ups of them that launches need."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from instant_env.localec2.records.records import Record, ResourceRecord
from instant_env.localec2.records.store import RecordStore
from instant_env.localec2.state.moto_api import EC2ClientError


class TemplateVersion(BaseModel):
    """One version: parameters of RunInstances, by the names of their members."""

    model_config = ConfigDict(extra="forbid")

    number: int
    description: str | None
    create_time: datetime
    data: dict[str, Any]


class TemplateRecord(ResourceRecord):
    """A launch template with its versions."""

    kind: ClassVar[str] = "launch-template"
    name: str
    create_time: datetime
    default_version: int = 1
    next_version: int = 2  # numbers are not used again
    versions: list[TemplateVersion]
    client_token: str | None = None
    request_digest: str = ""

    @property
    def latest_version(self) -> int:
        return max(version.number for version in self.versions)


class LaunchTemplates:
    """All launch templates. Methods want the state's lock held."""

    def __init__(self, store: RecordStore) -> None:
        self._store = store
        self.records: dict[str, TemplateRecord] = {}

    def load(self) -> None:
        self.records = {record.id: record for record in self._store.load_all(TemplateRecord)}

    def forget(self, record: Record) -> None:
        self.records.pop(record.key, None)

    def find(self, template_id: str | None, name: str | None) -> TemplateRecord:
        """The template of this id or name: one of them is given. Raises EC2ClientError."""
        if bool(template_id) == bool(name):
            raise EC2ClientError(
                "InvalidParameterCombination" if name else "MissingParameter",
                "Exactly one of launch template ID and launch template name must be given",
            )
        for record in self.records.values():
            if template_id in (None, "", record.id) and name in (None, "", record.name):
                return record
        if template_id:
            raise EC2ClientError(
                "InvalidLaunchTemplateId.NotFound",
                f"The specified launch template, with template ID {template_id}, does not exist.",
            )
        raise EC2ClientError(
            "InvalidLaunchTemplateName.NotFoundException",
            f"The specified launch template, with template name {name}, does not exist.",
        )

    @staticmethod
    def version(record: TemplateRecord, text: str | None) -> TemplateVersion:
        """A version by its number, `$Default` (or none given) or `$Latest`. Raises EC2ClientError."""
        numbers = {None: record.default_version, "": record.default_version}
        numbers |= {"$Default": record.default_version, "$Latest": record.latest_version}
        number = numbers.get(text) or (int(text) if text and text.isascii() and text.isdigit() else 0)
        for version in record.versions:
            if version.number == number:
                return version
        raise EC2ClientError(
            "InvalidLaunchTemplateId.VersionNotFound",
            f"Could not find the specified version {text} for the launch template with ID {record.id}.",
        )

    def merged(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of a launch over those of its template. Raises EC2ClientError.

        A parameter of the request takes the place of the template's; tags are merged by key, block devices
        by name (EC2 User Guide, "Launch instances from a launch template").
        """
        named = params.get("LaunchTemplate")
        if not named:
            return dict(params)
        record = self.find(named.get("LaunchTemplateId"), named.get("LaunchTemplateName"))
        data = self.version(record, named.get("Version")).data
        if any(params.get(name) for name in ("NetworkInterfaces", "SecurityGroupIds", "SecurityGroups")):
            groups = ("NetworkInterfaces", "SecurityGroupIds", "SecurityGroups")
            data = {name: value for name, value in data.items() if name not in groups}
        merged = {**data, **{name: value for name, value in params.items() if name != "LaunchTemplate"}}
        for name, key in (("BlockDeviceMappings", "DeviceName"), ("TagSpecifications", "ResourceType")):
            if name in data and name in params:
                merged[name] = _by(key, data[name], params[name])
        return merged


def plain(value: Any) -> Any:
    """moto's structures as JSON's."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def _by(key: str, template: list[dict[str, Any]], request: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Both lists, with the request's items over the template's of the same key."""
    items = {item.get(key): item for item in template}
    for item in request:
        earlier = items.get(item.get(key))
        if earlier is not None and "Tags" in item:
            tags = {tag["Key"]: tag for tag in [*earlier.get("Tags", []), *item["Tags"]]}
            items[item.get(key)] = {**item, "Tags": list(tags.values())}
        else:
            items[item.get(key)] = item
    return list(items.values())
