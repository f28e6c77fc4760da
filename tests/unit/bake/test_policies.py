"""The IAM policies grant what the verbs do, and nothing else: every call is recorded as it is sent, and
evaluated with its resources and tags (support/iam) as well as listed by its action."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore import xform_name
from botocore.exceptions import ClientError
from support.harness_cloud import Ec2Faults, SshHost, cloud_in_process, mock_session, register_image
from support.iam.calls import Call, Recorder
from support.iam.check import check
from support.iam.policy import IamPolicy
from support.pretend_bakery import NOTHING, Bakery

from harness.plan.arguments import Request, read
from harness.run.runner import carry_out
from instant_env.bake.bake import estimate
from instant_env.bake.execute import StepError
from instant_env.bake.proof.verdict import VerifyError
from instant_env.bake.request import Method, OnError
from instant_env.cloud import janitor
from instant_env.cloud.account.roles import POLICIES
from instant_env.cloud.copies import delete_copy, fresh_copy
from instant_env.cloud.images import list_baked
from instant_env.cloud.instances import LaunchOptions, LaunchRequest, launch, terminate
from instant_env.cloud.interfaces import delete_public_interface, make_public_interface
from instant_env.cloud.janitor import Policy
from instant_env.cloud.network import temporary_security_group
from instant_env.cloud.removal import remove
from instant_env.cloud.session import CloudError
from instant_env.cloud.tags import Role, tag_list
from instant_env.settings import ROOT

pytest_plugins = ("support.pretend_bakery",)

#: What EC2 asks for besides the action itself, as no call of its own (Service Authorization Reference): tags
#: given to a call that makes something; the role of an instance profile; the keys of encrypted volumes.
IMPLIED = {
    "ec2:CreateTags",
    "iam:PassRole",
    *(f"kms:{name}" for name in (
        "CreateGrant", "Decrypt", "DescribeKey", "GenerateDataKeyWithoutPlaintext", "ReEncrypt*",
    )),
}  # fmt: skip


def allowed(name: str) -> set[str]:
    """The actions of a policy file, all its statements together."""
    return IamPolicy.of_file(name).actions


@pytest.mark.slow
def test_baking_needs_all_that_its_policy_allows_and_nothing_else(
    bakery: Bakery, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(bakery.cloud, bakery.served.ec2)
    # The Pricing API is asked by a client of its own, on AWS only.
    monkeypatch.setattr(
        "instant_env.cloud.prices._price_from_api",
        lambda *_: recorder.calls.append(Call("pricing:GetProducts")),
    )
    bakery.new_base("second-base")
    estimate(bakery.aws(), bakery.settings, bakery.request(), lambda _: None)
    bakery.bake(base_ami="first-*", deprecate_after_days=1)
    bakery.bake(method=Method.REGISTER, force=True, protect=True)
    failures: list[ClientError | None] = [
        ClientError({"Error": {"Code": "InsufficientInstanceCapacity"}}, "")
    ]

    def once(**_: Any) -> None:
        if failures and (error := failures.pop()):
            raise error

    bakery.cloud.ec2.meta.events.register("before-call.ec2.RunInstances", once)
    bakery.bake(force=True)
    with pytest.raises(CloudError, match="VPC"):
        bakery.bake(force=True, ssh_private=True)
    subnet = bakery.served.ec2.describe_subnets()["Subnets"][0]["SubnetId"]
    bakery.cloud = bakery.in_subnet(subnet)
    bakery.bake(force=True)
    finding = {"rule": "host-key", "path": "/etc/ssh/ssh_host_x", "reason": "planted"}
    audit = json.dumps({"findings": [finding], "bytes_scanned": 1})
    bakery.guest.answers.append((r"audit\.json$", audit, 0))
    with pytest.raises(VerifyError):
        bakery.bake(force=True)
    bakery.guest.answers[:] = [(r"01-first\.sh", "", 1)]
    with pytest.raises(StepError):
        bakery.bake(force=True)
    refusals = [ClientError({"Error": {"Code": "InternalError"}}, "CreateSecurityGroup")]

    def refuse_a_group(**_: Any) -> None:
        if refusals:
            raise refusals.pop()

    bakery.cloud.ec2.meta.events.register("before-call.ec2.CreateSecurityGroup", refuse_a_group)
    with pytest.raises(CloudError, match="security group"):  # it looks whether one is there all the same
        bakery.bake(force=True)
    assert bakery.leftovers() == NOTHING
    policy = allowed("bake")
    assert recorder.actions - policy == set(), "used, and not allowed"
    assert policy - recorder.actions - IMPLIED == set(), "allowed, and not used"
    check("bake", recorder.calls)


def test_policies_are_iam_documents() -> None:
    names = {path.stem for path in Path(POLICIES).glob("*.json")}
    assert {"bake", "bench", "builder-role", "clean", "publish", "service", "setup"} <= names
    for name in names:
        policy = json.loads((POLICIES / f"{name}.json").read_text())
        assert policy["Version"] == "2012-10-17"
        sids = [statement["Sid"] for statement in policy["Statement"]]
        assert len(sids) == len(set(sids))
        # A managed policy may be this large (IAM quotas), without white space.
        assert len(json.dumps(policy, separators=(",", ":"))) <= 6144


#: Whose calls a race may make. What of cloud/ only other verbs use is not told apart.
BENCH_SOURCES = (
    "harness/**/*.py", "instant_env/launch/**/*.py", "instant_env/ssh/*.py",
    *(f"instant_env/cloud/{name}.py" for name in (
        "copies", "handover", "images", "instances", "interfaces", "keys", "launching/*", "network", "prices",
    )),
)  # fmt: skip
#: Calls in those modules that only a bake comes to.
NOT_OF_BENCH = {"delete_tags"}


def called_in(*patterns: str) -> set[str]:
    """Client methods that the sources name: ``run_instances``, and what paginators are made of."""
    text = "".join(path.read_text() for pattern in patterns for path in sorted(ROOT.glob(pattern)))
    direct = re.findall(r"(?:ec2|ec2_once|ec2_polls|ssm|instance_connect|pricing)\.([a-z_]+)\(", text)
    return {*direct, *re.findall(r'get_paginator\("([a-z_]+)"\)', text)} - {"get_paginator"}


def test_racing_needs_all_that_its_policy_allows_and_nothing_else() -> None:
    """By what the sources call, not by a run: what a race calls depends on the techniques in it."""
    policy = allowed("bench")
    methods = {xform_name(action.partition(":")[2]) for action in policy - IMPLIED | {"ec2:CreateTags"}}
    called = called_in(*BENCH_SOURCES) - NOT_OF_BENCH
    assert called - methods == set(), "called, and not allowed"
    assert methods - called == set(), "allowed, and not called"


def test_a_race_in_a_cloud_stays_within_its_policy(tmp_path: Path) -> None:
    faults = Ec2Faults()
    with SshHost().serving() as ssh, cloud_in_process(tmp_path, ssh.port, faults) as cloud:
        recorder = Recorder(cloud, mock_session().client("ec2"))
        base = register_image(cloud)
        about = {"recipe": "minimal", "base": "debian-12", "base-ami": base, "login-user": "admin"}
        cloud.ec2.create_tags(
            Resources=[register_image(cloud, "minimal")],
            Tags=tag_list("bake-run", Role.IMAGE, name="minimal", extra=about),
        )
        (image,) = list_baked(cloud)
        recorder.calls.clear()
        request = Request(iterations=1, seed=7, timeout_s=60, ami=image.id, techniques=("minimal-ami",))
        settings, planner = read(request, cloud.settings)
        carry_out(settings, planner, progress=print, open_cloud=lambda *_: cloud)
    assert {"ec2:RunInstances", "ec2:TerminateInstances", "ec2:ImportKeyPair"} <= recorder.actions
    assert recorder.actions - allowed("bench") == set()
    check("bench", recorder.calls)


def test_what_a_race_makes_ahead_is_granted_with_our_tag_only(bakery: Bakery) -> None:
    """Copies of images, interfaces with addresses, a launch with one of them, and their removal."""
    run: Any = {"run_id": "r1", "name": "ahead", "expires_at": datetime.now(UTC) + timedelta(hours=1)}
    cloud, image = bakery.cloud, bakery.new_base("another")
    recorder = Recorder(cloud, bakery.served.ec2)
    with temporary_security_group(cloud, run_id="r1", role=Role.BENCH, expires_at=run["expires_at"]) as group:
        made = make_public_interface(cloud, security_group_id=group, role=Role.POOL, **run)
        machine = launch(cloud, LaunchRequest(
            image, "m7i.large", role=Role.BENCH, client_token="t", interface_id=made.interface_id,
            options=LaunchOptions(encrypted=True), root_device="/dev/xvda", **run,
        ))  # fmt: skip
        terminate(cloud, [machine])
        delete_public_interface(cloud, made.interface_id, made.allocation_id)
    delete_copy(cloud, fresh_copy(cloud, image, **run))
    assert {"ec2:CopyImage", "ec2:DeregisterImage", "ec2:ReleaseAddress"} <= recorder.actions
    check("bench", recorder.calls)


#: The service's own calls, and those of the launching core that its techniques come to.
SERVICE_SOURCES = (
    "instant_env/service/**/*.py", "instant_env/launch/*.py",
    *(f"instant_env/launch/techniques/{name}.py" for name in (
        "base", "cold", "warm_running", "warm_stopped", "warm_hibernated",
    )),
    *(f"instant_env/cloud/{name}.py" for name in ("handover", "images", "instances", "prices")),
)  # fmt: skip
#: Calls in those modules that only a bake, a race or a clean comes to.
NOT_OF_SERVICE = {
    "delete_snapshot", "delete_tags", "deregister_image", "describe_instance_type_offerings",
    "describe_snapshots",
}  # fmt: skip
#: What the service needs of cloud/network.py, which other verbs use for more.
NETWORK_OF_SERVICE = {
    "authorize_security_group_ingress", "create_security_group", "describe_security_groups",
    "describe_subnets", "describe_vpcs",
}  # fmt: skip


def test_the_service_needs_all_that_its_policy_allows_and_nothing_else() -> None:
    """By what the sources call; the calls of a lease's life are recorded in test_ec2_fleet.py."""
    policy = allowed("service")
    methods = {xform_name(action.partition(":")[2]) for action in policy - IMPLIED | {"ec2:CreateTags"}}
    called = called_in(*SERVICE_SOURCES) - NOT_OF_SERVICE | NETWORK_OF_SERVICE
    assert called - methods == set(), "called, and not allowed"
    assert methods - called == set(), "allowed, and not called"


