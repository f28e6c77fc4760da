"""The actions on launch templates."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar

from instant_env.localec2.state.client_tokens import records_of_token, request_digest
from instant_env.localec2.state.filters import matches
from instant_env.localec2.state.launch_templates import TemplateRecord, TemplateVersion, plain
from instant_env.localec2.state.moto_api import (
    ACCOUNT_ID,
    ActionResult,
    EC2ClientError,
    EC2Response,
    new_id,
)
from instant_env.localec2.state.state import now

if TYPE_CHECKING:
    from instant_env.localec2.api.services import Services

#: API_CreateLaunchTemplate, LaunchTemplateName.
_NAME = re.compile(r"[a-zA-Z0-9().\-/_]{3,128}")
_CREATED_BY = f"arn:aws:iam::{ACCOUNT_ID}:user/localec2"
_FILTERS = {"create-time": "CreateTime", "launch-template-name": "LaunchTemplateName"}


class LaunchTemplateActions(EC2Response):  # type: ignore[misc]  # moto is untyped
    """Mixed into the response class."""

    services: ClassVar[Services]

    def create_launch_template(self) -> ActionResult:
        templates = self.services.state.launch_templates
        token, digest = self._get_param("ClientToken"), request_digest(self.querystring)
        if earlier := records_of_token(templates.records.values(), token, digest):
            return ActionResult({"LaunchTemplate": _template(earlier[0])})
        name = self._get_param("LaunchTemplateName") or ""
        if not _NAME.fullmatch(name):
            raise EC2ClientError(
                "InvalidLaunchTemplateName.MalformedException",
                "A launch template name must be between 3 and 128 characters, and may contain letters, "
                "numbers and ().-/_",
            )
        if any(record.name == name for record in templates.records.values()):
            raise EC2ClientError(
                "InvalidLaunchTemplateName.AlreadyExistsException", "Launch template name already in use."
            )
        self.error_on_dryrun()
        record = TemplateRecord(
            id=new_id("lt"), name=name, create_time=now(), client_token=token, request_digest=digest,
            tags=self._parse_tag_specification().get("launch-template", {}),
            versions=[self._version(1, self._data())],
        )  # fmt: skip
        self.services.state.save(record)
        return ActionResult({"LaunchTemplate": _template(record)})

    def create_launch_template_version(self) -> ActionResult:
        record = self._template()
        data = self._data()
        if source := self._get_param("SourceVersion"):
            data = self.services.state.launch_templates.version(record, source).data | data
        self.error_on_dryrun()
        version = self._version(record.next_version, data)
        record.versions = [*record.versions, version]
        record.next_version += 1
        self.services.state.save(record)
        return ActionResult({"LaunchTemplateVersion": _version_structure(record, version)})

    def modify_launch_template(self) -> ActionResult:
        record = self._template()
        version = self.services.state.launch_templates.version(record, self._get_param("DefaultVersion"))
        self.error_on_dryrun()
        record.default_version = version.number
        self.services.state.save(record)
        return ActionResult({"LaunchTemplate": _template(record)})

    def delete_launch_template(self) -> ActionResult:
        record = self._template()
        self.error_on_dryrun()
        self.services.state.forget(record)
        return ActionResult({"LaunchTemplate": _template(record)})

    def delete_launch_template_versions(self) -> ActionResult:
        record, templates = self._template(), self.services.state.launch_templates
        self.error_on_dryrun()
        deleted, failed = [], []
        for text in self._get_param("Versions", []):
            try:
                version = templates.version(record, text)
                if version.number == record.default_version:
                    raise EC2ClientError(
                        "unexpectedError", "The default version of a launch template cannot be deleted."
                    )
            except EC2ClientError as error:
                failed.append(
                    {
                        "LaunchTemplateId": record.id, "LaunchTemplateName": record.name,
                        "VersionNumber": int(text) if text.isdigit() else 0,
                        "ResponseError": {
                            "Code": "launchTemplateVersionDoesNotExist", "Message": error.message
                        },
                    }
                )  # fmt: skip
                continue
            record.versions = [item for item in record.versions if item.number != version.number]
            deleted.append(
                {
                    "LaunchTemplateId": record.id, "LaunchTemplateName": record.name,
                    "VersionNumber": version.number,
                }
            )  # fmt: skip
        self.services.state.save(record)
        return ActionResult(
            {
                "SuccessfullyDeletedLaunchTemplateVersions": deleted,
                "UnsuccessfullyDeletedLaunchTemplateVersions": failed,
            }
        )

    def describe_launch_templates(self) -> ActionResult:
        self.error_on_dryrun()
        templates = self.services.state.launch_templates
        ids, names = self._get_param("LaunchTemplateIds", []), self._get_param("LaunchTemplateNames", [])
        selection = [templates.find(item, None) for item in ids]
        selection += [templates.find(None, item) for item in names]
        structures = [_template(item) for item in (selection if ids or names else templates.records.values())]
        for name, values in self._filters_from_querystring().items():
            if name.startswith("tag:"):
                structures = [item for item in structures if matches(values, _tags(item).get(name[4:]))]
            elif name == "tag-key":
                structures = [item for item in structures if matches(values, list(_tags(item)))]
            elif name in _FILTERS:
                structures = [item for item in structures if matches(values, item[_FILTERS[name]])]
            else:
                raise EC2ClientError("InvalidParameterValue", f"The filter '{name}' is invalid")
        return ActionResult({"LaunchTemplates": structures})

    def describe_launch_template_versions(self) -> ActionResult:
        record, templates = self._template(), self.services.state.launch_templates
        if self._filters_from_querystring():
            raise EC2ClientError(
                "UnsupportedOperation", "localec2 does not support filters of DescribeLaunchTemplateVersions."
            )
        self.error_on_dryrun()
        if texts := self._get_param("Versions", []):
            versions = [templates.version(record, text) for text in texts]
        else:
            least, most = int(self._get_param("MinVersion") or 1), self._get_param("MaxVersion")
            versions = [
                item
                for item in record.versions
                if least <= item.number and (most is None or item.number <= int(most))
            ]
        return ActionResult(
            {"LaunchTemplateVersions": [_version_structure(record, item) for item in versions]}
        )

    def _template(self) -> TemplateRecord:
        return self.services.state.launch_templates.find(
            self._get_param("LaunchTemplateId"), self._get_param("LaunchTemplateName")
        )

    def _data(self) -> dict[str, Any]:
        data = self._get_param("LaunchTemplateData")
        if not data:
            raise EC2ClientError(
                "MissingParameter", "The request must contain the parameter LaunchTemplateData"
            )
        members: dict[str, Any] = plain(data)
        return members

    def _version(self, number: int, data: dict[str, Any]) -> TemplateVersion:
        description = self._get_param("VersionDescription")
        return TemplateVersion(number=number, description=description, create_time=now(), data=data)


def _tags(structure: dict[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in structure["Tags"]}


def _template(record: TemplateRecord) -> dict[str, Any]:
    return {
        "LaunchTemplateId": record.id, "LaunchTemplateName": record.name,
        "CreateTime": record.create_time.replace(tzinfo=None), "CreatedBy": _CREATED_BY,
        "DefaultVersionNumber": record.default_version, "LatestVersionNumber": record.latest_version,
        "Tags": [{"Key": key, "Value": value} for key, value in record.tags.items()],
    }  # fmt: skip


def _version_structure(record: TemplateRecord, version: TemplateVersion) -> dict[str, Any]:
    structure = {
        "LaunchTemplateId": record.id, "LaunchTemplateName": record.name, "VersionNumber": version.number,
        "VersionDescription": version.description, "CreateTime": version.create_time.replace(tzinfo=None),
        "CreatedBy": _CREATED_BY, "DefaultVersion": version.number == record.default_version,
        "LaunchTemplateData": version.data,
    }  # fmt: skip
    return {name: value for name, value in structure.items() if value is not None}
