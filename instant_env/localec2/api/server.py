"""The HTTP server: AWS's APIs at ``/``, our own routes below ``/_localec2/``. Bound to 127.0.0.1.

A thread per connection, one lock around everything that touches moto or the records. Connections are kept
alive, because an instance's state is polled many times a second.
"""

from __future__ import annotations

import hmac
import json
import logging
import socket
import time
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from pydantic import ValidationError

from instant_env.errors import InstantEnvError
from instant_env.localec2.api import allowed, callers, ebs_direct, instance_connect, signature
from instant_env.localec2.api.iam import LocalIam
from instant_env.localec2.api.parameters import LocalParameters
from instant_env.localec2.api.responses import LocalResponse
from instant_env.localec2.api.services import Services
from instant_env.localec2.api.sts import LocalTokens
from instant_env.localec2.instances.spot import CapacityOrder, InterruptionOrder
from instant_env.localec2.qemu.qmp import QmpError
from instant_env.localec2.records.journal import StorageError
from instant_env.localec2.state import faults
from instant_env.localec2.state.moto_api import Request, new_id
from instant_env.localec2.state.xml_text import xml_text
from instant_env.localec2.volumes.images import StockRegistration
from instant_env.settings import explain

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
#: The largest real request is a PutSnapshotBlock with 512 KiB.
MAX_BODY = 1 << 20
#: A connection that is silent this long is closed.
IDLE_TIMEOUT_S = 120.0

#: Service -> moto's class of its requests; a server makes its own subclasses of them (LocalServer.responses).
#: Instance Connect, which moto does not have, and EBS are apart.
SERVICES: dict[str, Any] = {"ec2": LocalResponse, "ssm": LocalParameters, "sts": LocalTokens, "iam": LocalIam}
INSTANCE_CONNECT = "ec2-instance-connect"
#: The EBS direct APIs: the only ones whose paths say what is asked for.
EBS = "ebs"
#: What a service calls a call that the caller's policies do not allow.
DENIALS = {"ec2": "UnauthorizedOperation", "ssm": "AccessDeniedException", INSTANCE_CONNECT: "AuthException"}

Answer = tuple[int, dict[str, str], bytes]


class DroppedError(Exception):
    """A fault that was asked for: this connection ends without an answer."""


