"""What is authorised is what is executed: one reading of a request, one form, everything else refused."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import quote_plus, urlencode, urlsplit

import pytest
from botocore.credentials import Credentials
from support.hostile.signed import Reply, Signer, digest, owner, raw

from instant_env.localec2.state import patterns
from instant_env.localec2.state.credentials import Session

if TYPE_CHECKING:
    from support.localec2_served import Served

pytest_plugins = ("support.localec2_served",)

READ_ONLY = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Action": ["ec2:DescribeInstances", "ssm:GetParameter"], "Resource": "*"}
    ],
}
JSON = {"Content-Type": "application/x-amz-json-1.1"}
DESCRIBE = b"Action=DescribeInstances&Version=2016-11-15"
CREATE = b"Action=CreateKeyPair&KeyName=stolen&Version=2016-11-15"
POLICY = quote_plus(json.dumps({"Statement": {"Effect": "Allow", "Action": "*", "Resource": "*"}}))
GRANT = f"Action=PutRolePolicy&RoleName=reader&PolicyName=all&PolicyDocument={POLICY}".encode()


def reader(served: Served) -> Signer:
    """A role that may only look at instances and parameters."""
    iam = served.client("iam")
    iam.create_role(RoleName="reader", AssumeRolePolicyDocument=json.dumps({"Statement": []}))
    iam.put_role_policy(RoleName="reader", PolicyName="read", PolicyDocument=json.dumps(READ_ONLY))
    role = served.state.identities.roles["reader"]
    session = Session(role.name, role.id, "i-0123456789abcdef0", datetime.now(UTC).replace(microsecond=0))
    made = served.state.issuer.issue(session)
    credentials = Credentials(made.access_key_id, made.secret_access_key, made.token)
    return Signer(served.server.url, credentials)


def untouched(served: Served) -> bool:
    """Nothing was made, and the role is as it was."""
    policies = served.client("iam").list_role_policies(RoleName="reader")["PolicyNames"]
    pairs = served.ec2.describe_key_pairs()["KeyPairs"]
    parameters = served.ssm.describe_parameters()["Parameters"]
    return policies == ["read"] and not pairs and not parameters


def ssm_target(action: str) -> dict[str, str]:
    return {"X-Amz-Target": f"AmazonSSM.{action}", **JSON}


TRICKS: dict[str, Callable[[Signer], Reply]] = {
    "another action in a header": lambda who: who.send(
        "ec2", CREATE, headers={"X-Amz-Target": "x.DescribeInstances"}
    ),
    "another action in the URL": lambda who: who.send("ec2", CREATE, path="/?Action=DescribeInstances"),
    "the action in the URL, its parameters in the body": lambda who: who.send(
        "ec2", b"KeyName=stolen", path="/?Action=CreateKeyPair"
    ),
    "two actions": lambda who: who.send("ec2", DESCRIBE + b"&" + CREATE),
    "two actions, the other first": lambda who: who.send("ec2", CREATE + b"&" + DESCRIBE),
    "a body that a GET has": lambda who: who.send(
        "ec2", CREATE, method="GET", path="/?Action=DescribeInstances"
    ),
    "a form of another type": lambda who: who.send(
        "ec2", CREATE, headers={"Content-Type": "application/x-amz-json-1.1"}
    ),
    "IAM by a header": lambda who: who.send("iam", GRANT, headers={"X-Amz-Target": "x.GetCallerIdentity"}),
    "IAM by EC2's action in the URL": lambda who: who.send("iam", GRANT, path="/?Action=GetCallerIdentity"),
    "STS's action in the URL": lambda who: who.send("sts", GRANT, path="/?Action=GetCallerIdentity"),
    "a header that is called Action": lambda who: who.send(
        "ssm", b'{"Name": "/a", "Value": "b", "Type": "String"}',
        headers=ssm_target("GetParameter") | {"Action": "PutParameter"},
    ),
    "an action inside a JSON string": lambda who: who.send(
        "ssm", b'{"Name": "/a", "Value": "&Action=PutParameter&Name=/a&Value=b&Type=String&"}',
        headers=ssm_target("GetParameter"),
    ),
    "JSON's action in the URL": lambda who: who.send(
        "ssm", b'{"Name": "/a", "Value": "b", "Type": "String"}', path="/?Action=PutParameter",
        headers=ssm_target("GetParameter"),
    ),
    "another service's target": lambda who: who.send(
        "ssm", b'{"Name": "/a", "Value": "b", "Type": "String"}',
        headers={"X-Amz-Target": "GetParameter.PutParameter", **JSON},
    ),
    "a compressed body": lambda who: who.send(
        "ec2", gzip.compress(CREATE), path="/?Action=DescribeInstances", headers={"Content-Encoding": "gzip"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("trick", TRICKS)
def test_a_role_that_may_only_read_makes_nothing(served: Served, trick: str) -> None:
    who = reader(served)
    assert who.send("ec2", DESCRIBE).status == 200, "what it may do works"
    reply = TRICKS[trick](who)
    assert untouched(served), reply.text
    # Whatever stands in a JSON string is only its text: GetParameter is done, and finds nothing.
    assert 400 <= reply.status < 500, reply.text


def test_whoever_may_make_a_key_is_held_to_one_form_too(served: Served) -> None:
    """The allow-list sees every parameter, wherever it stands."""
    who = owner(served)
    stray = "KeyFormat=ppk"
    in_body = who.send("ec2", CREATE + b"&" + stray.encode())
    in_url = who.send("ec2", CREATE, path=f"/?{stray}")
    twice = who.send("ec2", CREATE + b"&KeyFormat=pem&" + stray.encode())
    gap = who.send("ec2", b"Action=DescribeInstances&InstanceId.2=i-0123456789abcdef0")
    unknown = who.send("ec2", DESCRIBE + b"&Nonsense=1")
    for reply, code in (
        (in_body, "UnsupportedOperation"), (in_url, "MalformedQueryString"), (twice, "MalformedQueryString"),
        (gap, "UnknownParameter"), (unknown, "UnknownParameter"),
    ):  # fmt: skip
        assert (reply.status, f"<Code>{code}</Code>" in reply.text) == (400, True), reply.text
    assert not served.ec2.describe_key_pairs()["KeyPairs"]
    assert who.send("ec2", b"", method="GET", path="/?" + DESCRIBE.decode()).status == 200


@pytest.mark.parametrize("action", ["GetAccessKey", "GetRegionFromUrl", "GetCurrentAccount", "../x", ""])
def test_a_method_of_ours_is_no_action(served: Served, action: str) -> None:
    reply = owner(served).send("ec2", urlencode({"Action": action, "Version": "2016-11-15"}).encode())
    assert reply.status == 400, reply.text
    assert "<Response><Errors><Error><Code>" in reply.text


def test_each_protocol_has_its_own_form_of_a_refusal(served: Served) -> None:
    who = owner(served)
    for service, start in (
        ("iam", "<ErrorResponse xmlns"),
        ("sts", "<ErrorResponse xmlns"),
        ("ec2", "<Resp"),
    ):
        reply = who.send(service, b"Action=DoNothing")
        assert reply.status == 400
        assert start in reply.text
        assert "UnsupportedOperation" in reply.text
    reply = who.send("ssm", b"{}", headers=ssm_target("DoNothing"))
    assert (reply.status, json.loads(reply.text)["__type"]) == (400, "UnsupportedOperationException")
    for service, path in (("lambda", "/2015-03-31/functions"), ("s3", "/bucket/key")):
        reply = who.send(service, b"", path=path, headers={"Content-Type": ""})
        assert f"localec2 serves ec2, ssm, sts, iam, ec2-instance-connect, ebs, not {service}." in reply.text


def test_values_are_what_the_model_says(served: Served) -> None:
    who = owner(served)
    for field in ("MaxResults=many", "MaxResults=1_0", "DryRun=perhaps", "MaxResults=" + "9" * 5000):
        reply = who.send("ec2", DESCRIBE + b"&" + field.encode())
        assert (reply.status, "InvalidParameterValue" in reply.text) == (400, True), reply.text


@pytest.mark.parametrize("body", [b"Action=%ff", b"Action=\xff", b"Action=Describe\xffInstances", b""])
def test_what_is_no_request_answers_400(served: Served, body: bytes) -> None:
    reply = owner(served).send("ec2", body)
    assert reply.status == 400
    assert "<Code>M" in reply.text  # MalformedQueryString, MissingAction


@pytest.mark.parametrize(
    "body", [b"[" * 200_000, b'{"Name": "a", "Name": "b"}', b"[]", b"\xff", b'{"a": NaN}']
)
def test_json_that_is_none_answers_400(served: Served, body: bytes) -> None:
    reply = owner(served).send("ssm", body, headers=ssm_target("GetParameter"))
    assert (reply.status, json.loads(reply.text)["__type"]) == (400, "SerializationException")


# Signatures


def test_a_signature_covers_its_body(served: Served) -> None:
    who = owner(served)
    for unsigned in ("UNSIGNED-PAYLOAD", digest(DESCRIBE), "STREAMING-UNSIGNED-PAYLOAD-TRAILER"):
        reply = who.send("ec2", DESCRIBE, headers={"X-Amz-Content-SHA256": unsigned}, sent_body=CREATE)
        assert "SignatureDoesNotMatch" in reply.text, unsigned
    assert who.send("ec2", DESCRIBE, sent_body=CREATE).status == 401
    assert who.send("ec2", DESCRIBE, headers={"X-Amz-Content-SHA256": digest(DESCRIBE)}).status == 200
    assert not served.ec2.describe_key_pairs()["KeyPairs"]


def test_a_signature_covers_what_decides(served: Served) -> None:
    reply = owner(served).send(
        "ssm", b'{"Name": "/a"}', headers=JSON, unsigned={"X-Amz-Target": "AmazonSSM.DeleteParameter"}
    )
    assert "does not cover x-amz-target" in reply.text


# What is no HTTP


@pytest.mark.parametrize(
    "line", [b"GET http://[ HTTP/1.1", b"GET http://x/ HTTP/1.1", b"GET * HTTP/1.1", b"POST /#x HTTP/1.1"]
)
def test_a_target_that_is_no_path_is_answered(served: Served, line: bytes) -> None:
    host = urlsplit(served.server.url).netloc.encode()
    answer = raw(served.server.url, line + b"\r\nHost: " + host + b"\r\nContent-Length: 0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("length", ["+1", "1_0", "-1", "x", "9" * 5000, str(1 << 30)])
def test_a_length_that_is_none_is_refused(served: Served, length: str) -> None:
    host = urlsplit(served.server.url).netloc
    answer = raw(
        served.server.url, f"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n".encode()
    )
    assert answer.split()[1] in (b"400", b"413")


def test_a_header_that_comes_twice_is_refused(served: Served) -> None:
    host = urlsplit(served.server.url).netloc
    lines = (
        f"POST / HTTP/1.1\r\nHost: {host}\r\nX-Amz-Target: a\r\nx-amz-target: b\r\nContent-Length: 0\r\n\r\n"
    )
    assert b"x-amz-target comes more than once" in raw(served.server.url, lines.encode())


# Bounds


def many_filters(count: int, values: int = 1) -> bytes:
    fields = {f"Filter.{i}.Name": f"tag:t{i}" for i in range(1, count + 1)}
    fields |= {f"Filter.{i}.Value.{j}": f"*v{j}*" for i in range(1, count + 1) for j in range(1, values + 1)}
    return urlencode({"Action": "DescribeInstances"} | fields).encode()


def test_counts_have_bounds(served: Served) -> None:
    who = owner(served)
    for body in (many_filters(51), many_filters(1, 201)):
        assert "FilterLimitExceeded" in who.send("ec2", body).text
    for body in (many_filters(12_000), b"Action=DescribeInstances&" + b"a." * 400_000 + b"=1"):
        assert "MalformedQueryString" in who.send("ec2", body).text
    assert who.send("ec2", many_filters(50, 200)).status == 200


def test_compressed_bodies_are_refused_before_they_are_opened(served: Served) -> None:
    packed = gzip.compress(b"Action=DescribeInstances&a=" + b"x" * (64 << 20))
    for service, more in (("ec2", {}), ("ssm", ssm_target("GetParameter")), ("iam", {})):
        reply = owner(served).send(service, packed, headers={"Content-Encoding": "gzip", **more})
        assert reply.status == 400
        assert "compressed" in reply.text


def test_parameters_are_read_without_the_lock(served: Served) -> None:
    """A request whose parameters are wrong is refused while somebody else holds the lock."""
    replies: list[Reply] = []
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with served.state.lock:
            held.set()
            done.wait(60)

    threading.Thread(target=hold, daemon=True).start()
    assert held.wait(60)
    sender = threading.Thread(
        target=lambda: replies.append(owner(served).send("ec2", DESCRIBE + b"&MaxResults=many")), daemon=True
    )
    sender.start()
    sender.join(30)
    done.set()
    assert [reply.status for reply in replies] == [400]


def test_a_pattern_costs_no_more_than_its_length(served: Served) -> None:
    """`*a*a*a...b` against a long run of a's: exponential where a star may be tried again."""
    for pattern in ("*a" * 120 + "b", "*" * 250 + "b", "*?" * 120 + "b"):
        assert not patterns.compiled(pattern).fullmatch("a" * 250)
    for pattern in ("*a" * 120, "*" * 250, "a*a*a", "\\a*", "a?*"):
        assert patterns.compiled(pattern, escapes=True).fullmatch("a" * 250)
    allowed = {"Effect": "Allow", "Action": "ec2:" + "*e" * 120 + "!", "Resource": "*"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
    who = reader(served)
    served.client("iam").put_role_policy(RoleName="reader", PolicyName="read", PolicyDocument=document)
    assert who.send("ec2", b"Action=Describe" + b"e" * 100).status == 400
    assert who.send("ec2", DESCRIBE).status == 403


# Policies


@pytest.mark.parametrize(
    ("document", "code"),
    [
        ("[" * 9000, "MalformedPolicyDocument"),
        (json.dumps({"Statement": {"Sid": "x" * 10_240}}), "LimitExceeded"),
        ('{"Statement": {}, "Statement": []}', "MalformedPolicyDocument"),
    ],
)
def test_a_policy_has_bounds(served: Served, document: str, code: str) -> None:
    reader(served)
    fields = {"Action": "PutRolePolicy", "RoleName": "reader", "PolicyName": "p", "PolicyDocument": document}
    reply = owner(served).send("iam", urlencode(fields).encode())
    assert f"<Code>{code}</Code>" in reply.text
    assert untouched(served)


def test_brackets_in_a_policy_mean_nothing(served: Served) -> None:
    """IAM's wildcards are * and ?; a class of characters would allow more than AWS does."""
    who = reader(served)
    allowed = {"Effect": "Allow", "Action": "ec2:[a-z]*", "Resource": "*"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
    served.client("iam").put_role_policy(RoleName="reader", PolicyName="read", PolicyDocument=document)
    assert who.send("ec2", DESCRIBE).status == 403
