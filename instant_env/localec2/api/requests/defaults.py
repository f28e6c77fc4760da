"""Parameters that localec2 has not, at the values that describe what it does.

Clients send them unasked: the AWS provider of Terraform says in every launch that detailed monitoring is
off. Such a value asks for what happens anyway and is accepted; any other value of the parameter is refused.
Names and values are from the API reference; a name counts in any structure that ends with it.
"""

from __future__ import annotations

from instant_env.localec2.api.requests.fields import Field

#: End of a parameter's name -> its values that describe what happens.
AS_IT_IS: dict[str, frozenset[str]] = {
    "AmdSevSnp": frozenset({"disabled"}),
    "BandwidthWeighting": frozenset({"default"}),
    "CapacityReservationPreference": frozenset({"open"}),
    "EbsCardIndex": frozenset({"0"}),
    "HostnameType": frozenset({"ip-name"}),
    "HttpProtocolIpv6": frozenset({"disabled"}),
    "InstanceTenancy": frozenset({"default"}),
    "InterfaceType": frozenset({"interface"}),
    "Ipv4PrefixCount": frozenset({"0"}),
    "Ipv6AddressCount": frozenset({"0"}),
    "Ipv6PrefixCount": frozenset({"0"}),
    "MaintenanceOptions.AutoRecovery": frozenset({"default"}),
    "NestedVirtualization": frozenset({"disabled"}),
    "NetworkCardIndex": frozenset({"0"}),
    "Placement.Affinity": frozenset({"default"}),
    "Placement.Tenancy": frozenset({"default"}),
    "PrivateDnsHostnameTypeOnLaunch": frozenset({"ip-name"}),
    "SecondaryPrivateIpAddressCount": frozenset({"0"}),
}
#: A Boolean that is absent is false on EC2, but for those that end with these; a false one asks that nothing
#: be done.
TRUE_WHEN_ABSENT = frozenset(
    {
        "DeleteOnTermination", "EnableDnsSupport.Value", "EnaSupport.Value", "SourceDestCheck",
        "SourceDestCheck.Value",
    }
)  # fmt: skip


def as_it_is(field: Field) -> bool:
    """Whether a field asks for what happens anyway."""
    parts = field.plain.split(".")
    ends = [".".join(parts[start:]) for start in range(len(parts))]
    if field.kind == "boolean":
        return field.value.lower() == ("false" if TRUE_WHEN_ABSENT.isdisjoint(ends) else "true")
    return any(field.value in AS_IT_IS.get(end, ()) for end in ends)
