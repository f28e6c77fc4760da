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
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import SplitResult

from pydantic import ValidationError

from instant_env.errors import InstantEnvError
from instant_env.localec2.api import allowed, callers, ebs_direct, instance_connect
from instant_env.localec2.api.iam import LocalIam
from instant_env.localec2.api.parameters import LocalParameters
from instant_env.localec2.api.responses import LocalResponse
from instant_env.localec2.api.services import Services
from instant_env.localec2.api.sts import LocalTokens
from instant_env.localec2.instances.spot import CapacityOrder, InterruptionOrder
from instant_env.localec2.protocol import signature
from instant_env.localec2.protocol.call import REST as EBS
from instant_env.localec2.protocol.call import Call, CallError, read, read_object, repeated, target_of
from instant_env.localec2.protocol.refusal import Answer, refusal, rest, unserved, with_request_id
from instant_env.localec2.qemu.qmp import QmpError
from instant_env.localec2.records.journal import StorageError
from instant_env.localec2.state import faults
from instant_env.localec2.state.strictness import visibility
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
#: What a service calls a call that the caller's policies do not allow.
DENIALS = {"ec2": "UnauthorizedOperation", "ssm": "AccessDeniedException", INSTANCE_CONNECT: "AuthException"}


class DroppedError(Exception):
    """A fault that was asked for: this connection ends without an answer."""


