"""What the options of a bake do: how machines are launched, how the image is made, what a failure leaves."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders
from botocore.exceptions import ClientError
from support.clouds.aws_client import Aws
from support.pretend_bakery import NOTHING, Bakery, Calls

from instant_env.bake import bake as bake_module
from instant_env.bake.execute import StepError
from instant_env.bake.proof.verdict import VerifyError
from instant_env.bake.request import Method, OnError, Options, choose
from instant_env.bake.seal import SEAL_FAILED, SEALED, TTL_UNIT
from instant_env.cloud import janitor
from instant_env.cloud.janitor import Policy
from instant_env.cloud.removal import remove
from instant_env.cloud.session import CloudError
from instant_env.errors import UsageError
from instant_env.launch.cloud_config import EARLY_UNIT

pytest_plugins = ("support.pretend_bakery",)


def launches(calls: Calls) -> list[dict[str, Any]]:
    return [parameters for action, parameters in calls.requests if action == "RunInstances"]


@pytest.mark.slow
def test_a_builder_is_encrypted_and_ends_itself_before_anybody_has_logged_in(bakery: Bakery) -> None:
    calls = Calls(bakery.cloud)
    image = bakery.bake().image
    builder, verifier = launches(calls)
    assert builder["BlockDeviceMappings"] == [
        {"DeviceName": "/dev/xvda", "Ebs": {"Encrypted": True, "VolumeType": "gp3"}}
    ]
    assert builder["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert builder["MetadataOptions"]["HttpTokens"] == "required"
    data = [base64.b64decode(one["UserData"]).decode() for one in (builder, verifier)]
    assert data[0].startswith("#cloud-config\n")
    assert '"--on-active=3600s"' in data[0]
    assert '"ttl_s": 3600' in data[1]
    (snapshot,) = bakery.served.ec2.describe_snapshots(SnapshotIds=list(image.snapshot_ids))["Snapshots"]
    assert snapshot["Encrypted"]
    assert bakery.bake().image.id == image.id, "reused"
    plain = bakery.bake(encrypt=False).image
    assert plain.id != image.id, "what was asked for is another image"
    (snapshot,) = bakery.served.ec2.describe_snapshots(SnapshotIds=list(plain.snapshot_ids))["Snapshots"]
    assert not snapshot["Encrypted"]
    # The seal stops the timers, and not the client before it: see test_recipe.
    assert not [command for command in bakery.guest.commands if "systemctl stop" in command]
    seal = (bakery.guest.root / "run/instant-bake/seal.sh").read_text()
    assert TTL_UNIT in seal
    assert EARLY_UNIT in seal


def test_a_registered_image_says_what_create_image_would_have_taken_over(bakery: Bakery) -> None:
    calls = Calls(bakery.cloud)
    made = bakery.bake(method=Method.REGISTER)
    assert "CreateImage" not in calls.changing
    (image,) = bakery.served.ec2.describe_images(ImageIds=[made.image.id])["Images"]
    assert (image["BootMode"], image["ImdsSupport"], image["EnaSupport"]) == ("uefi", "v2.0", True)
    assert (image["Architecture"], image["VirtualizationType"]) == ("x86_64", "hvm")
    assert image["RootDeviceName"] == "/dev/xvda"
    (snapshot,) = bakery.served.ec2.describe_snapshots(SnapshotIds=list(made.image.snapshot_ids))["Snapshots"]
    for tags in (image["Tags"], snapshot["Tags"]):
        assert {"Key": "instant-env:plan-hash", "Value": made.image.plan_hash} in tags
        assert "instant-env:expires-at" not in {tag["Key"] for tag in tags}
    assert bakery.leftovers() == NOTHING


@pytest.mark.parametrize(
    ("method", "action"), [(Method.CREATE_IMAGE, "CreateImage"), (Method.REGISTER, "RegisterImage")]
)
def test_an_image_whose_answer_was_lost_is_gone_on_with(bakery: Bakery, method: Method, action: str) -> None:
    """The client's repeat is refused as a duplicate, and it is our own image."""
    Aws(bakery.cloud, bakery.served).lose_answer(action)
    made = bakery.bake(method=method)
    assert bakery.images() == [made.image.id]
    assert bakery.leftovers() == NOTHING


