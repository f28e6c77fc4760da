"""Spot instance requests: a launch on the spot market by another name, described and cancelled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from instant_env.localec2.api.base import Action
from instant_env.localec2.instances.spot import FILTERS as SPOT_FILTERS
from instant_env.localec2.records.records import InstanceRecord, SpotRequestRecord
from instant_env.localec2.state.filters import matches
from instant_env.localec2.state.moto_api import ActionResult, EC2ClientError


class SpotRequests(Action):
    """Mixed into moto's response class, which has the parameters and the backend."""

    if TYPE_CHECKING:
        params: dict[str, Any]

        def launch(self, tags: dict[str, dict[str, str]]) -> list[InstanceRecord]: ...

    def request_spot_instances(self) -> ActionResult:
        """There is capacity until an interruption, so each request is fulfilled at once."""
        tags = self._parse_tag_specification()
        self.error_on_dryrun()
        self.params = as_launch(self.params)
        requests = [self.services.spot.request(item.spot_request_id or "") for item in self.launch(tags)]
        return ActionResult({"SpotInstanceRequests": [self._spot_request(request) for request in requests]})

    def describe_spot_instance_requests(self) -> ActionResult:
        self.error_on_dryrun()
        requests = self.services.state.spot_requests
        ids = self._get_param("SpotInstanceRequestIds", [])
        selection = [self.services.spot.request(i) for i in dict.fromkeys(ids)] or list(requests.values())
        answers = [(request, self._spot_request(request)) for request in selection]
        for name, values in self._filters_from_querystring().items():
            if name.startswith("tag:"):
                answers = [(r, a) for r, a in answers if matches(values, r.tags.get(name[4:]))]
            elif name == "tag-key":
                answers = [(r, a) for r, a in answers if matches(values, list(r.tags))]
            elif name in SPOT_FILTERS:
                answers = [(r, a) for r, a in answers if matches(values, SPOT_FILTERS[name](a))]
            else:
                raise EC2ClientError(
                    "UnsupportedOperation",
                    f"localec2 does not support the filter {name} of DescribeSpotInstanceRequests.",
                )
        return ActionResult({"SpotInstanceRequests": [answer for _, answer in answers]})

    def _spot_request(self, request: SpotRequestRecord) -> dict[str, Any]:
        tags = [{"Key": key, "Value": value} for key, value in request.tags.items()]
        return self.services.spot.describe(request, tags)

    def cancel_spot_instance_requests(self) -> ActionResult:
        ids = list(dict.fromkeys(self._get_param("SpotInstanceRequestIds", [])))
        for request_id in ids:
            self.services.spot.request(request_id)
        self.error_on_dryrun()
        requests = [self.services.spot.cancel(request_id) for request_id in ids]
        return ActionResult(
            {
                "CancelledSpotInstanceRequests": [
                    {"SpotInstanceRequestId": request.id, "State": request.state} for request in requests
                ]
            }
        )


def as_launch(order: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of RequestSpotInstances as those of RunInstances. Raises EC2ClientError."""
    count = int(order.get("InstanceCount", 1))
    if count < 1:
        raise EC2ClientError("InvalidParameterValue", f"Invalid value '{count}' for instanceCount: 1 or more")
    options = {
        "SpotInstanceType": order.get("Type"), "MaxPrice": order.get("SpotPrice"),
        "InstanceInterruptionBehavior": order.get("InstanceInterruptionBehavior"),
    }  # fmt: skip
    market = {
        "MarketType": "spot",
        "SpotOptions": {name: value for name, value in options.items() if value is not None},
    }
    return {
        **order.get("LaunchSpecification", {}), "MinCount": count, "MaxCount": count,
        "ClientToken": order.get("ClientToken"), "InstanceMarketOptions": market,
    }  # fmt: skip
