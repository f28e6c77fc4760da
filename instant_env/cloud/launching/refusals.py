"""EC2's refusals of a launch: which one means what, and what a person can do about it.

Codes and their meaning are those of the EC2 API Reference, "Error codes for the Amazon EC2 API", where no
other source is named.
"""

from __future__ import annotations

from botocore.exceptions import ClientError

#: RunInstances and StartInstances answer these when EC2 has no machine to give.
CAPACITY_ERRORS = frozenset(
    {
        "InsufficientInstanceCapacity",
        "InsufficientHostCapacity",
        "SpotMaxPriceTooLow",
        "MaxSpotInstanceCountExceeded",
    }
)

#: EC2 gives this account no spot machine, however often it is asked. The first: Spot's service-linked role is
#: not there, and the caller may not make it (seen in runs-on/runs-on#233, aws/karpenter-provider-aws#504).
NO_SPOT_ERRORS = frozenset(
    {
        "AuthFailure.ServiceLinkedRoleCreationNotPermitted",
        "MaxSpotInstanceCountExceeded",
    }
)

#: Another zone or type may do where one of these is the answer. EC2 says Unsupported of a type that a zone
#: does not have, and InsufficientFreeAddressesInSubnet where a subnet is full.
_ELSEWHERE_ERRORS = CAPACITY_ERRORS | {"Unsupported", "InsufficientFreeAddressesInSubnet"}

#: What EC2 says of a type to an account on the free plan, as an InvalidParameterCombination (since July 2025;
#: seen in aws/karpenter-provider-aws#9004, RhinoSecurityLabs/cloudgoat#375).
_NOT_ON_FREE_PLAN = "not eligible for free tier"

_FREE_PLAN_HINT = (
    "the account is on AWS's free plan, which has few types: --instance-type m7i-flex.large (bench), "
    "--builder-type m7i-flex.large (bake), or upgrade the plan"
)
SPOT_ROLE_HINT = "make Spot's service-linked role once: invoke setup --cloud aws --spot-role"

_HINTS = {
    "AuthFailure.ServiceLinkedRoleCreationNotPermitted": SPOT_ROLE_HINT,
    "MaxSpotInstanceCountExceeded": "the account's quota of spot vCPUs (L-34B43A08) is used up: raise it in "
    "Service Quotas, or use --market on-demand",
    "VcpuLimitExceeded": "the account's quota of vCPUs (L-1216C47A) is used up, and machines count for a "
    "while after their end: fewer at a time (--parallel), or raise it in Service Quotas",
    "InstanceLimitExceeded": "the account's quota of machines is used up: raise it in Service Quotas",
    "PendingVerification": "AWS is still verifying the account, which may take hours: try again then",
    "OptInRequired": "the account is not signed up for EC2 in this region: sign in to the console and enable "
    "the region, or finish the account's registration",
    "Blocked": "AWS has blocked the account: write to AWS Support",
    "InsufficientFreeAddressesInSubnet": "the subnet is full: end machines in it, or name another: --subnet",
    "MissingInput": "the default VPC has no subnet there: aws ec2 create-default-subnet, or --subnet",
    "VPCIdNotSpecified": "the account has no default VPC: aws ec2 create-default-vpc, or --subnet",
}

#: What a spot machine that reads a volume encrypted by a key of the customer's own needs (EC2 User Guide,
#: "Service-linked role for Spot Instance requests", "Grant access to customer managed keys").
KMS_GRANT = (
    "aws kms create-grant --key-id KEY --grantee-principal arn:aws:iam::ACCOUNT:role/aws-service-role/"
    "spot.amazonaws.com/AWSServiceRoleForEC2Spot --operations Decrypt Encrypt GenerateDataKey "
    "GenerateDataKeyWithoutPlaintext CreateGrant DescribeKey ReEncryptFrom ReEncryptTo"
)


def is_elsewhere(error: ClientError) -> bool:
    """Whether the same launch may do with another type or in another zone."""
    return _code(error) in _ELSEWHERE_ERRORS or _is_free_plan(error)


def is_of_the_type(error: ClientError) -> bool:
    """Whether another zone would refuse the type, too."""
    return _is_free_plan(error)


def hint(error: ClientError) -> str:
    """What to do about a refusal; empty where there is nothing to say beyond EC2's own words."""
    return _FREE_PLAN_HINT if _is_free_plan(error) else _HINTS.get(_code(error), "")


def hint_of_code(code: str) -> str:
    """As :func:`hint`, where only the code is at hand."""
    return _HINTS.get(code, "")


def hint_of_end(code: str, *, spot: bool) -> str:
    """What to do about a machine that ended at its launch. ``code`` is its StateReason's.

    EC2 takes a spot request whose volume it cannot decrypt, and ends the machine a moment later with
    Client.InternalError (aws/karpenter-provider-aws#933, #1407).
    """
    if spot and code.startswith(("Client.InternalError", "Client.InvalidKMSKey")):
        return (
            f"if the image is encrypted by a key of your own (--kms-key-id), Spot needs a grant: {KMS_GRANT}"
        )
    return ""


def _is_free_plan(error: ClientError) -> bool:
    message = str(error.response.get("Error", {}).get("Message", "")).lower()
    return _code(error) == "InvalidParameterCombination" and _NOT_ON_FREE_PLAN in message


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