@pytest.mark.parametrize("method", list(Method))
@pytest.mark.parametrize(("boot", "mode"), [("uki", "uefi"), ("bls", "uefi-preferred")])
def test_an_image_of_one_efi_binary_is_for_uefi_alone(
    bakery: Bakery, boot: str, mode: str, method: Method
) -> None:
    """CreateImage takes the boot mode of the builder's AMI, and RegisterImage what it is told. An image whose
    GRUB starts the kernel keeps the base's: GRUB does that under BIOS, too."""
    recipes = bakery.settings.recipes_dir
    for path, more in (
        (recipes / "pretend" / "recipe.yml", "initramfs: none\n"),
        (recipes / "bases" / "pretend.yml", f"boot: {boot}\n"),
    ):
        path.write_text(path.read_text() + more)
    stock = bakery.new_base("both-firmwares")
    bakery.served.state.images[stock].boot_mode = "uefi-preferred"
    made = bakery.bake(method=method)
    (image,) = bakery.served.ec2.describe_images(ImageIds=[made.image.id])["Images"]
    assert image["BootMode"] == mode
    record = json.loads((bakery.settings.state_dir / "manifests" / made.image.manifest).read_text())
    assert record["method"] == ("register" if boot == "uki" else method)
    assert bakery.leftovers() == NOTHING


def fail_launches(bakery: Bakery, codes: list[str]) -> None:
    def fail(**_: Any) -> None:
        if codes:
            raise ClientError(
                {"Error": {"Code": codes.pop(0), "Message": "as the test wants"}}, "RunInstances"
            )

    bakery.cloud.ec2.meta.events.register("before-call.ec2.RunInstances", fail)


def test_without_capacity_the_next_zone_is_tried_and_then_the_next_type(bakery: Bakery) -> None:
    calls = Calls(bakery.cloud)
    zones = bakery.served.ec2.describe_instance_type_offerings(
        LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": ["m6i.large"]}]
    )["InstanceTypeOfferings"]
    fail_launches(bakery, ["InsufficientInstanceCapacity", *["Unsupported"] * len(zones)])
    said: list[str] = []
    bakery.bake(said.append, builder_types=("m6i.large", "c6i.large"))
    tried = launches(calls)[:-1]
    assert [one["InstanceType"] for one in tried] == ["m6i.large"] * (1 + len(zones)) + ["c6i.large"]
    subnets = bakery.served.ec2.describe_subnets()["Subnets"]
    zone_of = {subnet["SubnetId"]: subnet["AvailabilityZone"] for subnet in subnets}
    places = [zone_of.get(one.get("SubnetId", "")) for one in tried]
    assert places == [None, *sorted(zone["Location"] for zone in zones), None]
    assert len({one["ClientToken"] for one in tried}) == len(tried)
    assert any("no m6i.large in us-east-1a: Unsupported" in line for line in said)


def test_no_capacity_anywhere_is_one_line_and_nothing_is_left(bakery: Bakery) -> None:
    fail_launches(bakery, ["InsufficientInstanceCapacity"] * 99)
    with pytest.raises(CloudError, match="InsufficientInstanceCapacity") as caught:
        bakery.bake()
    assert "\n" not in caught.value.message
    assert bakery.leftovers() == NOTHING
    assert bakery.images() == []


def test_another_error_of_a_launch_is_not_tried_again(bakery: Bakery) -> None:
    calls = Calls(bakery.cloud)
    fail_launches(bakery, ["UnauthorizedOperation"])
    with pytest.raises(CloudError, match="UnauthorizedOperation"):
        bakery.bake()
    assert len(launches(calls)) == 1


@pytest.mark.slow
def test_deprecation_and_protection_are_asked_for_a_verified_image(bakery: Bakery) -> None:
    """localec2 is not asked: the answers are given here."""
    asked: dict[str, Any] = {}

    def answer(params: Any, model: Any, **_: Any) -> Any:
        asked[model.name] = params["body"]
        return AWSResponse("", 200, HTTPHeaders(), None), {"Return": True}

    for action in ("EnableImageDeprecation", "EnableImageDeregistrationProtection"):
        bakery.cloud.ec2.meta.events.register(f"before-call.ec2.{action}", answer)
    image = bakery.bake(deprecate_after_days=30, protect=True).image
    assert asked["EnableImageDeprecation"]["ImageId"] == image.id
    assert asked["EnableImageDeregistrationProtection"]["ImageId"] == image.id
    assert image.id in bakery.images()


def test_what_failed_is_kept_when_asked_with_a_key_to_look_at_it(bakery: Bakery) -> None:
    bakery.guest.answers.append((r"01-first\.sh", "no such luck\n", 3))
    with pytest.raises(StepError, match="step first ended with 3: no such luck"):
        bakery.bake()
    assert bakery.leftovers() == NOTHING

    said: list[str] = []
    with pytest.raises(StepError):
        bakery.bake(said.append, on_error=OnError.KEEP)
    left = bakery.leftovers()
    assert {kind: len(ids) for kind, ids in left.items()} == dict.fromkeys(NOTHING, 1)
    (line,) = [line for line in said if "is kept until" in line]
    key = Path(line.split(" -i ")[1].split()[0])
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert asyncssh.read_private_key(key).get_algorithm() == "ssh-ed25519"
    assert "PRIVATE" not in "".join(said)
    assert (
        remove(bakery.cloud, janitor.survey(bakery.cloud, Policy(keep=3)).removals, lambda _: None).failures
        == []
    )
    assert bakery.leftovers() == NOTHING


