"""The ``localec2:`` part of the settings: how strict the embedded EC2 is.

One switch for each thing that EC2 says later than expected, refuses, or has to be asked for beforehand.
Where it is not known what EC2 does, a switch has the strict reading; the table in localec2's README says so.
The defaults are what a user gets: what is plainly true, and nothing that is late on purpose.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

_MOST_MS = 600_000


class LocalEc2Settings(BaseModel):
    """The switches. Times are in milliseconds; 0 switches a delay off."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    late_ms: int = Field(
        default=0,
        ge=0,
        le=_MOST_MS,
        description="new groups, key pairs, images, snapshots, volumes, interfaces, instances and profiles "
        "are not found for half of this time, are found for a quarter, and not found once more",
    )
    late_tags_ms: int = Field(
        default=0,
        ge=0,
        le=_MOST_MS,
        description="filters by tag find new tags after this time",
    )
    late_address_ms: int = Field(
        default=0,
        ge=0,
        le=_MOST_MS,
        description="the public address of an instance is described this long after it is `running`",
    )
    hibernation_ready_ms: int = Field(
        default=0,
        ge=0,
        le=_MOST_MS,
        description="StopInstances(Hibernate) is refused for this long after a launch or start",
    )
    snapshot_in_use_ms: int = Field(
        default=0,
        ge=0,
        le=_MOST_MS,
        description="DeleteSnapshot is refused for this long after its image was deregistered",
    )
    call_delay_ms: int = Field(default=0, ge=0, le=_MOST_MS, description="every call takes this much longer")
    posted_console: bool = Field(
        default=False,
        description="GetConsoleOutput without Latest answers what was there at the last change of state",
    )
    hibernation_reason_kept: bool = Field(
        default=True,
        description="StateReason says UserInitiatedHibernate even if the guest shut down instead",
    )
    zones_checked: bool = Field(
        default=True,
        description="a launch is refused whose zone is not its subnet's, or does not have its type",
    )
    register_defaults: bool = Field(
        default=True,
        description="RegisterImage's mappings are gp2 and outlive their instance unless they say otherwise",
    )
    foreign_snapshots: bool = Field(
        default=True, description="snapshots of other accounts' images cannot be used"
    )
    public_subnets: bool = Field(
        default=True, description="the default subnets give public addresses (MapPublicIpOnLaunch)"
    )
    default_vpc: bool = Field(default=True, description="the account has a default VPC")
    spot_role: bool = Field(
        default=True, description="the account has Spot's service-linked role, or its caller may make it"
    )
    free_plan: bool = Field(
        default=False, description="the account is on the free plan, which has few instance types"
    )
    guest_memory_mib: int = Field(
        default=0, ge=0,
        description="a guest has its type's memory, and this at most; "
        "0: an eighth of the host's, or 1024 where that is more",
    )  # fmt: skip
    vcpu_quota: int = Field(
        default=0, ge=0,
        description="vCPUs of on-demand instances at a time, those that ended within a minute included; "
        "0: no quota",
    )  # fmt: skip
