"""Spot prices, which are all alike here, and the account's defaults."""

from __future__ import annotations

from typing import Any, ClassVar

from instant_env.localec2.state.filters import matches
from instant_env.localec2.state.moto_api import ActionResult, EC2ClientError, EC2Response

#: Product descriptions of what runs here; in a VPC both are the same (API_DescribeSpotPriceHistory).
PRODUCTS = ("Linux/UNIX", "Linux/UNIX (Amazon VPC)")


class Prices(EC2Response):  # type: ignore[misc]  # moto is untyped
    """Mixed into the response class."""

    _FILTERS: ClassVar[dict[str, str]] = {
        "availability-zone": "AvailabilityZone", "instance-type": "InstanceType",
        "product-description": "ProductDescription", "spot-price": "SpotPrice", "timestamp": "Timestamp",
    }  # fmt: skip

    def describe_spot_price_history(self) -> ActionResult:
        """moto's prices, for each product that is asked for; none of what does not run here."""
        self.error_on_dryrun()
        types = self._get_param("InstanceTypes", [])
        offers = self.ec2_backend.describe_spot_price_history(types, {})
        filters = dict(self._filters_from_querystring())
        if unknown := set(filters) - set(self._FILTERS):
            raise EC2ClientError("InvalidParameterValue", f"The filter '{min(unknown)}' is invalid")
        if zone := self._get_param("AvailabilityZone"):
            filters["availability-zone"] = [*filters.get("availability-zone", []), zone]
        products = self._get_param("ProductDescriptions", []) or PRODUCTS
        history: list[dict[str, Any]] = [
            {
                "InstanceType": offer["InstanceType"], "ProductDescription": product,
                "SpotPrice": "0.000010", "AvailabilityZone": offer["Location"],
                "Timestamp": "2006-01-02T15:04:05Z",
            }
            for offer in offers
            for product in PRODUCTS
            if product in products
        ]  # fmt: skip
        for name, values in filters.items():
            history = [item for item in history if matches(values, item[self._FILTERS[name]])]
        return ActionResult({"SpotPriceHistory": history})

    def get_ebs_default_kms_key_id(self) -> ActionResult:
        """Amazon's own key: there are no others here."""
        self.error_on_dryrun()
        return ActionResult({"KmsKeyId": "alias/aws/ebs"})