def test_an_interrupt_cleans_up_also_where_a_failure_is_kept(bakery: Bakery) -> None:
    def press(text: str) -> None:
        if text.startswith("step 1/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bakery.bake(press, on_error=OnError.KEEP)
    assert bakery.leftovers() == NOTHING


def test_a_private_address_needs_a_place_in_the_vpc(bakery: Bakery) -> None:
    with pytest.raises(CloudError, match=r"is not in the VPC|no way to") as caught:
        bakery.bake(ssh_private=True)
    assert "--ssh-private" in caught.value.hint
    assert bakery.leftovers() == NOTHING


def test_options_that_make_no_sense() -> None:
    with pytest.raises(UsageError, match="--method copy: must be one of "):
        choose(Method, "copy", "--method")
    with pytest.raises(UsageError, match="--kms-key-id without encryption"):
        Options(encrypt=False, kms_key_id="alias/ours")
    with pytest.raises(UsageError, match="deprecated before"):
        Options(deprecate_after_days=-1)
    with pytest.raises(UsageError, match="within ten years"):
        Options(deprecate_after_days=3651)


@pytest.mark.slow
def test_an_image_that_is_there_gets_what_was_asked_for_besides(bakery: Bakery) -> None:
    first = bakery.bake()
    again = bakery.bake(protect=True, deprecate_after_days=30)
    assert again.reused
    assert again.image.id == first.image.id
    (image,) = bakery.served.ec2.describe_images(ImageIds=[first.image.id])["Images"]
    assert image["DeregistrationProtection"].startswith("enabled")
    assert image["DeprecationTime"]


def test_a_seal_that_fails_is_seen_on_the_console_while_the_machine_stays_on(
    bakery: Bakery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays so that no stop looks like success; nobody waits a quarter of an hour for it."""
    monkeypatch.setattr(bake_module, "_CONSOLE_EVERY_S", 0.05)

    def failed(**_: Any) -> tuple[AWSResponse, dict[str, Any]]:
        answer = AWSResponse("", 200, HTTPHeaders(), None)
        return answer, {"Output": f"rm: cannot remove\n{SEAL_FAILED}\n", "ResponseMetadata": {}}

    monkeypatch.setattr(bakery.guest, "sealed", lambda: None)
    console: Any = failed
    bakery.cloud.ec2.meta.events.register("before-call.ec2.GetConsoleOutput", console)
    with pytest.raises(VerifyError, match="the last step failed") as caught:
        bakery.bake()
    assert "cannot remove" in caught.value.hint
    assert bakery.leftovers() == NOTHING
    assert bakery.images() == []


def console_with(bakery: Bakery, *texts: str, latest: bool = True) -> list[bool]:
    """GetConsoleOutput answers these in turn, the last one for ever, or refuses Latest as types without Nitro
    do. Returns whether each call asked for Latest."""
    calls: list[bool] = []
    left = list(texts)

    def answer(params: dict[str, Any], **_: Any) -> tuple[AWSResponse, dict[str, Any]]:
        calls.append("Latest" in str(params["body"]))
        response = AWSResponse("", 200, HTTPHeaders(), None)
        if calls[-1] and not latest:
            error = {"Code": "UnsupportedOperation", "Message": "this type has no Latest"}
            return AWSResponse("", 400, HTTPHeaders(), None), {"Error": error, "ResponseMetadata": {}}
        text = left.pop(0) if len(left) > 1 else left[0]
        return response, {"Output": text, "ResponseMetadata": {}}

    hook: Any = answer
    bakery.cloud.ec2.meta.events.register("before-call.ec2.GetConsoleOutput", hook)
    return calls


def test_the_last_word_of_the_seal_is_waited_for_where_the_console_is_late(bakery: Bakery) -> None:
    calls = console_with(bakery, "", "boot", "boot", f"boot\n{SEALED}\n")
    bakery.bake(check_host_key=False)
    assert calls == [True] * 4


def test_a_builder_that_stops_without_the_seals_last_word_is_not_imaged(bakery: Bakery) -> None:
    """A panic and a timer stop it as well, and then what is on its disk is anything."""
    console_with(bakery, "boot\nKernel panic - not syncing\n")
    with pytest.raises(VerifyError, match="the last step failed") as caught:
        bakery.bake()
    assert "Kernel panic" in caught.value.hint
    assert bakery.leftovers() == NOTHING
    assert bakery.images() == []


def test_a_console_from_before_the_seal_proves_nothing(bakery: Bakery) -> None:
    """Types without Nitro have no other: then the audit alone decides."""
    lines: list[str] = []
    calls = console_with(bakery, "boot\n", latest=False)
    bakery.bake(lines.append)
    assert any("does not show the end of its last step" in line for line in lines)
    assert calls[:2] == [True, False]
