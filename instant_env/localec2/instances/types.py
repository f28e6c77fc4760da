"""Instance types: which exist, what fits them, and what a request may say about their CPUs."""

from __future__ import annotations

from typing import Any, Literal

from instant_env.localec2.state.instance_types import cpu_options
from instant_env.localec2.state.moto_api import INSTANCE_TYPES, EC2ClientError

Credits = Literal["standard", "unlimited"]
#: Families whose CPUs earn credits -> what a launch gets that does not say (EC2 User Guide, "Burstable
#: performance instances").
_BURSTABLE: dict[str, Credits] = {
    "t2": "standard",
    "t3": "unlimited",
    "t3a": "unlimited",
    "t4g": "unlimited",
}


def check_type(instance_type: str, architecture: str) -> None:
    """Refuse a type that does not exist, or that an image of this architecture does not run on."""
    facts = INSTANCE_TYPES.get(instance_type)
    if facts is None:
        raise EC2ClientError("InvalidParameterValue", f"Invalid value '{instance_type}' for InstanceType.")
    supported = facts["ProcessorInfo"]["SupportedArchitectures"]
    if architecture not in supported:
        raise EC2ClientError(
            "InvalidParameterValue",
            f"The architecture '{','.join(supported)}' of the specified instance type does not match the "
            f"architecture '{architecture}' of the specified AMI. Specify an instance type and an AMI "
            "that have matching architectures, and try again.",
        )


def default_credits(instance_type: str) -> Credits | None:
    """How a type's CPU credits are used unless somebody says; None when it has none."""
    return _BURSTABLE.get(instance_type.partition(".")[0])


def cpu_credits(option: str | None, instance_type: str) -> Credits | None:
    """The credit option of an instance: recorded, as no CPU here is throttled. Raises EC2ClientError."""
    default = default_credits(instance_type)
    if option is None:
        return default
    if default is None:
        raise EC2ClientError(
            "InvalidParameterCombination",
            f"The instance type '{instance_type}' has no CPU credits: leave CreditSpecification out.",
        )
    for name in ("standard", "unlimited"):
        if option == name:
            return name
    raise EC2ClientError("InvalidParameterValue", f"Invalid value '{option}' for CpuCredits.")


def check_cpu_options(options: dict[str, Any], instance_type: str) -> None:
    """Refuse to have other cores and threads than the type has. Raises EC2ClientError."""
    for name, default in cpu_options(instance_type).items():
        if options.get(name, default) != default:
            raise EC2ClientError(
                "UnsupportedOperation",
                f"localec2 does not support the value {options[name]!r} of CpuOptions.{name}: "
                f"{instance_type} has {default}.",
            )
