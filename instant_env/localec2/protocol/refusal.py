"""A refusal in the protocol of whoever asked: each kind of client reads another form of error."""

from __future__ import annotations

import json
import uuid

from instant_env.localec2.state.xml_text import xml_text

Answer = tuple[int, dict[str, str], bytes]

#: Where SDKs look for a call's id, whatever its protocol is and however it ended.
REQUEST_ID = "x-amzn-RequestId"

#: Whose errors lie in <ErrorResponse>, with the namespace that the service's answers have.
_QUERY_NAMESPACES = {
    "sts": "https://sts.amazonaws.com/doc/2011-06-15/",
    "iam": "https://iam.amazonaws.com/doc/2010-05-08/",
}
#: Services, none of them served here, whose protocol is REST with XML.
_REST_XML = ("s3", "s3control", "route53", "cloudfront")


def refusal(service: str, content_type: str, code: str, message: str, status: int | None = None) -> Answer:
    """An error in the form that clients of the service read.

    ``content_type`` is the request's; ``status`` is 400 unless given.
    """
    status = status or 400
    kind = content_type.partition(";")[0].strip().lower()
    if kind.startswith("application/x-amz-json"):
        body = json.dumps({"__type": code, "message": message})
        return status, {"Content-Type": kind, "x-amzn-ErrorType": code}, body.encode()
    if service == "ebs" or (kind == "application/json" and service != "ec2"):
        return rest(status, code, message)
    text = f"<Code>{xml_text(code)}</Code><Message>{xml_text(message)}</Message>"
    request_id = str(uuid.uuid4())
    if service in ("s3", "s3control"):
        xml = f"<Error>{text}<RequestId>{request_id}</RequestId></Error>"
    elif service not in ("", "ec2"):
        namespace = f' xmlns="{_QUERY_NAMESPACES[service]}"' if service in _QUERY_NAMESPACES else ""
        error = f"<Error><Type>Sender</Type>{text}</Error>"
        xml = f"<ErrorResponse{namespace}>{error}<RequestId>{request_id}</RequestId></ErrorResponse>"
    else:
        xml = (
            f"<Response><Errors><Error>{text}</Error></Errors><RequestID>{request_id}</RequestID></Response>"
        )
    headers = {"Content-Type": "text/xml;charset=UTF-8", REQUEST_ID: request_id}
    return status, headers, f'<?xml version="1.0"?>\n{xml}'.encode()


def rest(status: int, code: str, message: str, reason: str = "") -> Answer:
    """An error of a service whose protocol is REST with JSON."""
    body = {"Message": message, "message": message} | ({"Reason": reason} if reason else {})
    return status, {"Content-Type": "application/json", "x-amzn-ErrorType": code}, json.dumps(body).encode()


def with_request_id(answer: Answer) -> Answer:
    """An answer that has an id: its own, or a new one."""
    status, headers, body = answer
    if any(name.lower() == REQUEST_ID.lower() for name in headers):
        return answer
    return status, {**headers, REQUEST_ID: str(uuid.uuid4())}, body


def unserved(service: str, path: str, content_type: str, message: str) -> Answer:
    """The refusal of a service that is not served; its protocol is told by where it asked."""
    if path != "/" and service not in _REST_XML:
        return rest(400, "UnsupportedOperation", message)
    return refusal(service, content_type, "UnsupportedOperation", message)
