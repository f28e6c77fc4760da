"""Names, tags, texts and keys: what EC2 refuses is refused, before anything is made of it."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError
from cryptography.hazmat.primitives import serialization

from instant_env.localec2.records.records import TagsRecord
from instant_env.localec2.state.xml_text import xml_text

if TYPE_CHECKING:
    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)

ZONE = "us-east-1a"


def refused(code: str) -> Any:
    return pytest.raises(ClientError, match=rf"\({code.replace('.', '[.]')}\)")


@pytest.fixture
def ec2(served: Served) -> Any:
    """Without its types: parameters come from tables here."""
    return served.ec2


def tagged(kind: str, *tags: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"ResourceType": kind, "Tags": [{"Key": key, "Value": value} for key, value in tags]}]


# What XML cannot hold


@pytest.mark.parametrize("character", ["\x07", "\x0b", "\x1b", "\x00", "\ufffe"])
def test_what_xml_cannot_hold_is_refused(served: Served, ec2: Any, character: str) -> None:
    text = f"x{character}y"
    volume_id = ec2.create_volume(AvailabilityZone=ZONE, Size=1)["VolumeId"]
    calls: tuple[Callable[[], Any], ...] = (
        lambda: ec2.create_volume(
            AvailabilityZone=ZONE, Size=1, TagSpecifications=tagged("volume", ("a", text))
        ),
        lambda: ec2.create_tags(Resources=[volume_id], Tags=[{"Key": text, "Value": "v"}]),
        lambda: ec2.create_snapshot(VolumeId=volume_id, Description=text),
        lambda: ec2.create_security_group(GroupName=text, Description="d"),
        lambda: ec2.create_security_group(GroupName="g", Description=text),
        lambda: ec2.import_key_pair(KeyName=text, PublicKeyMaterial=b"x"),
        lambda: ec2.describe_volumes(VolumeIds=[f"vol-{character}"]),
        lambda: ec2.describe_volumes(Filters=[{"Name": text, "Values": ["x"]}]),
    )
    for call in calls:
        with refused("InvalidParameterValue"):
            call()
    assert len(ec2.describe_volumes()["Volumes"]) == 1
    iam = served.client("iam")
    calls = (
        lambda: iam.create_role(RoleName="r", Description=text, AssumeRolePolicyDocument="{}"),
        lambda: iam.get_role(RoleName=text),
    )
    for call in calls:
        with refused("ValidationError"):
            call()


def test_what_was_stored_before_harms_no_listing(served: Served, ec2: Any) -> None:
    volume_id = ec2.create_volume(AvailabilityZone=ZONE, Size=1)["VolumeId"]
    volume = served.state.volumes[volume_id]
    volume.tags = {"a": "x\x0by", "lines": "one\r\ntwo"}
    served.state.save(volume)
    subnet_id = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
    served.state.write(TagsRecord(resource_id=subnet_id, tags={"b": "\x1b"}))
    served.restart()
    tags = {tag["Key"]: tag["Value"] for tag in served.ec2.describe_tags()["Tags"]}
    assert tags == {"a": "x\ufffdy", "b": "\ufffd", "lines": "one\r\ntwo"}


def test_text_in_xml() -> None:
    assert xml_text("a<b>&\r\n\t\x07\U0001f600\ud800") == "a&lt;b&gt;&amp;&#13;\n\t\ufffd\U0001f600\ufffd"


# Tags


@pytest.mark.parametrize(
    ("tags", "code"),
    [
        ([("k", "v" * 257)], "InvalidParameterValue"),
        ([("k" * 129, "v")], "InvalidParameterValue"),
        ([("", "v")], "InvalidParameterValue"),
        ([("same", "1"), ("same", "2")], "InvalidParameterValue"),
        ([("AWS:mine", "v")], "InvalidParameterValue"),
        ([(f"k{number}", "v") for number in range(51)], "TagLimitExceeded"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_tags_that_cannot_be(ec2: Any, tags: list[tuple[str, str]], code: str) -> None:
    """With whatever makes or tags something."""
    volume_id = ec2.create_volume(AvailabilityZone=ZONE, Size=1)["VolumeId"]
    listed = [{"Key": key, "Value": value} for key, value in tags]
    calls: tuple[Callable[[], Any], ...] = (
        lambda: ec2.create_tags(Resources=[volume_id], Tags=listed),
        lambda: ec2.create_volume(AvailabilityZone=ZONE, Size=1, TagSpecifications=tagged("volume", *tags)),
        lambda: ec2.create_key_pair(KeyName="k", TagSpecifications=tagged("key-pair", *tags)),
        lambda: ec2.allocate_address(TagSpecifications=tagged("elastic-ip", *tags)),
    )
    for call in calls:
        with refused(code):
            call()
    assert ec2.describe_tags()["Tags"] == []


def test_tags_at_their_limits(ec2: Any) -> None:
    tags = [("k" * 128, "v" * 256), *((f"k{number}", "") for number in range(49))]
    ec2.create_volume(AvailabilityZone=ZONE, Size=1, TagSpecifications=tagged("volume", *tags))
    assert len(ec2.describe_tags(Filters=[{"Name": "resource-type", "Values": ["volume"]}])["Tags"]) == 50


def test_only_what_an_action_makes_has_tags(ec2: Any) -> None:
    calls: tuple[Callable[[], Any], ...] = (
        lambda: ec2.create_key_pair(KeyName="k", TagSpecifications=tagged("volume", ("a", "b"))),
        lambda: ec2.allocate_address(TagSpecifications=tagged("instance", ("a", "b"))),
        lambda: ec2.create_security_group(
            GroupName="g", Description="d", TagSpecifications=tagged("vpc", ("a", "b"))
        ),
    )
    for call in calls:
        with refused("InvalidParameterValue"):
            call()


METADATA = {"InstanceMetadataTags": "enabled"}


@pytest.mark.parametrize("key", ["k8s.io/owned", "Patch Group", "_index", "..", ".", "größe"])
def test_tags_that_metadata_cannot_show(served: Served, ec2: Any, key: str) -> None:
    """At a launch, when metadata begins to show tags, and when a tag is added."""
    launch = {"ImageId": served.register(), "InstanceType": "t3.micro", "MinCount": 1, "MaxCount": 1}
    with refused("InvalidParameterValue"):
        ec2.run_instances(
            **launch, MetadataOptions=METADATA, TagSpecifications=tagged("instance", (key, "v"))
        )
    made = ec2.run_instances(**launch, TagSpecifications=tagged("instance", (key, "v")))["Instances"][0]
    with refused("InvalidParameterValue"):
        ec2.modify_instance_metadata_options(InstanceId=made["InstanceId"], **METADATA)
    shown = ec2.run_instances(**launch, MetadataOptions=METADATA)["Instances"][0]["InstanceId"]
    with refused("InvalidParameterValue"):
        ec2.create_tags(Resources=[shown], Tags=[{"Key": key, "Value": "v"}])
    ec2.create_tags(Resources=[shown], Tags=[{"Key": "a-_+=,.@:b", "Value": "v"}])


# Names


NAMES: list[tuple[str, dict[str, Any]]] = [
    ("create_key_pair", {"KeyName": "k" * 256}),
    ("create_key_pair", {"KeyName": " k"}),
    ("create_key_pair", {"KeyName": "a\nb"}),
    ("create_key_pair", {"KeyName": "ключ"}),
    ("create_security_group", {"GroupName": "g" * 256, "Description": "d"}),
    ("create_security_group", {"GroupName": "größe", "Description": "d"}),
    ("create_security_group", {"GroupName": "sg-mine", "Description": "d"}),
    ("create_security_group", {"GroupName": "g", "Description": "d" * 256}),
    ("create_security_group", {"GroupName": "g", "Description": "<d>"}),
    ("create_network_interface", {"SubnetId": "subnet-0", "Description": "d" * 256}),
    ("create_volume", {"AvailabilityZone": ZONE, "Size": 1, "ClientToken": "t" * 65}),
]


@pytest.mark.parametrize(("call", "arguments"), NAMES, ids=lambda value: str(value)[:40])
def test_names_that_cannot_be(ec2: Any, call: str, arguments: dict[str, Any]) -> None:
    with refused("InvalidParameterValue"):
        getattr(ec2, call)(**arguments)


@pytest.mark.parametrize(
    "name",
    ["/instant-env/web (1)/x", "/a/web+php", "/a/größe", "a/b", "/aws/x", "ssm-x", "/a" * 16, "x" * 1012],
)
def test_parameter_names_that_cannot_be(served: Served, name: str) -> None:
    with refused("ValidationException"):
        served.ssm.put_parameter(Name=name, Value="v", Type="String")
    served.ssm.put_parameter(Name="/a.b-c_d/E", Value="v", Type="String")


@pytest.mark.parametrize("name", ["r" * 65, "a b", "a/b", "größe"])
def test_role_names_that_cannot_be(served: Served, name: str) -> None:
    with refused("ValidationError"):
        served.client("iam").create_role(RoleName=name, AssumeRolePolicyDocument="{}")


def test_more_filters_than_a_request_has(ec2: Any) -> None:
    with refused("FilterLimitExceeded"):
        ec2.describe_volumes(Filters=[{"Name": "size", "Values": [str(n) for n in range(201)]}])
    with refused("FilterLimitExceeded"):
        ec2.describe_volumes(Filters=[{"Name": f"tag:{n}", "Values": ["x"]} for n in range(51)])


# Keys


def keygen(directory: Path, kind: str, *options: str) -> Path:
    path = directory / kind
    subprocess.run(
        ["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "a comment of words", "-f", str(path), *options],
        check=True,
    )
    return path.with_suffix(".pub")


def output(*command: str) -> bytes:
    return subprocess.run(command, check=True, capture_output=True).stdout


@pytest.mark.parametrize(("kind", "options"), [("ed25519", ()), ("rsa", ("-b", "2048"))])
def test_a_key_in_each_form_is_one_line(
    served: Served, ec2: Any, tmp_path: Path, kind: str, options: tuple[str, ...]
) -> None:
    public = keygen(tmp_path, kind, *options)
    line = public.read_text()
    key = serialization.load_ssh_public_key(line.encode())
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    forms = {
        "openssh": line.encode(),
        "bare": " ".join(line.split()[:2]).encode(),
        "rfc4716": output("ssh-keygen", "-e", "-m", "RFC4716", "-f", str(public)),
        "der": base64.b64encode(der),
        "der-lines": base64.encodebytes(der),
    }
    prints = {
        ec2.import_key_pair(KeyName=name, PublicKeyMaterial=form)["KeyFingerprint"]
        for name, form in forms.items()
    }
    assert len(prints) == 1
    for name in forms:
        kept = served.state.mirror.ec2.key_pairs[name].public_key
        assert kept.split()[:2] == line.split()[:2], name
    assert served.state.mirror.ec2.key_pairs["openssh"].public_key == line.strip()
    (fingerprint,) = prints
    if kind == "rsa":  # EC2 User Guide, "Verify the fingerprint": openssl rsa -pubout -outform DER | md5
        shown = output("ssh-keygen", "-e", "-m", "PKCS8", "-f", str(public))
        (tmp_path / "pem").write_bytes(shown)
        whole = output("openssl", "pkey", "-pubin", "-in", str(tmp_path / "pem"), "-outform", "DER")
        (tmp_path / "der").write_bytes(whole)
        digest = output("openssl", "md5", "-c", str(tmp_path / "der")).decode().split("= ")[1].strip()
        assert fingerprint == digest
    else:
        listed = output("ssh-keygen", "-l", "-f", str(public)).decode().split()[1]
        assert fingerprint == listed.removeprefix("SHA256:") + "="


def test_the_fingerprint_of_a_pair_that_was_created(ec2: Any, tmp_path: Path) -> None:
    """EC2 User Guide: openssl pkcs8 -in key.pem -inform PEM -outform DER -topk8 -nocrypt | openssl sha1 -c"""
    pair = ec2.create_key_pair(KeyName="k")
    (tmp_path / "k.pem").write_text(pair["KeyMaterial"])
    der = output(
        "openssl", "pkcs8", "-in", str(tmp_path / "k.pem"), "-inform", "PEM", "-outform", "DER", "-topk8",
        "-nocrypt",
    )  # fmt: skip
    (tmp_path / "k.der").write_bytes(der)
    digest = output("openssl", "sha1", "-c", str(tmp_path / "k.der")).decode().split("= ")[1].strip()
    assert pair["KeyFingerprint"] == digest
    assert ec2.describe_key_pairs(KeyNames=["k"])["KeyPairs"][0]["KeyFingerprint"] == digest


def test_keys_that_ec2_does_not_take(served: Served, ec2: Any, tmp_path: Path) -> None:
    """Each is refused, and the next key of that name is taken: nothing half-made stays."""
    good = keygen(tmp_path, "ed25519").read_bytes()
    rfc4716 = output("ssh-keygen", "-e", "-m", "RFC4716", "-f", str(tmp_path / "ed25519.pub"))
    bad = {
        "ecdsa": keygen(tmp_path, "ecdsa").read_bytes(),
        "private": (tmp_path / "ed25519").read_bytes(),
        "two": good + good,
        "options": b'command="true" ' + good,
        "cut": good[:40],
        "no end": rfc4716.rpartition(b"----")[0].rpartition(b"----")[0],
        "base64 of text": base64.b64encode(b"hello"),
        "words": b"not a key",
        "bytes": b"\xff\xfe\x00",
        "cyrillic": "ключ".encode(),
        "long": b"A" * 40000,
    }
    for name, material in bad.items():
        with refused("InvalidKey.Format"):
            ec2.import_key_pair(KeyName="k", PublicKeyMaterial=material)
        assert ec2.describe_key_pairs()["KeyPairs"] == [], name
    ec2.import_key_pair(KeyName="k", PublicKeyMaterial=good)
    served.restart()
    assert [pair["KeyName"] for pair in served.ec2.describe_key_pairs()["KeyPairs"]] == ["k"]
