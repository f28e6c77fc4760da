"""What the account grants: quotas, and whether EC2 would take the calls that a bake begins with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from instant_env.cloud.account.findings import Finding, refusal
from instant_env.cloud.account.subnets import architectures
from instant_env.cloud.instances import LaunchOptions, LaunchRequest, request_body, usual_type
from instant_env.cloud.interfaces import ELASTIC_IP_QUOTA
from instant_env.cloud.keys import KeyPair
from instant_env.cloud.session import Cloud, error_code
from instant_env.cloud.tags import Role, new_run_id, tag_specifications

#: vCPUs of running machines of the families A, C, D, H, I, M, R, T and Z, and Elastic IPs (Service Quotas,
#: service ec2). For moments a bake has two machines of two vCPUs; four bakes side by side have 16.
_WANTED_VCPUS = 16
_QUOTAS = {
    "L-1216C47A": ("vCPUs on demand", _WANTED_VCPUS, "four bakes side by side need 16"),
    "L-34B43A08": ("vCPUs spot", _WANTED_VCPUS, "races with --parallel 8 need 16; on demand goes without"),
    "L-0263D0A3": ("Elastic IPs", ELASTIC_IP_QUOTA, "of use to prealloc-eni only"),
}
#: AWS's own parameter names an AMI in every region, for a launch that will not be.
_ANY_IMAGE = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-6.1-{arch}"


def quotas(cloud: Cloud) -> Iterator[Finding]:
    """The quotas that count for us. An account without a value of its own has AWS's default one."""
    client = cloud.client("service-quotas")
    for code, (what, wanted, use) in _QUOTAS.items():
        try:
            value = _quota(client, code)
        except (ClientError, BotoCoreError) as error:
            yield Finding("quota", what, "unknown", f"cannot be read: {refusal(error)}")
            continue
        enough = value >= wanted
        yield Finding(
            "quota", what, "ok" if enough else "trouble", f"{value:.0f}" + f"; {use}" * (not enough)
        )


def _quota(client: Any, code: str) -> float:
    try:
        answer = client.get_service_quota(ServiceCode="ec2", QuotaCode=code)
    except ClientError as error:
        if error_code(error) != "NoSuchResourceException":
            raise
        answer = client.get_aws_default_service_quota(ServiceCode="ec2", QuotaCode=code)
    return float(answer["Quota"]["Value"])


def permissions(cloud: Cloud, subnet: Any) -> Iterator[Finding]:
    """Whether EC2 grants the calls that every bake begins with, by DryRun: they are sent as a bake sends
    them, so that what policies/bake.json grants and refuses is what they find."""
    run_id, role = new_run_id(), Role.BUILDER
    name, expires_at = f"instant-env-{role.value}-{run_id}", datetime.now(UTC) + timedelta(hours=1)
    tags: Any = {"run_id": run_id, "role": role, "name": name, "expires_at": expires_at}
    ec2 = cloud.ec2
    calls: dict[str, Callable[[], Any]] = {
        "ec2:ImportKeyPair": lambda: ec2.import_key_pair(
            KeyName=name, PublicKeyMaterial=KeyPair.generate().public_openssh.encode(), DryRun=True,
            TagSpecifications=tag_specifications("key-pair", **tags),
        ),
        "ec2:CreateSecurityGroup": lambda: ec2.create_security_group(
            GroupName=name, Description="instant-env builder: SSH from the caller only", DryRun=True,
            VpcId=subnet["VpcId"], TagSpecifications=tag_specifications("security-group", **tags),
        ),
    }  # fmt: skip
    for arch in architectures(cloud):
        calls[f"ec2:RunInstances {arch}"] = lambda arch=arch: ec2.run_instances(  # type: ignore[misc]
            **{
                **request_body(
                    cloud,
                    LaunchRequest(
                        image_id=cloud.ssm.get_parameter(Name=_ANY_IMAGE.format(arch=arch))["Parameter"][
                            "Value"
                        ],
                        instance_type=usual_type(cloud, arch),
                        client_token=f"{role.value}-{run_id}-{arch}",
                        options=LaunchOptions(instance_profile=cloud.settings.builder_profile),
                        **tags,
                    ),
                ),
                "SubnetId": subnet["SubnetId"],
            },
            DryRun=True,
        )
    for action, call in calls.items():
        yield _tried(action, call)


def _tried(action: str, call: Callable[[], Any]) -> Finding:
    try:
        call()
    except ClientError as error:
        if error_code(error) == "DryRunOperation":
            return Finding("permission", action, "ok")
        detail = error_code(error)
        if detail != "UnauthorizedOperation":  # its text is a long encoded message
            detail += f": {error.response.get('Error', {}).get('Message', '')}"
        return Finding("permission", action, "trouble", detail)
    except BotoCoreError as error:
        return Finding("permission", action, "unknown", refusal(error))
    return Finding("permission", action, "unknown", "no answer")
