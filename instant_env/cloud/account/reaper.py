"""The reaper: a Lambda function that an EventBridge rule calls every 15 minutes, with a role of its own.

It ends what is past its tag instant-env:expires-at, for accounts that want expiry to act without anybody
calling `clean` (reaper_function.py). `invoke setup --reaper` makes it, and mends one that was half made or is
older; `invoke teardown` removes it. Deploying it was tested against moto and never on AWS. 3,000 calls of a
second a month are within Lambda's free tier.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from instant_env.cloud.account.findings import Finding
from instant_env.cloud.account.roles import POLICIES, TAGS, present
from instant_env.cloud.session import Cloud, CloudError, error_code
from instant_env.cloud.tags import PROJECT, read_tags
from instant_env.waiting import wait_until

REAPER_NAME = "instant-env-reaper"
_POLICY_NAME = "reaper"
_SCHEDULE = "rate(15 minutes)"
_RUNTIME = "python3.13"
_SOURCE = Path(__file__).parent / "reaper_function.py"
_LOG_GROUP = f"/aws/lambda/{REAPER_NAME}"
_LOG_DAYS = 14
#: Lambda refuses a role that IAM made a moment ago (InvalidParameterValueException, "cannot be assumed by
#: Lambda"), and changes of a function that is still being made (ResourceConflictException).
_SETTLE_S = 90.0
_NOT_SETTLED = frozenset({"InvalidParameterValueException", "ResourceConflictException"})
_TRUST = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}
    ],
}
_TAG_MAP = read_tags(TAGS)
_GONE = frozenset({"ResourceNotFoundException", "NoSuchEntity"})


def package() -> bytes:
    """The function's zip file: the same bytes for the same source."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        entry = zipfile.ZipInfo(_SOURCE.name, date_time=(2026, 1, 1, 0, 0, 0))
        entry.external_attr = 0o644 << 16
        archive.writestr(entry, _SOURCE.read_bytes())
    return buffer.getvalue()


def find_reaper(cloud: Cloud) -> Finding:
    """Whether there is one, and of this version. Raises CloudError when one of that name is not ours."""
    function = _function(cloud.client("lambda"))
    if function is None:
        return Finding(
            "reaper", REAPER_NAME, "missing", "expiry acts by `invoke clean` only; setup --reaper makes one"
        )
    if function["Configuration"]["CodeSha256"] != _digest():
        return Finding(
            "reaper", REAPER_NAME, "there", "of another version: setup --reaper brings it up to date"
        )
    return Finding("reaper", REAPER_NAME, "there", _SCHEDULE)


def ensure_reaper(cloud: Cloud) -> Finding:
    """Make role, log group, function, rule and target, or bring them up to date; again it changes nothing.

    Raises CloudError when one of them is somebody else's, and botocore's errors.
    """
    before = find_reaper(cloud)
    role_arn = _ensure_role(cloud)
    _ensure_log_group(cloud.client("logs"))
    function_arn = _ensure_function(cloud.client("lambda"), role_arn)
    _ensure_rule(cloud, function_arn)
    if before == find_reaper(cloud):
        return before
    return Finding("reaper", REAPER_NAME, "made", _SCHEDULE)


def remove_reaper(cloud: Cloud) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What there is of it, as (what, what removes it), in the order in which it goes. Raises CloudError when
    the function or the role is somebody else's."""
    events, lambda_, logs, iam = (cloud.client(name) for name in ("events", "lambda", "logs", "iam"))
    if _unless_gone(lambda: events.describe_rule(Name=REAPER_NAME)) is not None:
        yield "reaper's rule", lambda: _delete_rule(events)
    if _function(lambda_) is not None:
        yield "reaper's function", lambda: lambda_.delete_function(FunctionName=REAPER_NAME)
    if _log_group(logs):
        yield "reaper's log group", lambda: logs.delete_log_group(logGroupName=_LOG_GROUP)
    role = present(lambda: iam.get_role(RoleName=REAPER_NAME))
    if role is not None:
        _refuse_foreign("role", read_tags(role["Role"].get("Tags")))
        yield "reaper's role", lambda: _delete_role(iam)


def _refuse_foreign(kind: str, tags: Any) -> None:
    if tags.get("Project") != PROJECT:
        raise CloudError(
            f"the {kind} {REAPER_NAME} is somebody else's: it has no tag Project={PROJECT}",
            hint="rename it, or tag it if it is yours",
        )


def _unless_gone(call: Callable[[], Any]) -> Any:
    """What the call answers; None where there is no such thing."""
    try:
        return call()
    except ClientError as error:
        if error_code(error) in _GONE:
            return None
        raise


def _digest() -> str:
    return base64.b64encode(hashlib.sha256(package()).digest()).decode()


def _function(client: Any) -> Any:
    answer = _unless_gone(lambda: client.get_function(FunctionName=REAPER_NAME))
    if answer is not None:
        _refuse_foreign("function", answer.get("Tags", {}))
    return answer