class LocalServer(ThreadingHTTPServer):
    """The listening socket and what its handlers share."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, services: Services, port: int) -> None:
        """Listen on ``port`` when it is free, otherwise on one that is."""
        self.services = services
        # moto makes an object of the class for each request. What it finds there is this server's, and not
        # that of the one that was made last in this process.
        self.responses: dict[str, Any] = {
            name: type(response.__name__, (response,), {"services": services})
            for name, response in SERVICES.items()
        }
        try:
            super().__init__((HOST, port), Handler)
        except OSError:
            super().__init__((HOST, 0), Handler)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}"

    def handle_error(self, _: Any, client_address: Any) -> None:
        log.exception("connection from %s failed", client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = IDLE_TIMEOUT_S
    server: LocalServer

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def _serve(self) -> None:
        try:
            length = int(self.headers.get("Content-Length") or 0)
        except ValueError:
            length = -1
        if not 0 <= length <= MAX_BODY or "Transfer-Encoding" in self.headers:
            self.close_connection = True
            self._send(_text(413 if length > MAX_BODY else 400, "no such body"))
            return
        body = self.rfile.read(length)
        try:
            answer = self._answer(body)
        except DroppedError:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        except Exception:
            log.exception("%s %s failed", self.command, urlsplit(self.path).path)
            answer = _text(500, "server.log says why")
        self._send(answer)

    def _answer(self, body: bytes) -> Answer:
        path = urlsplit(self.path).path
        # A web page that made its name point here would send that name.
        if self.headers.get("Host", "").split(":")[0] not in (HOST, "localhost"):
            return _text(403, "this is localec2; its name is " + HOST)
        if path.startswith("/_localec2/"):
            return self._own(path.removeprefix("/_localec2/"), body)
        if path != "/" and not ebs_direct.is_route(path):
            return _text(404, "no such path")
        headers = {name.lower(): value for name, value in self.headers.items()}
        url = f"http://{headers['host']}{self.path}"
        try:
            scope, caller = callers.identify(
                self.server.services.state, self.command, url, headers, body, datetime.now(UTC)
            )
        except signature.SignatureError as error:
            if path != "/":
                return ebs_direct.refusal(403, error.code, str(error))
            return _refusal("", headers.get("content-type", ""), error.code, str(error), error.status)
        return self._aws(scope, caller, url, body)

    def _aws(self, scope: signature.Scope, caller: callers.Caller, url: str, body: bytes) -> Answer:
        kind = self.headers.get("Content-Type", "")
        state = self.server.services.state
        if not callers.serves_region(state, scope):
            message = f"localec2 serves the region {state.region} only, not {scope.region}."
            return _refusal(scope.service, kind, "UnsupportedOperation", message)
        if scope.service not in SERVICES and scope.service not in (INSTANCE_CONNECT, EBS):
            known = ", ".join([*SERVICES, INSTANCE_CONNECT, EBS])
            message = f"localec2 serves {known}, not {scope.service}."
            return _refusal(scope.service, kind, "UnsupportedOperation", message)
        path = urlsplit(self.path).path
        if (scope.service == EBS) != ebs_direct.is_route(path):
            return _text(404, f"{scope.service} has no such path")
        call = ebs_direct.find(self.command, self.path)
        if scope.service == EBS and call is None:
            return ebs_direct.refusal(404, "UnknownOperationException", "no such operation")
        action, fields = (call.action, []) if call is not None else self._parsed(body)
        if sentence := allowed.query_refusal(scope.service, action, fields):
            return _refusal(scope.service, kind, "UnsupportedOperation", sentence)
        if sentence := callers.refusal(state, caller, scope.service, action):
            if scope.service == EBS:
                return ebs_direct.refusal(403, "AccessDeniedException", sentence, "UNAUTHORIZED_ACCOUNT")
            code = DENIALS.get(scope.service, "AccessDenied")
            return _refusal(scope.service, kind, code, sentence, 400 if "json" in kind else 403)
        named = [value for name, value in fields if name == "InstanceId" or name.startswith("InstanceId.")]
        strike = state.faults.strike(action, named)
        if strike.delay_s:
            time.sleep(strike.delay_s)
        if strike.drop == "before":
            raise DroppedError
        if strike.error is not None:
            if scope.service == EBS:
                return ebs_direct.refusal(*strike.error)
            return _refusal(scope.service, kind, strike.error[1], strike.error[2], strike.error[0])
        if scope.service == INSTANCE_CONNECT or call is not None:
            if call is not None:
                lowered = {name.lower(): value for name, value in self.headers.items()}
                answer = ebs_direct.serve(self.server.services, call, lowered, body)
            else:
                answer = instance_connect.serve(self.server.services, action, body, caller.arn)
            if strike.drop == "after":
                raise DroppedError
            return answer
        request = Request.from_primitives(self.command, url, self.headers, body)
        try:
            with state.lock, state.request():
                answer = self.server.responses[scope.service].dispatch(request, url, dict(self.headers))
        except StorageError as error:
            return _refusal(scope.service, kind, "InternalError", error.message, 500)
        status, headers, content = answer
        state.await_answer()
        if strike.drop == "after":
            raise DroppedError
        status = int(headers.pop("status", status))
        return status, headers, content if isinstance(content, bytes) else content.encode()

    def _parsed(self, body: bytes) -> tuple[str, list[tuple[str, str]]]:
        """The action of a call, and its parameters if its protocol has them as fields."""
        if target := self.headers.get("X-Amz-Target"):
            return target.rpartition(".")[2], []
        fields = [*parse_qsl(urlsplit(self.path).query), *parse_qsl(body.decode("utf-8", "replace"))]
        return next((value for name, value in fields if name == "Action"), ""), fields

    def _own(self, route: str, body: bytes) -> Answer:
        """Routes that EC2 does not have."""
        if (self.command, route) == ("GET", "caller-ip"):
            return _text(200, self.client_address[0])
        token = self.server.services.state.server.admin_token
        if not hmac.compare_digest(self.headers.get("X-Localec2-Token", "").encode(), token.encode()):
            return _json(403, {"error": "wrong or missing X-Localec2-Token"})
        if (self.command, route) == ("GET", "health"):
            services = self.server.services
            state_dir = str(services.state.layout.state_dir)
            return _json(200, {"state_dir": state_dir, "low_disk_space": services.disk_guard.short})
        if (self.command, route) == ("POST", "stock-images"):
            try:
                stock = StockRegistration.model_validate_json(body)
                image = self.server.services.images.register_stock(stock)
            except ValidationError as error:
                return _json(400, {"error": explain(error, "stock image")})
            except InstantEnvError as error:
                return _json(409, {"error": error.message})
            return _json(200, {"image_id": image.id})
        if self.command == "GET" and route.startswith("root-reads/"):
            return self._root_reads(route.removeprefix("root-reads/"))
        if self.command == "POST" and route in ("interrupt", "spot-capacity"):
            return self._spot(route, body)
        if route == "faults" or route.startswith("faults/"):
            return self._faults(route.removeprefix("faults").removeprefix("/"), body)
        return _json(404, {"error": "no such route"})

    def _root_reads(self, instance_id: str) -> Answer:
        """What QEMU knows and no guest: the firmware reads before the guest can count."""
        machine = self.server.services.lifecycle.machines.get(instance_id)
        if machine is None:
            return _json(404, {"error": f"{instance_id} does not run"})
        try:
            requests, size = machine.root_reads()
        except QmpError as error:
            return _json(409, {"error": error.message})
        return _json(200, {"requests": requests, "bytes": size})

    def _faults(self, fault_id: str, body: bytes) -> Answer:
        """``GET faults``, ``POST faults``, ``DELETE faults`` and ``DELETE faults/<id>``."""
        services = self.server.services
        try:
            match self.command, fault_id:
                case "GET", "":
                    return _json(200, {"faults": services.state.faults.listed()})
                case "POST", "":
                    return _json(200, {"fault": services.fault_injector.inject(faults.parse(body))})
                case "DELETE", _:
                    cleared = services.fault_injector.clear(fault_id or None)
                    if fault_id and not cleared:
                        return _json(404, {"error": f"there is no {fault_id}"})
                    return _json(200, {"cleared": cleared})
        except ValidationError as error:
            return _json(400, {"error": explain(error, "fault")})
        except InstantEnvError as error:
            return _json(409, {"error": error.message})
        return _json(405, {"error": f"not for {self.command}"})

    def _spot(self, route: str, body: bytes) -> Answer:
        """What happens to spot instances without their owner's doing."""
        spot = self.server.services.spot
        try:
            if route == "interrupt":
                notice = spot.interrupt(InterruptionOrder.model_validate_json(body))
                return _json(200, notice.model_dump(mode="json"))
            order = CapacityOrder.model_validate_json(body)
            request = spot.capacity(order.spot_instance_request_id)
            return _json(200, {"state": request.state})
        except ValidationError as error:
            return _json(400, {"error": explain(error, route)})
        except InstantEnvError as error:
            return _json(409, {"error": error.message})

    def _send(self, answer: Answer) -> None:
        status, headers, content = answer
        lines = [f"{self.protocol_version} {status} {self.responses[HTTPStatus(status)][0]}"]
        ours = ("content-length", "connection", "transfer-encoding", "date")
        lines += [f"{name}: {value}" for name, value in headers.items() if name.lower() not in ours]
        lines += [f"Date: {self.date_time_string()}", f"Content-Length: {len(content)}"]
        if self.close_connection:
            lines.append("Connection: close")
        # One write: headers and body in two would wait for each other (Nagle and delayed ACK).
        self.wfile.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + content)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


def _text(status: int, text: str) -> Answer:
    return status, {"Content-Type": "text/plain; charset=utf-8"}, text.encode()


def _json(status: int, value: dict[str, Any]) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _refusal(service: str, content_type: str, code: str, message: str, status: int | None = None) -> Answer:
    """An error in the form of the client's protocol: JSON, S3's XML, or EC2's (STS's clients read it too)."""
    if "json" in content_type:
        body = json.dumps({"__type": code, "message": message})
        return status or 400, {"Content-Type": content_type}, body.encode()
    error = f"<Error><Code>{xml_text(code)}</Code><Message>{xml_text(message)}</Message></Error>"
    if service != "s3":
        error = f"<Response><Errors>{error}</Errors><RequestID>{new_id('req')}</RequestID></Response>"
    status = status or (400 if code == "UnsupportedOperation" else 401)
    return status, {"Content-Type": "text/xml;charset=UTF-8"}, f'<?xml version="1.0"?>\n{error}'.encode()
