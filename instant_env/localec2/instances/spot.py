"""Spot instance requests and interruptions.

A request follows its instance: every state that the instance takes is told here (:meth:`Spot.follow`). An
interruption is what a test asks for (``POST /_localec2/interrupt``; on EC2 the Fault Injection Service does
it): a notice in IMDS, then the stop, hibernation or termination that the request said.
"""

from __future__ import annotations

import logging
import threading
from datetime import timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from instant_env.errors import InstantEnvError
from instant_env.localec2.instances.launches import mac_address, private_ip, volume_of
from instant_env.localec2.instances.lifecycle import TERMINATED_VISIBLE, Lifecycle
from instant_env.localec2.instances.spot_terms import MESSAGES
from instant_env.localec2.instances.state_reasons import SHUTDOWN, TERMINATION
from instant_env.localec2.records.records import InstanceRecord, Interruption, SpotRequestRecord
from instant_env.localec2.state.moto_api import EC2ClientError, new_id
from instant_env.localec2.state.profile_associations import renewed
from instant_env.localec2.state.state import State, now

log = logging.getLogger(__name__)

_INTERRUPTED = (TERMINATION.code, SHUTDOWN.code)


class SpotError(InstantEnvError):
    """An interruption of an instance that is not a spot instance, or of an unknown request."""


class InterruptionOrder(BaseModel):
    """Body of ``POST /_localec2/interrupt``."""

    model_config = ConfigDict(extra="forbid")

    instance_id: str
    #: EC2 gives two minutes, and none before a hibernation.
    notice_s: float = Field(default=120.0, ge=0, le=3600)


class CapacityOrder(BaseModel):
    """Body of ``POST /_localec2/spot-capacity``: there is capacity again for this request."""

    model_config = ConfigDict(extra="forbid")

    spot_instance_request_id: str


