"""What is offered where: the one region that is served, its zones, the default VPC, types of instances."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from instant_env.localec2.state.filters import matches
from instant_env.localec2.state.moto_api import ActionResult, EC2ClientError, EC2Response

#: Filter -> member of a region (API_DescribeRegions).
REGIONS = {"region-name": "RegionName", "endpoint": "Endpoint", "opt-in-status": "OptInStatus"}
#: Filter -> member of a zone (API_DescribeAvailabilityZones).
ZONES = {
    "group-name": "GroupName", "opt-in-status": "OptInStatus", "region-name": "RegionName",
    "state": "State", "zone-id": "ZoneId", "zone-name": "ZoneName", "zone-type": "ZoneType",
}  # fmt: skip
#: There is no choice about the regions and zones that are here.
OPT_IN = "opt-in-not-required"


class Places(EC2Response):  # type: ignore[misc]  # moto is untyped
    """Mixed into the response class."""

    services: ClassVar[Any]  # of the server (api/services.py, which imports this package)

    def describe_regions(self) -> ActionResult:
        """The served region: clients that go through all regions would be refused in each of the others."""
        self.error_on_dryrun()
        name = self.services.state.region
        for wanted in self._get_param("RegionNames", []):
            if wanted != name:
                raise EC2ClientError("InvalidParameterValue", f"Region not found: {wanted}")
        regions = [
            {"RegionName": item.name, "Endpoint": item.endpoint, "OptInStatus": OPT_IN}
            for item in self.ec2_backend.describe_regions([name])
        ]
        return ActionResult({"Regions": self._filtered(regions, REGIONS)})

    def describe_availability_zones(self) -> ActionResult:
        self.error_on_dryrun()
        zones: list[dict[str, Any]] = [
            {
                "ZoneName": zone.name, "ZoneId": zone.zone_id, "ZoneType": zone.zone_type,
                "State": zone.state, "RegionName": zone.region_name, "Messages": [], "OptInStatus": OPT_IN,
                # As the API's reference has them for zones that are no local ones.
                "GroupName": f"{zone.region_name}-zg-1", "NetworkBorderGroup": zone.region_name,
            }
            for zone in self.ec2_backend.describe_availability_zones()
        ]  # fmt: skip
        for parameter, member in (("ZoneNames", "ZoneName"), ("ZoneIds", "ZoneId")):
            wanted = self._get_param(parameter, [])
            if unknown := set(wanted) - {zone[member] for zone in zones}:
                raise EC2ClientError("InvalidParameterValue", f"Invalid availability zone: [{min(unknown)}]")
            zones = [zone for zone in zones if not wanted or zone[member] in wanted]
        return ActionResult({"AvailabilityZones": self._filtered(zones, ZONES)})

    def describe_account_attributes(self) -> ActionResult:
        """moto's, with the VPC that there is: its account is one of EC2-Classic, and has none."""
        result = super().describe_account_attributes()
        default = self.ec2_backend.get_default_vpc()
        values = {"supported-platforms": ["VPC"], "default-vpc": [default.id if default else "none"]}
        attributes = result.result["AccountAttributes"]
        for attribute in attributes:
            if (replacement := values.get(attribute["AttributeName"])) is not None:
                attribute["AttributeValues"] = [{"AttributeValue": value} for value in replacement]
        wanted = self._get_param("AttributeNames", []) or [item["AttributeName"] for item in attributes]
        return ActionResult(
            {"AccountAttributes": [item for item in attributes if item["AttributeName"] in wanted]}
        )

    def describe_instance_types(self) -> ActionResult:
        """moto's, without the filters at which it fails."""
        for name in self._filters_from_querystring():
            if name.startswith("instance-storage-info.disk."):
                raise self._filter_refusal(name)
        return super().describe_instance_types()

    def _filter_refusal(self, name: str) -> EC2ClientError:
        return EC2ClientError(
            "UnsupportedOperation", f"localec2 does not support the filter {name} of {self._get_action()}."
        )

    def _filtered(self, items: Iterable[dict[str, Any]], members: Mapping[str, str]) -> list[dict[str, Any]]:
        """Those that pass the request's filters. Raises EC2ClientError for one that is not in ``members``."""
        filters = self._filters_from_querystring()
        if unknown := set(filters) - set(members):
            raise self._filter_refusal(min(unknown))
        return [
            item
            for item in items
            if all(matches(values, item[members[name]]) for name, values in filters.items())
        ]
