"""Spot instance requests: what a launch asks for, and their status in EC2's words."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from instant_env.localec2.records.records import ImageMapping, InstanceRecord, SpotRequestRecord
from instant_env.localec2.state.moto_api import EC2ClientError
from instant_env.localec2.state.state import now

Behavior = Literal["terminate", "stop", "hibernate"]

#: Status codes and their messages (user guide, "Get the status of a Spot Instance request").
MESSAGES = {
    "fulfilled": "Your Spot request is fulfilled.",
    "pending-evaluation": "Your Spot request has been submitted for review, and is pending evaluation.",
    "capacity-not-available": "There is no Spot capacity available that matches your request.",
    "marked-for-termination": "Your Spot Instance is marked for termination.",
    "marked-for-stop": "Your Spot Instance is marked for stop.",
    "instance-terminated-by-user": "Spot Instance terminated due to user-initiated termination.",
    "instance-terminated-no-capacity": "Your Spot Instance was terminated because there is no longer any "
    "Spot capacity available.",
    "instance-stopped-by-user": "Your Spot Instance was stopped because you stopped it.",
    "instance-stopped-no-capacity": "Your Spot Instance was stopped due to insufficient capacity.",
    "request-canceled-and-instance-running": "Your Spot request is canceled, but your instance is still "
    "running.",
    "canceled-before-fulfillment": "Your Spot request is canceled before it was fulfilled.",
    "system-error": "Your Spot request was not fulfilled because of a system error.",
}


@dataclass(frozen=True)
class SpotTerms:
    """What a launch says about its spot request."""

    persistent: bool
    behavior: Behavior
    max_price: str | None


def spot_terms(market: Mapping[str, Any], hibernation: bool) -> SpotTerms | None:
    """InstanceMarketOptions of a launch; None for an on-demand instance."""
    if not market:
        return None
    options = market.get("SpotOptions") or {}
    if market.get("MarketType") != "spot":
        raise EC2ClientError("InvalidParameterCombination", "SpotOptions need the MarketType spot.")
    persistent = options.get("SpotInstanceType", "one-time") == "persistent"
    default: Behavior = "hibernate" if hibernation else "terminate"
    behavior: Behavior = options.get("InstanceInterruptionBehavior") or default
    if behavior != "terminate" and not persistent:
        raise EC2ClientError(
            "InvalidParameterCombination",
            f"The interruption behavior '{behavior}' needs a persistent Spot Instance request.",
        )
    if hibernation != (behavior == "hibernate"):
        # API_HibernationOptionsRequest: any other value is an error.
        raise EC2ClientError(
            "InvalidParameterCombination",
            "HibernationOptions.Configured and the interruption behavior hibernate go together.",
        )
    price = options.get("MaxPrice")
    try:
        valid = price is None or float(price) > 0
    except ValueError:
        valid = False
    if not valid:
        raise EC2ClientError("InvalidParameterValue", f"Invalid value '{price}' for maxPrice")
    return SpotTerms(persistent, behavior, price)


def new_request(
    instance: InstanceRecord, terms: SpotTerms, volumes: list[ImageMapping], volume_tags: dict[str, str],
    tags: dict[str, str],
) -> SpotRequestRecord:  # fmt: skip
    """The request of a new instance: fulfilled at once, since there is capacity until an interruption."""
    return SpotRequestRecord(
        id=f"sir-{os.urandom(4).hex()}", tags=tags, persistent=terms.persistent, behavior=terms.behavior,
        max_price=terms.max_price, create_time=now(), state="active", status_code="fulfilled",
        status_time=now(), instance_id=instance.id, template=instance.model_copy(deep=True), volumes=volumes,
        volume_tags=volume_tags,
    )  # fmt: skip