class _BadRequestError(Exception):
    """What is no request of HTTP that is served here."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


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
            body = self._body()
            answer = self._answer(body)
        except _BadRequestError as error:
            self.close_connection = True  # where the next request begins is unknown
            answer = _text(error.status, str(error))
        except DroppedError:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        except Exception:
            log.exception("%s %s failed", self.command, self.path[:200])
            answer = self._failure()
        self._send(answer)

    def _body(self) -> bytes:
        """The request's body. Raises _BadRequestError for one whose length is not plain, or too large."""
        text = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not (text.isascii() and text.isdigit()):
            raise _BadRequestError("a body has a Content-Length, and no Transfer-Encoding")
        length = int(text[:20])
        if length > MAX_BODY:
            raise _BadRequestError(f"a body has at most {MAX_BODY} bytes", 413)
        body = self.rfile.read(length)
        if len(body) < length:
            raise _BadRequestError("the body is shorter than its Content-Length")
        return body

    def _failure(self) -> Answer:
        """An answer to what we did not expect, in the client's protocol: a bare 500 has no cause in it."""
        headers = self._lowered()
        service = signature.service_of(headers)
        if not service:
            return _text(500, "server.log says why")
        message = "The request failed; server.log says why."
        return refusal(service, headers.get("content-type", ""), "InternalError", message, 500)

    def _lowered(self) -> dict[str, str]:
        return {name.lower(): value for name, value in self.headers.items()}

    def _answer(self, body: bytes) -> Answer:
        # A web page that made its name point here would send that name.
        if self.headers.get("Host", "").split(":")[0] not in (HOST, "localhost"):
            return _text(403, "this is localec2; its name is " + HOST)
        target = target_of(self.path)
        if target is None:
            raise _BadRequestError("a request's target is a path")
        if (name := repeated(self.headers.keys())) is not None:
            raise _BadRequestError(f"the header {name} comes more than once")
        if target.path.startswith("/_localec2/"):
            return self._own(target.path.removeprefix("/_localec2/"), body)
        headers = self._lowered()
        service, kind = signature.service_of(headers), headers.get("content-type", "")
        if target.path != "/" and not service and not ebs_direct.is_route(target.path):
            return _text(404, "no such path")
        url = f"http://{headers['host']}{self.path}"
        unsigned_body = ebs_direct.may_be_unsigned(self.command, target.path)
        try:
            scope, caller = callers.identify(
                self.server.services.state, self.command, url, headers, body, datetime.now(UTC),
                unsigned_body=unsigned_body,
            )  # fmt: skip
        except signature.SignatureError as error:
            if ebs_direct.is_route(target.path):
                return with_request_id(rest(403, error.code, str(error)))
            status = error.status or (400 if "json" in kind else 401)
            return with_request_id(refusal(service, kind, error.code, str(error), status))
        return with_request_id(self._aws(scope, caller, target, headers, body))

    def _aws(
        self, scope: signature.Scope, caller: callers.Caller, target: SplitResult,
        headers: Mapping[str, str], body: bytes,
    ) -> Answer:  # fmt: skip
        """Read the request once; check, strike and execute what was read."""
        service, kind, state = scope.service, headers.get("content-type", ""), self.server.services.state
        if not callers.serves_region(state, scope):
            message = f"localec2 serves the region {state.region} only, not {scope.region}."
            return refusal(service, kind, "UnsupportedOperation", message)
        if service not in (*SERVICES, INSTANCE_CONNECT, EBS):
            services = ", ".join([*SERVICES, INSTANCE_CONNECT, EBS])
            return unserved(service, target.path, kind, f"localec2 serves {services}, not {service}.")
        if (service == EBS) != ebs_direct.is_route(target.path):
            return _text(404, f"{service} has no such path")
        try:
            call = read(service, self.command, target, headers, body)
            block_call = ebs_direct.find(self.command, call.path, call.query) if service == EBS else None
            if service == EBS and block_call is None:
                return rest(404, "UnknownOperationException", "no such operation")
            action = block_call.action if block_call else call.action
            if sentence := allowed.query_refusal(service, action, call.fields.items()):
                raise CallError("UnsupportedOperation", sentence)
        except CallError as error:
            return refusal(service, kind, error.code, str(error))
        if sentence := callers.refusal(state, caller, service, action):
            if service == EBS:
                return rest(403, "AccessDeniedException", sentence, "UNAUTHORIZED_ACCOUNT")
            status = 400 if "json" in kind else 403
            return refusal(service, kind, DENIALS.get(service, "AccessDenied"), sentence, status)
        strike = state.faults.strike(action, call.named_instances)
        delay_s = strike.delay_s + state.strictness.switches.call_delay_ms / 1000
        if delay_s:
            time.sleep(delay_s)
        if strike.drop == "before":
            raise DroppedError
        if strike.error is not None:
            status, code, message = strike.error
            return refusal(service, kind, code, message, status)
        if block_call is not None:
            answer = ebs_direct.serve(self.server.services, block_call, headers, body)
        elif service == INSTANCE_CONNECT:
            answer = instance_connect.serve(self.server.services, action, body, caller.arn)
        else:
            answer = self._execute(call, caller, kind)
        if strike.drop == "after":
            raise DroppedError
        return answer

    def _execute(self, call: Call, caller: callers.Caller, kind: str) -> Answer:
        """Let moto's class do the call. Its parameters are read before the lock is taken."""
        state = self.server.services.state
        try:
            response = self.server.responses[call.service].prepared(call)
            if call.service != "ec2" and response.unread:
                name = min(response.unread)
                raise CallError("ValidationError", f"{name} is not a parameter of {call.action}.")
        except CallError as error:
            return refusal(call.service, kind, error.code, str(error))
        response.caller = caller
        try:
            answer = response.refusal_answer()
            if answer is None:
                with state.lock, state.request():
                    answer = response.call_action()
        except StorageError as error:
            return refusal(call.service, kind, "InternalError", error.message, 500)
        state.await_answer()
        status, headers, content = answer
        status = int(headers.pop("status", status))
        return status, headers, content if isinstance(content, bytes) else content.encode()

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
        if route == "strictness":
            return self._strictness(body)
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

    def _strictness(self, body: bytes) -> Answer:
        """``GET strictness``; ``POST strictness`` with those of the switches that change."""
        state = self.server.services.state
        if self.command not in ("GET", "POST"):
            return _json(405, {"error": f"not for {self.command}"})
        if self.command == "POST":
            try:
                with state.lock:
                    visibility.change(state, read_object(body))
            except (ValidationError, CallError) as error:
                text = explain(error, "strictness") if isinstance(error, ValidationError) else str(error)
                return _json(400, {"error": text})
        return _json(200, {"strictness": state.strictness.switches.model_dump(mode="json")})

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