#: What `clean` looks with, and what it removes with, that is in modules of other verbs as well.
CLEAN_SOURCES = tuple(
    f"instant_env/cloud/{name}.py" for name in ("holds", "janitor", "references", "removal")
)
CLEAN_REMOVERS = tuple(
    f"instant_env/cloud/{name}.py" for name in ("copies", "images", "instances", "interfaces", "network")
)


def test_cleaning_stays_within_its_policy_and_the_policy_within_the_sources(bakery: Bakery) -> None:
    """A clean of what a failed bake was told to keep; the rest by what the sources call."""
    bakery.guest.answers.append((r"01-first\.sh", "", 1))
    with pytest.raises(StepError):
        bakery.bake(on_error=OnError.KEEP)
    recorder = Recorder(bakery.cloud, bakery.served.ec2)
    assert (
        remove(bakery.cloud, janitor.survey(bakery.cloud, Policy(keep=3)).removals, lambda _: None).failures
        == []
    )
    assert bakery.leftovers() == NOTHING
    policy = allowed("clean")
    assert {"ec2:TerminateInstances", "ec2:DeleteSecurityGroup", "ec2:DeleteKeyPair"} <= recorder.actions
    assert recorder.actions - policy == set(), "used, and not allowed"
    check("clean", recorder.calls)
    methods = {xform_name(action.partition(":")[2]) for action in policy}
    text = "".join((ROOT / name).read_text() for name in CLEAN_SOURCES)
    paged = set(re.findall(r'"((?:describe|get)_[a-z_]+)"', text))
    assert (called_in(*CLEAN_SOURCES) | paged) - methods == set(), "called, and not allowed"
    assert methods - called_in(*CLEAN_SOURCES, *CLEAN_REMOVERS) - paged == set(), "allowed, and not called"


def test_what_changes_or_removes_goes_by_our_tag() -> None:
    """Whatever a policy lets change or remove has to carry our tag, except what names the latest image."""
    policies = [
        json.loads((POLICIES / f"{name}.json").read_text())
        for name in ("bake", "bench", "clean", "publish", "service", "setup")
    ]
    for statement in [statement for policy in policies for statement in policy["Statement"]]:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        if any(
            a.startswith(("ec2:Delete", "ec2:Terminate", "ec2:Modify", "ec2:Deregister")) for a in actions
        ):
            assert statement["Condition"] == {"StringEquals": {"aws:ResourceTag/Project": "instant-env"}}