class Spot:
    """Spot requests of one server. Public methods want the lock held unless they say otherwise."""

    def __init__(self, state: State, lifecycle: Lifecycle) -> None:
        self.state = state
        self.lifecycle = lifecycle
        state.on_instance = self.follow

    def request(self, request_id: str) -> SpotRequestRecord:
        if request_id not in self.state.spot_requests:
            raise EC2ClientError(
                "InvalidSpotInstanceRequestID.NotFound",
                f"The spot instance request ID '{request_id}' does not exist",
            )
        return self.state.spot_requests[request_id]

    def check_stop(self, instance: InstanceRecord) -> None:
        """Refuse to stop what cannot be started again."""
        request = self.state.spot_requests.get(instance.spot_request_id or "")
        problem = ""
        if not instance.stoppable:
            problem = "it is associated with a one-time Spot Instance request"
        elif request is not None and request.state == "cancelled":
            problem = "its Spot Instance request has been cancelled"
        if problem:
            raise EC2ClientError(
                "UnsupportedOperation",
                f"You can't stop the Spot Instance '{instance.id}' because {problem}.",
            )

    # A request follows its instance

    def follow(self, instance: InstanceRecord) -> None:
        """An instance was saved: what does that make of its request?"""
        request = self.state.spot_requests.get(instance.spot_request_id or "")
        if request is None or request.instance_id != instance.id:
            return
        interrupted = instance.state_reason_code in _INTERRUPTED
        if request.state in ("active", "disabled") and instance.state in ("pending", "running"):
            if instance.interruption is None:
                self._set(request, "active", "fulfilled")
            else:
                action = "termination" if instance.interruption.action == "terminate" else "stop"
                self._set(request, "active", f"marked-for-{action}")
        elif instance.state == "stopped" and request.persistent and request.state == "active":
            why = "no-capacity" if interrupted else "by-user"
            self._set(request, "disabled", f"instance-stopped-{why}")
        elif instance.state == "terminated":
            why = "no-capacity" if interrupted else "by-user"
            ended = f"instance-terminated-{why}"
            if request.state == "cancelled" or not request.persistent:
                self._set(request, "closed" if request.state != "cancelled" else "cancelled", ended)
            elif instance.state_reason_code == "Server.InternalError":
                # It could not start. Another would not either, and EC2 would try for ever.
                self._set(request, "closed", "system-error")
            else:
                request.instance_id = None
                self._set(request, "open", ended)
                if not interrupted:
                    self.lifecycle.work(request.id, self._replace)

    def _set(self, request: SpotRequestRecord, state: Any, code: str) -> None:
        if (request.state, request.status_code) != (state, code):
            request.state, request.status_code, request.status_time = state, code, now()
            self.state.save(request)

    def _replace(self, request_id: str) -> None:
        """Launch a persistent request's next instance (lock not held)."""
        with self.state.lock:
            request = self.state.spot_requests.get(request_id)
            if request is None or request.state != "open" or self.lifecycle.closing:
                return
            template = request.template
            for needed, known in (
                (template.image_id, self.state.images),
                (template.subnet_id, self.state.networks.subnets),
            ):
                if needed not in known:
                    self._set(request, "closed", "system-error")
                    log.error("%s: %s is gone", request_id, needed)
                    return
            instance = template.model_copy(
                update={
                    "id": new_id("i"), "reservation_id": new_id("r"), "interface_id": new_id("eni"),
                    "interface_attachment_id": new_id("eni-attach"), "mac_address": mac_address(),
                    "private_ip": private_ip(self.state, self.state.subnet(template.subnet_id)),
                    "launch_time": now(), "state": "pending", "client_token": None,
                    "spot_request_id": request_id, "launch_index": 0, "profile": renewed(template.profile),
                },
                deep=True,
            )  # fmt: skip
            request.instance_id = instance.id
            self.state.save(instance)
            for mapping in request.volumes:
                self.state.save(volume_of(self.state, instance, mapping, request.volume_tags))
            self._set(request, "active", "fulfilled")
            self.lifecycle.boot(instance)

    def cancel(self, request_id: str) -> SpotRequestRecord:
        """CancelSpotInstanceRequests for one. A running instance runs on; a stopped one is terminated."""
        request = self.request(request_id)
        if request.state == "open":
            self._set(request, "cancelled", "canceled-before-fulfillment")
        elif request.state in ("active", "disabled"):
            stopped = request.state == "disabled"
            self._set(request, "cancelled", "request-canceled-and-instance-running")
            if stopped and request.instance_id:
                self.lifecycle.terminate(request.instance_id)
        return request

    def purge(self) -> None:
        """Forget requests that ended an hour ago."""
        for request in list(self.state.spot_requests.values()):
            alive = request.instance_id in self.state.instances
            if (
                request.state in ("closed", "cancelled")
                and not alive
                and (now() - request.status_time > TERMINATED_VISIBLE)
            ):
                self.state.forget(request)

    # Interruptions

    def interrupt(self, order: InterruptionOrder) -> Interruption:
        """Give an instance notice, and carry it out in time (lock not held). Raises SpotError."""
        with self.state.lock:
            instance = self.state.instances.get(order.instance_id)
            request = self.state.spot_requests.get(instance.spot_request_id or "") if instance else None
            if instance is None or request is None:
                raise SpotError(f"{order.instance_id} is not a spot instance")
            if instance.state != "running":
                raise SpotError(f"{instance.id} is {instance.state}")
            if instance.interruption is not None:
                raise SpotError(f"{instance.id} is being interrupted already")
            notice_s = 0.0 if request.behavior == "hibernate" else order.notice_s
            noticed = now()
            time = noticed + timedelta(seconds=notice_s)
            notice = Interruption(action=request.behavior, noticed=noticed, time=time)
            instance.interruption = notice
            self.state.save(instance)
            self.lifecycle.machine_builder.write_metadata(instance)
        timer = threading.Timer(notice_s, self._interrupted, args=(instance, notice))
        timer.daemon = True
        timer.start()
        return notice

    def _interrupted(self, instance: InstanceRecord, notice: Interruption) -> None:
        with self.state.lock:
            if instance.interruption is not notice or instance.state not in ("pending", "running"):
                return  # it ended by itself
            if notice.action == "terminate":
                self.lifecycle.terminate(instance.id, cause=TERMINATION)
            else:
                self.lifecycle.stop(instance.id, hibernate=notice.action == "hibernate", cause=SHUTDOWN)

    def capacity(self, request_id: str) -> SpotRequestRecord:
        """There is capacity again (lock not held): launch or start what was interrupted. Raises SpotError."""
        with self.state.lock:
            request = self.state.spot_requests.get(request_id)
            if request is None:
                raise SpotError(f"there is no spot request {request_id}")
            if request.state == "disabled" and request.instance_id:
                if request.status_code != "instance-stopped-no-capacity":
                    raise SpotError(f"the instance of {request_id} was stopped by its user")
                self.lifecycle.start(request.instance_id)
            elif request.state == "open":
                self.lifecycle.work(request_id, self._replace)
            else:
                raise SpotError(f"{request_id} is {request.state}: it wants no capacity")
            return request

    # Descriptions

    def describe(self, request: SpotRequestRecord, tags: list[dict[str, str]]) -> dict[str, Any]:
        """The answer of DescribeSpotInstanceRequests for one."""
        template = request.template
        answer: dict[str, Any] = {
            "SpotInstanceRequestId": request.id, "State": request.state, "Tags": tags,
            "Type": "persistent" if request.persistent else "one-time",
            "InstanceInterruptionBehavior": request.behavior, "ProductDescription": "Linux/UNIX",
            "CreateTime": request.create_time.replace(tzinfo=None),
            "LaunchedAvailabilityZone": template.zone,
            "Status": {
                "Code": request.status_code, "Message": MESSAGES[request.status_code],
                "UpdateTime": request.status_time.replace(tzinfo=None),
            },
            "LaunchSpecification": {
                "ImageId": template.image_id, "InstanceType": template.instance_type,
                "KeyName": template.key_name, "SubnetId": template.subnet_id,
                "EbsOptimized": template.ebs_optimized, "Placement": {"AvailabilityZone": template.zone},
                "SecurityGroups": [{"GroupId": group_id} for group_id in template.security_group_ids],
            },
        }  # fmt: skip
        if request.instance_id:
            answer["InstanceId"] = request.instance_id
        if request.max_price:
            answer["SpotPrice"] = request.max_price
        return answer


#: Filters of DescribeSpotInstanceRequests -> the value in :meth:`Spot.describe`'s answer.
FILTERS: dict[str, Any] = {
    "spot-instance-request-id": lambda item: item["SpotInstanceRequestId"],
    "state": lambda item: item["State"],
    "status-code": lambda item: item["Status"]["Code"],
    "instance-id": lambda item: item.get("InstanceId", ""),
    "type": lambda item: item["Type"],
    "launch.image-id": lambda item: item["LaunchSpecification"]["ImageId"],
    "launch.instance-type": lambda item: item["LaunchSpecification"]["InstanceType"],
    "launched-availability-zone": lambda item: item["LaunchedAvailabilityZone"],
}
