"""What the API's calls make of a machine's metadata file: credentials, pushed keys, the notice, the tree."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncssh
import pytest
from botocore.exceptions import ClientError
from test_localec2_instances import code_of, run, wait

from instant_env.localec2.network import metadata
from instant_env.localec2.records.records import InstanceRecord, Interruption
from instant_env.localec2.state import credentials

if TYPE_CHECKING:
    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)

TRUST = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": {
            "Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole",
        },
    }
)  # fmt: skip
READ = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": ["ec2:Describe*"], "Resource": "*"}],
    }
)


def make_profile(served: Served, name: str = "web", trust: str = TRUST) -> dict[str, Any]:
    """A profile with a role of its name, which may describe."""
    iam = served.client("iam")
    iam.create_role(RoleName=name, AssumeRolePolicyDocument=trust)
    iam.put_role_policy(RoleName=name, PolicyName="read", PolicyDocument=READ)
    profile: dict[str, Any] = iam.create_instance_profile(InstanceProfileName=name)["InstanceProfile"]
    iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    return profile


def running(served: Served, **more: Any) -> str:
    (launched,) = run(served, served.register(), **more)
    instance_id: str = launched["InstanceId"]
    wait(served, instance_id, "running")
    return instance_id


def imds(served: Served, instance_id: str) -> dict[str, Any]:
    path = served.state.layout.instances / instance_id / "metadata.json"
    assert path.stat().st_mode & 0o077 == 0
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def security_credentials(served: Served, instance_id: str, role: str = "web") -> dict[str, str]:
    text = imds(served, instance_id)["tree"]["iam"]["security-credentials"][role]
    found: dict[str, str] = json.loads(text)
    return found


def signed_with(served: Served, service: str, found: dict[str, str], **changed: str | None) -> Any:
    arguments = {
        "aws_access_key_id": found["AccessKeyId"], "aws_secret_access_key": found["SecretAccessKey"],
        "aws_session_token": found["Token"],
    }  # fmt: skip
    return served.client(service, **(arguments | changed))


# Profiles and credentials


def test_a_machine_has_the_credentials_of_its_role(served: Served) -> None:
    profile = make_profile(served)
    assert profile["InstanceProfileId"].startswith("AIPA")
    instance_id = running(served, IamInstanceProfile={"Name": "web"})
    (shown,) = served.ec2.describe_instances()["Reservations"][0]["Instances"]
    assert shown["IamInstanceProfile"] == {"Arn": profile["Arn"], "Id": profile["InstanceProfileId"]}
    tree = imds(served, instance_id)["tree"]["iam"]
    info = json.loads(tree["info"])
    assert (info["Code"], info["InstanceProfileArn"]) == ("Success", profile["Arn"])
    assert '"Code" : "Success",\n' in tree["info"]
    found = security_credentials(served, instance_id)
    assert list(found) == [
        "Code", "LastUpdated", "Type", "AccessKeyId", "SecretAccessKey", "Token", "Expiration"
    ]  # fmt: skip
    assert (found["Code"], found["Type"]) == ("Success", "AWS-HMAC")
    assert found["AccessKeyId"].startswith("ASIA")
    assert len(found["AccessKeyId"]) == 20
    identity = signed_with(served, "sts", found).get_caller_identity()
    assert identity["Arn"] == f"arn:aws:sts::123456789012:assumed-role/web/{instance_id}"
    role_id = served.client("iam").get_role(RoleName="web")["Role"]["RoleId"]
    assert identity["UserId"] == f"{role_id}:{instance_id}"
    assert signed_with(served, "ec2", found).describe_instances()["Reservations"]


def test_credentials_are_checked_whole(served: Served) -> None:
    make_profile(served)
    found = security_credentials(served, running(served, IamInstanceProfile={"Name": "web"}))
    broken = found["Token"][:-8] + "AAAAAAA="
    for changed, code in (
        ({"aws_secret_access_key": "other"}, "SignatureDoesNotMatch"),
        ({"aws_session_token": broken}, "InvalidClientTokenId"),
        ({"aws_session_token": "not base64"}, "InvalidClientTokenId"),
        ({"aws_session_token": None}, "AuthFailure"),
        ({"aws_access_key_id": served.state.server.access_key_id}, "AuthFailure"),
    ):
        with pytest.raises(ClientError) as error:
            signed_with(served, "sts", found, **changed).get_caller_identity()
        assert code_of(error) == code, changed


def test_each_service_has_its_own_name_for_a_token(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    make_profile(served)
    found = security_credentials(served, running(served, IamInstanceProfile={"Name": "web"}))
    calls: dict[str, Callable[[Any], Any]] = {
        "sts": lambda sts: sts.get_caller_identity(),
        "ec2": lambda ec2: ec2.describe_instances(),
        "iam": lambda iam: iam.list_roles(),
        "ssm": lambda ssm: ssm.get_parameter(Name="x"),
    }

    def codes(**changed: str) -> dict[str, str]:
        seen = {}
        for service, call in calls.items():
            with pytest.raises(ClientError) as error:
                call(signed_with(served, service, found, **changed))
            seen[service] = code_of(error)
        return seen

    invalid, other = "InvalidClientTokenId", "UnrecognizedClientException"
    expected = {"sts": invalid, "ec2": "AuthFailure", "iam": invalid, "ssm": other}
    assert codes(aws_session_token="AAAA") == expected
    monkeypatch.setattr(credentials, "LIFETIME", timedelta(0))
    expired = {"sts": "ExpiredToken", "iam": "ExpiredToken", "ssm": "ExpiredTokenException"}
    assert codes() == expired | {"ec2": "RequestExpired"}


def test_iam_is_the_same_in_every_region(served: Served) -> None:
    make_profile(served)
    for region in ("eu-west-1", "us-east-1"):
        iam = served.client("iam", region_name=region)
        assert [role["RoleName"] for role in iam.list_roles()["Roles"]] == ["web"]
    with pytest.raises(ClientError) as error:
        served.client("sts", region_name="eu-west-1").get_caller_identity()
    assert code_of(error) == "UnsupportedOperation"


def test_credentials_outlive_the_server_but_not_their_role(served: Served) -> None:
    make_profile(served)
    found = security_credentials(served, running(served, IamInstanceProfile={"Name": "web"}))
    served.restart()
    assert (
        signed_with(served, "sts", found)
        .get_caller_identity()["Arn"]
        .endswith(":assumed-role/web/" + one(served))
    )
    iam = served.client("iam")
    iam.remove_role_from_instance_profile(InstanceProfileName="web", RoleName="web")
    iam.delete_role_policy(RoleName="web", PolicyName="read")
    iam.delete_role(RoleName="web")
    iam.create_role(RoleName="web", AssumeRolePolicyDocument=TRUST)  # the same name is another role
    with pytest.raises(ClientError) as error:
        signed_with(served, "sts", found).get_caller_identity()
    assert code_of(error) == "InvalidClientTokenId"


def one(served: Served) -> str:
    return str(served.ec2.describe_instances()["Reservations"][0]["Instances"][0]["InstanceId"])


def test_a_role_may_do_what_its_policies_say(served: Served) -> None:
    make_profile(served)
    instance_id = running(served, IamInstanceProfile={"Name": "web"})
    found = security_credentials(served, instance_id)
    ec2, ssm = signed_with(served, "ec2", found), signed_with(served, "ssm", found)
    with pytest.raises(ClientError) as error:
        ec2.terminate_instances(InstanceIds=[instance_id])
    assert code_of(error) == "UnauthorizedOperation"
    with pytest.raises(ClientError) as error:
        ssm.get_parameter(Name="x")
    assert code_of(error) == "AccessDeniedException"
    iam = served.client("iam")
    iam.attach_role_policy(RoleName="web", PolicyArn="arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore")
    with pytest.raises(ClientError) as error:
        ssm.get_parameter(Name="x")
    assert code_of(error) == "ParameterNotFound"
    everything = {"Version": "2012-10-17", "Statement": {"Effect": "Deny", "Action": "*", "Resource": "*"}}
    iam.put_role_policy(RoleName="web", PolicyName="no", PolicyDocument=json.dumps(everything))
    with pytest.raises(ClientError) as error:
        ec2.describe_instances()
    assert code_of(error) == "UnauthorizedOperation"
    assert signed_with(served, "sts", found).get_caller_identity(), "this is always allowed"


def test_new_credentials_come_each_hour_and_end_after_six() -> None:
    issuer = credentials.Issuer("secret")
    since = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    at = since + timedelta(hours=2, minutes=59)
    issued = credentials.issue_time(since, at)
    assert issued == since + timedelta(hours=2)
    made = issuer.issue(credentials.Session("web", "AROA1", "i-1", issued))
    assert issuer.open(made.token, issued + timedelta(hours=6, seconds=-1)) == made
    assert made.secret_access_key not in repr(made)
    assert made.token not in repr(made)
    with pytest.raises(credentials.CredentialsError) as error:
        issuer.open(made.token, issued + timedelta(hours=6))
    assert error.value.expired
    with pytest.raises(credentials.CredentialsError) as error:
        credentials.Issuer("another").open(made.token, issued)
    assert not error.value.expired


def test_a_running_machine_gets_them_without_being_asked(served: Served) -> None:
    make_profile(served)
    instance_id = running(served, IamInstanceProfile={"Name": "web"})
    earlier = security_credentials(served, instance_id)
    with served.state.lock:
        association = served.state.instances[instance_id].profile
        assert association is not None
        association.since -= timedelta(minutes=59)
        served.services.refresh_credentials(datetime.now(UTC))
        assert security_credentials(served, instance_id) == earlier
        association.since -= timedelta(minutes=2)
        served.services.refreshed_at -= timedelta(minutes=3)
        served.services.refresh_credentials(datetime.now(UTC))
    later = security_credentials(served, instance_id)
    assert later["Token"] != earlier["Token"]
    assert signed_with(served, "sts", earlier).get_caller_identity()["Arn"]


def test_no_credentials_in_records_or_logs(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="instant_env")
    make_profile(served)
    found = security_credentials(served, running(served, IamInstanceProfile={"Name": "web"}))
    signed_with(served, "ec2", found).describe_instances()
    text = caplog.text + "".join(path.read_text() for path in served.state.layout.records.rglob("*.json"))
    assert found["SecretAccessKey"] not in text
    assert found["Token"] not in text


def test_associations_come_and_go(served: Served) -> None:
    web, other = make_profile(served), make_profile(served, "other")
    instance_id = running(served)
    assert "iam" not in imds(served, instance_id)["tree"]
    made = served.ec2.associate_iam_instance_profile(
        InstanceId=instance_id, IamInstanceProfile={"Arn": web["Arn"]}
    )["IamInstanceProfileAssociation"]
    assert (made["State"], made["InstanceId"]) == ("associating", instance_id)
    assert "web" in imds(served, instance_id)["tree"]["iam"]["security-credentials"]
    with pytest.raises(ClientError) as error:
        served.ec2.associate_iam_instance_profile(
            InstanceId=instance_id, IamInstanceProfile={"Name": "other"}
        )
    assert code_of(error) == "IncorrectState"
    replaced = served.ec2.replace_iam_instance_profile_association(
        AssociationId=made["AssociationId"], IamInstanceProfile={"Name": "other"}
    )["IamInstanceProfileAssociation"]
    assert replaced["AssociationId"] != made["AssociationId"]
    assert list(imds(served, instance_id)["tree"]["iam"]["security-credentials"]) == ["other"]
    served.restart()
    filters: Any = [{"Name": "instance-id", "Values": [instance_id]}]
    (described,) = served.ec2.describe_iam_instance_profile_associations(Filters=filters)[
        "IamInstanceProfileAssociations"
    ]
    assert described["State"] == "associated"
    assert described["IamInstanceProfile"]["Arn"] == other["Arn"]
    ended = served.ec2.disassociate_iam_instance_profile(AssociationId=described["AssociationId"])
    assert ended["IamInstanceProfileAssociation"]["State"] == "disassociating"
    assert not served.ec2.describe_iam_instance_profile_associations()["IamInstanceProfileAssociations"]
    with pytest.raises(ClientError) as error:
        served.ec2.disassociate_iam_instance_profile(AssociationId=described["AssociationId"])
    assert code_of(error) == "InvalidAssociationID.NotFound"


@pytest.mark.parametrize(
    ("profile", "code", "words"),
    [
        (
            {"Name": "no"},
            "InvalidParameterValue",
            "Value (no) for parameter iamInstanceProfile.name is invalid",
        ),
        ({"Arn": "arn:x"}, "InvalidParameterValue", "Invalid IAM Instance Profile ARN"),
        ({"Name": "web", "Arn": "arn:x"}, "InvalidParameterCombination", "may not be used in combination"),
    ],
)
def test_a_profile_that_is_none_launches_nothing(served: Served, profile: Any, code: str, words: str) -> None:
    with pytest.raises(ClientError) as error:
        run(served, served.register(), IamInstanceProfile=profile)
    assert code_of(error) == code
    assert words in str(error.value)
    assert not served.ec2.describe_instances()["Reservations"]


def test_imds_says_what_is_wrong_with_a_role(served: Served) -> None:
    make_profile(served, trust=TRUST.replace("ec2", "lambda"))
    instance_id = running(served, IamInstanceProfile={"Name": "web"})
    assert security_credentials(served, instance_id)["Code"] == "AssumeRoleUnauthorizedAccess"
    iam = served.client("iam")
    iam.update_assume_role_policy(RoleName="web", PolicyDocument=TRUST)
    assert security_credentials(served, instance_id)["Code"] == "Success"
    iam.remove_role_from_instance_profile(InstanceProfileName="web", RoleName="web")
    assert "security-credentials" not in imds(served, instance_id)["tree"]["iam"]
    iam.delete_instance_profile(InstanceProfileName="web")
    assert json.loads(imds(served, instance_id)["tree"]["iam"]["info"])["Code"] == "InstanceProfileNotFound"


# IAM


def test_roles_and_profiles_outlive_the_server(served: Served) -> None:
    profile = make_profile(served)
    iam = served.client("iam")
    arn = "arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore"
    iam.attach_role_policy(RoleName="web", PolicyArn=arn)
    iam.create_role(
        RoleName="Mixed+Name@x", AssumeRolePolicyDocument=TRUST, Path="/team/", Description="words",
        Tags=[{"Key": "Project", "Value": "p"}],
    )  # fmt: skip

    def everything() -> Any:
        iam = served.client("iam")
        found = [
            iam.get_role(RoleName="web"), iam.get_role(RoleName="Mixed+Name@x"), iam.list_roles(),
            iam.get_role_policy(RoleName="web", PolicyName="read"),
            iam.list_role_policies(RoleName="web"), iam.list_attached_role_policies(RoleName="web"),
            iam.get_instance_profile(InstanceProfileName="web"), iam.list_instance_profiles(),
            iam.list_instance_profiles_for_role(RoleName="web"),
        ]  # fmt: skip
        return [{k: v for k, v in item.items() if k != "ResponseMetadata"} for item in found]

    before = everything()
    assert before[0]["Role"]["AssumeRolePolicyDocument"] == json.loads(TRUST)
    assert before[5]["AttachedPolicies"][0]["PolicyArn"] == arn
    assert before[6]["InstanceProfile"]["InstanceProfileId"] == profile["InstanceProfileId"]
    served.restart()
    assert everything() == before
    iam = served.client("iam")
    iam.detach_role_policy(RoleName="web", PolicyArn=arn)
    iam.delete_role_policy(RoleName="web", PolicyName="read")
    with pytest.raises(ClientError) as error:
        iam.delete_role(RoleName="web")
    assert code_of(error) == "DeleteConflict"
    iam.remove_role_from_instance_profile(InstanceProfileName="web", RoleName="web")
    iam.delete_role(RoleName="web")
    iam.delete_instance_profile(InstanceProfileName="web")
    served.restart()
    iam = served.client("iam")
    assert [role["RoleName"] for role in iam.list_roles()["Roles"]] == ["Mixed+Name@x"]
    assert not iam.list_instance_profiles()["InstanceProfiles"]


def test_iam_refuses(served: Served) -> None:
    iam, refused = served.client("iam"), "UnsupportedOperation"
    role: dict[str, str] = {"RoleName": "x", "AssumeRolePolicyDocument": TRUST}
    policy = "arn:aws:iam::aws:policy/no"
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: iam.create_user(UserName="me"), refused),
        (iam.list_users, refused),
        (lambda: iam.create_role(**role, PermissionsBoundary=policy), refused),
        (lambda: iam.get_role(RoleName="no"), "NoSuchEntity"),
        (lambda: iam.get_instance_profile(InstanceProfileName="no"), "NoSuchEntity"),
        (lambda: iam.attach_role_policy(RoleName="no", PolicyArn=policy), "NoSuchEntity"),
        (lambda: iam.put_role_policy(RoleName="no", PolicyName="p", PolicyDocument=READ), "NoSuchEntity"),
    ]
    for call, code in calls:
        with pytest.raises(ClientError) as error:
            call()
        assert code_of(error) == code
    assert not iam.list_roles()["Roles"]


def test_sts_gives_out_no_credentials(served: Served) -> None:
    make_profile(served)
    sts = served.client("sts")
    assert sts.get_caller_identity()["Arn"] == "arn:aws:iam::123456789012:user/localec2"
    with pytest.raises(ClientError) as error:
        sts.assume_role(RoleArn="arn:aws:iam::123456789012:role/web", RoleSessionName="me")
    assert code_of(error) == "UnsupportedOperation"


# EC2 Instance Connect


def public_key(algorithm: str = "ssh-ed25519", **options: Any) -> str:
    key = asyncssh.generate_private_key(algorithm, comment="me@laptop", **options)
    return key.export_public_key().decode().strip()


def send(served: Served, instance_id: str, key: str, **more: str) -> Any:
    return served.client("ec2-instance-connect").send_ssh_public_key(
        **({"InstanceId": instance_id, "InstanceOSUser": "admin", "SSHPublicKey": key} | more)
    )


def test_a_pushed_key_is_there_for_a_minute(served: Served) -> None:
    instance_id, before = running(served), datetime.now(UTC)
    assert "managed-ssh-keys" not in imds(served, instance_id)["tree"]
    first, second = public_key(), public_key("ssh-rsa", key_size=2048)
    assert send(served, instance_id, first, AvailabilityZone="us-east-1a")["Success"] is True
    send(served, instance_id, second, InstanceOSUser="root")
    keys = imds(served, instance_id)["active_keys"]
    assert [key["user"] for key in keys] == ["admin", "root"]
    lines = keys[0]["text"].splitlines()
    assert [line.partition("=")[0] for line in lines[:4]] == [
        "#Timestamp",
        "#Instance",
        "#Caller",
        "#Request",
    ]
    assert lines[1] == f"#Instance={instance_id}"
    assert lines[4] == " ".join(first.split()[:2])
    assert int(lines[0].partition("=")[2]) == keys[0]["expires"]
    left_s = keys[0]["expires"] - before.timestamp()
    assert 59 <= left_s <= 75


def test_openssl_verifies_a_pushed_key_as_the_guests_package_does(served: Served, tmp_path: Path) -> None:
    """The checks of eic_parse_authorized_keys, by the same openssl commands."""
    instance_id = running(served)
    send(served, instance_id, public_key())
    content = imds(served, instance_id)
    managed = content["tree"]["managed-ssh-keys"]

    def openssl(*arguments: str) -> str:
        result = subprocess.run(
            ["openssl", *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return result.stdout.strip()

    ends = "-----END CERTIFICATE-----\n"
    chain = [part + ends for part in managed["signer-cert"].split(ends) if part]
    for name, part in zip(("cert.pem", "ca.pem"), chain, strict=True):
        (tmp_path / name).write_text(part)
    assert openssl("x509", "-noout", "-subject", "-in", "cert.pem").endswith(
        "managed-ssh-signer.us-east-1.amazonaws.com"
    )
    assert openssl("verify", "-x509_strict", "-CAfile", "ca.pem", "cert.pem") == "cert.pem: OK"
    fingerprint = openssl("x509", "-noout", "-fingerprint", "-sha1", "-in", "cert.pem").partition("=")[2]
    ((name, staple),) = managed["signer-ocsp"].items()
    assert name == fingerprint.replace(":", "")
    (tmp_path / "staple").write_bytes(base64.b64decode(staple))
    said = openssl(
        "ocsp",
        "-no_nonce",
        "-issuer",
        "ca.pem",
        "-cert",
        "cert.pem",
        "-VAfile",
        "ca.pem",
        "-respin",
        "staple",
    )
    assert said.startswith("cert.pem: good")
    lines = content["active_keys"][0]["text"].splitlines()
    (tmp_path / "signed").write_text("\n".join(lines[:5]) + "\n")
    (tmp_path / "signature").write_bytes(base64.b64decode(lines[5]))
    (tmp_path / "pubkey").write_text(openssl("x509", "-pubkey", "-noout", "-in", "cert.pem"))
    pss = ["-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:32"]
    verify = ["dgst", "-sha256", *pss, "-verify", "pubkey", "-signature", "signature", "signed"]
    assert openssl(*verify) == "Verified OK"
    served.restart()
    served.ec2.start_instances(InstanceIds=[instance_id])
    wait(served, instance_id, "running")
    send(served, instance_id, public_key())
    assert imds(served, instance_id)["tree"]["managed-ssh-keys"]["signer-cert"] == managed["signer-cert"]


def test_what_is_no_key_for_a_machine_is_refused(served: Served) -> None:
    instance_id, good, invalid = running(served), public_key(), "InvalidArgsException"
    changes: list[tuple[dict[str, str], str]] = [
        ({"InstanceId": "i-0123456789abcdef0"}, "EC2InstanceNotFoundException"),
        ({"AvailabilityZone": "us-east-1b"}, "EC2InstanceNotFoundException"),
        ({"InstanceId": "i-nothexnothex"}, invalid),
        ({"InstanceOSUser": "../root"}, invalid),
        ({"InstanceOSUser": "12"}, invalid),
        ({"SSHPublicKey": "ssh-ed25519 " + "A" * 80}, invalid),
        ({"SSHPublicKey": public_key("ecdsa-sha2-nistp256")}, invalid),
        ({"SSHPublicKey": public_key("ssh-rsa", key_size=1024)}, invalid),
        ({"SSHPublicKey": f"{good}\n{public_key()}"}, invalid),
        ({"SSHPublicKey": f'command="id" {good}'}, invalid),
    ]
    connect = served.client("ec2-instance-connect")
    fine = {"InstanceId": instance_id, "InstanceOSUser": "admin", "SSHPublicKey": good}
    for change, code in changes:
        with pytest.raises(ClientError) as error:
            connect.send_ssh_public_key(**(fine | change))
        assert code_of(error) == code, change
    assert imds(served, instance_id)["active_keys"] == []


def test_a_key_in_ssh2_format_is_one(served: Served) -> None:
    instance_id, key = running(served), asyncssh.generate_private_key("ssh-ed25519")
    send(served, instance_id, key.export_public_key("rfc4716").decode())
    (pushed,) = imds(served, instance_id)["active_keys"]
    line = " ".join(key.export_public_key().decode().split()[:2])
    assert line in pushed["text"].splitlines()


def test_a_stopped_machine_takes_no_key_and_a_started_one_has_none_left(served: Served) -> None:
    instance_id = running(served)
    send(served, instance_id, public_key())
    served.ec2.stop_instances(InstanceIds=[instance_id])
    wait(served, instance_id, "stopped")
    with pytest.raises(ClientError) as error:
        send(served, instance_id, public_key())
    assert code_of(error) == "EC2InstanceStateInvalidException"
    served.ec2.start_instances(InstanceIds=[instance_id])
    wait(served, instance_id, "running")
    assert imds(served, instance_id)["active_keys"] == []


# The tree


def test_the_interruption_notice(served: Served) -> None:
    instance_id = running(served)
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    notices = [
        (Interruption(action="terminate", noticed=at, time=at), ["instance-action", "termination-time"]),
        (Interruption(action="stop", noticed=at, time=at), ["instance-action"]),
    ]
    for notice, names in notices:
        with served.state.lock:
            instance = served.state.instances[instance_id]
            instance.interruption = notice
            served.state.save(instance)
            served.services.instance_changed(instance)
        spot = imds(served, instance_id)["tree"]["spot"]
        assert sorted(spot) == names
        told = {"action": notice.action, "time": "2026-01-02T03:04:05Z"}
        assert json.loads(spot["instance-action"]) == told
        assert spot.get("termination-time", told["time"]) == told["time"]
        recommended = imds(served, instance_id)["tree"]["events"]["recommendations"]["rebalance"]
        assert json.loads(recommended) == {"noticeTime": told["time"]}


def test_a_volume_is_told_of_from_the_next_start_on(served: Served) -> None:
    """The EC2 User Guide: "if they were present at launch time or when the instance was last started"."""
    instance_id = running(served)
    volume_id = served.ec2.create_volume(AvailabilityZone="us-east-1a", Size=1)["VolumeId"]
    with served.state.lock:
        served.state.instances[instance_id].launch_time -= timedelta(seconds=2)
    served.ec2.attach_volume(VolumeId=volume_id, InstanceId=instance_id, Device="/dev/sdf")
    served.ec2.create_tags(Resources=[instance_id], Tags=[{"Key": "a", "Value": "b"}])
    assert "ebs1" not in imds(served, instance_id)["tree"]["block-device-mapping"]
    served.ec2.stop_instances(InstanceIds=[instance_id])
    wait(served, instance_id, "stopped")
    served.ec2.start_instances(InstanceIds=[instance_id])
    wait(served, instance_id, "running")
    assert imds(served, instance_id)["tree"]["block-device-mapping"]["ebs1"] == "/dev/sdf"


def test_groups_and_options_are_told_while_running(served: Served) -> None:
    instance_id = running(served)
    group_id = served.ec2.create_security_group(GroupName="web", Description="web")["GroupId"]
    served.ec2.modify_instance_attribute(InstanceId=instance_id, Groups=[group_id])
    served.ec2.modify_instance_metadata_options(
        InstanceId=instance_id, HttpPutResponseHopLimit=3, HttpEndpoint="disabled"
    )
    content = imds(served, instance_id)
    assert content["tree"]["security-groups"] == "web"
    (interface,) = content["tree"]["network"]["interfaces"]["macs"].values()
    assert (interface["security-groups"], interface["security-group-ids"]) == ("web", group_id)
    assert (content["hop_limit"], content["http_endpoint"]) == (3, "disabled")


def test_any_number_of_interfaces_has_its_place() -> None:
    instance = InstanceRecord(
        id="i-1", reservation_id="r-1", interface_id="eni-1", interface_attachment_id="eni-attach-1",
        mac_address="02:00:00:00:00:01", image_id="ami-1", architecture="x86_64",
        root_device_name="/dev/xvda", instance_type="t3.micro", key_name=None, public_key=None,
        security_group_ids=["sg-1"], subnet_id="subnet-1", zone="us-east-1a", private_ip="172.31.5.10",
        launch_time=datetime.now(UTC),
    )  # fmt: skip
    second = metadata.Interface(
        1, "eni-2", "02:00:00:00:00:02", ("172.31.16.4", "172.31.16.5"), "subnet-2", "172.31.16.0/20",
        "vpc-1", "172.31.0.0/16", {"sg-1": "a", "sg-2": "b"}, {"127.65.0.9": "172.31.16.5"},
    )  # fmt: skip
    first = metadata.Interface(
        0,
        "eni-1",
        "02:00:00:00:00:01",
        ("172.31.5.10",),
        "subnet-1",
        "172.31.0.0/20",
        "vpc-1",
        "172.31.0.0/16",
        {"sg-1": "a"},
    )
    tree = metadata.metadata(
        instance, [], [second, first], region="eu-west-1", zone_id="euw1-az1", secret="s"
    )["tree"]
    macs = tree["network"]["interfaces"]["macs"]
    assert tree["security-groups"] == "a", "those of the primary interface"
    assert macs["02:00:00:00:00:02"] == {
        "device-number": "1", "interface-id": "eni-2", "local-ipv4s": "172.31.16.4\n172.31.16.5",
        "local-hostname": "ip-172-31-16-4.eu-west-1.compute.internal", "mac": "02:00:00:00:00:02",
        "owner-id": "123456789012", "security-group-ids": "sg-1\nsg-2", "security-groups": "a\nb",
        "subnet-id": "subnet-2", "subnet-ipv4-cidr-block": "172.31.16.0/20", "vpc-id": "vpc-1",
        "vpc-ipv4-cidr-block": "172.31.0.0/16", "vpc-ipv4-cidr-blocks": "172.31.0.0/16",
        "public-ipv4s": "127.65.0.9", "ipv4-associations": {"127.65.0.9": "172.31.16.5"},
    }  # fmt: skip
