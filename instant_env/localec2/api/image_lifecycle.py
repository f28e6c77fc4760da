"""How an image ends: deprecated, disabled, protected from it; and who still refers to it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from instant_env.localec2.api.base import Action
from instant_env.localec2.records.records import ImageRecord
from instant_env.localec2.state.moto_api import ACCOUNT_ID, ActionResult, EC2ClientError
from instant_env.localec2.state.state import now
from instant_env.localec2.volumes.protection import protection_of

#: EC2 User Guide, "Protect an AMI from deregistration": the cooldown is 24 hours.
COOLDOWN = timedelta(hours=24)
#: API_EnableImageDeprecation: "the limit is 10 years from now".
MAX_DEPRECATION = timedelta(days=3653)
#: API_DescribeImageReferences: at most ten AMIs a call.
MAX_REFERENCED = 10


class ImageLifecycle(Action):
    """Mixed into moto's response class, which has the parameters."""

    def _own_image(self) -> ImageRecord:
        image = self.services.state.image(self._get_param("ImageId"))
        if image.owner_id != ACCOUNT_ID:
            raise EC2ClientError("AuthFailure", f"Not authorized for image:{image.id}")
        self.error_on_dryrun()
        return image

    def _keep(self, image: ImageRecord, answer: Any = True) -> ActionResult:
        self.services.state.save(image)
        return ActionResult({"Return": answer})

    def disable_image(self) -> ActionResult:
        image = self._own_image()
        if image.state not in ("available", "disabled"):
            raise EC2ClientError(
                "IncorrectState", f"The image {image.id} is {image.state} and cannot be disabled"
            )
        image.state = "disabled"
        return self._keep(image)

    def enable_image(self) -> ActionResult:
        image = self._own_image()
        if image.state not in ("available", "disabled"):
            raise EC2ClientError("IncorrectState", f"The image {image.id} is {image.state}, not disabled")
        image.state = "available"
        return self._keep(image)

    def enable_image_deprecation(self) -> ActionResult:
        at = _moment(self._get_param("DeprecateAt"))
        if not now() < at <= now() + MAX_DEPRECATION:
            raise EC2ClientError("InvalidParameterValue", "DeprecateAt lies within the next ten years")
        image = self._own_image()
        image.deprecation_time = at
        return self._keep(image)

    def disable_image_deprecation(self) -> ActionResult:
        image = self._own_image()
        image.deprecation_time = None
        return self._keep(image)

    def enable_image_deregistration_protection(self) -> ActionResult:
        image = self._own_image()
        with_cooldown = self._get_bool_param("WithCooldown", False)
        image.protection = "enabled-with-cooldown" if with_cooldown else "enabled-without-cooldown"
        image.protected_until = None
        return self._keep(image, image.protection)

    def disable_image_deregistration_protection(self) -> ActionResult:
        image = self._own_image()
        if image.protection == "enabled-with-cooldown":
            image.protected_until = image.protected_until or now() + COOLDOWN
        else:
            image.protection = "disabled"
        return self._keep(image, protection_of(image))

    def describe_image_references(self) -> ActionResult:
        """Instances and SSM parameters: what else EC2 looks at is not there here."""
        ids = list(dict.fromkeys(self._get_param("ImageIds", [])))
        if not 1 <= len(ids) <= MAX_REFERENCED:
            raise EC2ClientError("InvalidParameterValue", f"1 to {MAX_REFERENCED} image ids, not {len(ids)}")
        named = [item.get("ResourceType") for item in self._get_param("ResourceTypes", []) or []]
        everything = self._get_bool_param("IncludeAllResourceTypes", False)
        if bool(named) == bool(everything):
            raise EC2ClientError(
                "InvalidParameterCombination", "Give ResourceTypes, or IncludeAllResourceTypes as true"
            )
        self.error_on_dryrun()
        state = self.services.state
        entries = []
        for image_id in ids:
            state.image(image_id)
            users = [
                ("ec2:Instance", f"arn:aws:ec2:{state.region}:{ACCOUNT_ID}:instance/{instance.id}")
                for instance in state.instances.values()
                if instance.image_id == image_id and instance.state != "terminated"
            ]
            users += [
                ("ssm:Parameter", f"arn:aws:ssm:{state.region}:{ACCOUNT_ID}:parameter/{name.lstrip('/')}")
                for name in state.mirror.parameters_with(image_id)
            ]
            entries += [
                {"ImageId": image_id, "ResourceType": kind, "Arn": arn}
                for kind, arn in users
                if everything or kind in named
            ]
        return ActionResult({"ImageReferences": entries})


def _moment(value: Any) -> datetime:
    """A time of a request, rounded to the nearest minute (API_EnableImageDeprecation, DeprecateAt)."""
    try:
        at = (
            value
            if isinstance(value, datetime)
            else datetime.fromisoformat(str(value).replace("Z", "+00:00"))
        )
    except ValueError as error:
        raise EC2ClientError("InvalidParameterValue", f"'{value}' is not a timestamp") from error
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return (at.astimezone(UTC) + timedelta(seconds=30)).replace(second=0, microsecond=0)