def _ensure_role(cloud: Cloud) -> str:
    iam = cloud.client("iam")
    caller = cloud.client("sts").get_caller_identity()["Arn"]
    text = (POLICIES / "reaper.json").read_text(encoding="utf-8")
    document = json.loads(text.replace("arn:aws:", f"arn:{caller.split(':')[1]}:"))
    role = present(lambda: iam.get_role(RoleName=REAPER_NAME))
    if role is None:
        role = iam.create_role(
            RoleName=REAPER_NAME,
            AssumeRolePolicyDocument=json.dumps(_TRUST),
            Description="ends what instant-env made and whose time is over",
            Tags=TAGS,
        )
        wait_until(lambda: present(lambda: iam.get_role(RoleName=REAPER_NAME)), _SETTLE_S, 1.0)
    else:
        _refuse_foreign("role", read_tags(role["Role"].get("Tags")))
    policy = present(lambda: iam.get_role_policy(RoleName=REAPER_NAME, PolicyName=_POLICY_NAME))
    if policy is None or policy["PolicyDocument"] != document:
        iam.put_role_policy(
            RoleName=REAPER_NAME, PolicyName=_POLICY_NAME, PolicyDocument=json.dumps(document)
        )
    return str(role["Role"]["Arn"])


def _log_group(logs: Any) -> bool:
    groups = logs.describe_log_groups(logGroupNamePrefix=_LOG_GROUP)["logGroups"]
    return any(group["logGroupName"] == _LOG_GROUP for group in groups)


def _ensure_log_group(logs: Any) -> None:
    """Lambda would make one, without a tag and for ever."""
    if not _log_group(logs):
        logs.create_log_group(logGroupName=_LOG_GROUP, tags=_TAG_MAP)
    logs.put_retention_policy(logGroupName=_LOG_GROUP, retentionInDays=_LOG_DAYS)


def _ensure_function(client: Any, role_arn: str) -> str:
    function = _function(client)
    if function is None:
        made = _once_settled(
            lambda: client.create_function(
                FunctionName=REAPER_NAME, Runtime=_RUNTIME, Role=role_arn, Architectures=["arm64"],
                Handler=f"{_SOURCE.stem}.handler", Code={"ZipFile": package()}, Timeout=300, MemorySize=256,
                Description="ends what instant-env made and whose time is over", Tags=_TAG_MAP,
            )
        )  # fmt: skip
        return str(made["FunctionArn"])
    if function["Configuration"]["CodeSha256"] != _digest():
        _once_settled(lambda: client.update_function_code(FunctionName=REAPER_NAME, ZipFile=package()))
    return str(function["Configuration"]["FunctionArn"])


def _once_settled(call: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + _SETTLE_S
    while True:
        try:
            return call()
        except ClientError as error:
            if error_code(error) not in _NOT_SETTLED or time.monotonic() > deadline:
                raise
        time.sleep(3.0)


def _ensure_rule(cloud: Cloud, function_arn: str) -> None:
    events, client = cloud.client("events"), cloud.client("lambda")
    rule = _unless_gone(lambda: events.describe_rule(Name=REAPER_NAME))
    if rule is None or (rule.get("ScheduleExpression"), rule.get("State")) != (_SCHEDULE, "ENABLED"):
        # Of a rule that is there, tags in this call would be ignored (API_PutRule).
        more = {"Tags": TAGS} if rule is None else {}
        arn = events.put_rule(Name=REAPER_NAME, ScheduleExpression=_SCHEDULE, State="ENABLED", **more)[
            "RuleArn"
        ]
    else:
        arn = rule["Arn"]
    try:
        client.add_permission(
            FunctionName=REAPER_NAME, StatementId=REAPER_NAME, Action="lambda:InvokeFunction",
            Principal="events.amazonaws.com", SourceArn=arn,
        )  # fmt: skip
    except ClientError as error:
        if error_code(error) != "ResourceConflictException":  # it is there
            raise
    answer = events.put_targets(Rule=REAPER_NAME, Targets=[{"Id": REAPER_NAME, "Arn": function_arn}])
    if answer.get("FailedEntryCount"):
        raise CloudError(f"the rule {REAPER_NAME} does not take its target: {answer['FailedEntries']}")


def _delete_rule(events: Any) -> None:
    events.remove_targets(Rule=REAPER_NAME, Ids=[REAPER_NAME])
    events.delete_rule(Name=REAPER_NAME)


def _delete_role(iam: Any) -> None:
    if present(lambda: iam.get_role_policy(RoleName=REAPER_NAME, PolicyName=_POLICY_NAME)) is not None:
        iam.delete_role_policy(RoleName=REAPER_NAME, PolicyName=_POLICY_NAME)
    iam.delete_role(RoleName=REAPER_NAME)
