"""What can be asked and changed of one instance: its attributes, and the checks of its status."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from instant_env.localec2.api.base import Action
from instant_env.localec2.instances.launches import user_data
from instant_env.localec2.instances.state_reasons import HIBERNATION
from instant_env.localec2.instances.types import check_type, cpu_credits, default_credits
from instant_env.localec2.records.records import InstanceRecord
from instant_env.localec2.state.filters import matches
from instant_env.localec2.state.mirror import STATE_CODES
from instant_env.localec2.state.moto_api import ActionResult, EC2ClientError, EmptyResult
from instant_env.localec2.state.state import now

#: A guest that has not used its address this long after the launch does not answer: `impaired`. EC2 needs a
#: few minutes too.
SILENCE = timedelta(minutes=5)
#: Attributes that are one value -> field of our record; those of a running machine come first.
_PLAIN = {
    "InstanceInitiatedShutdownBehavior": "shutdown_behavior",
    "DisableApiTermination": "disable_api_termination",
    "DisableApiStop": "disable_api_stop",
    "EbsOptimized": "ebs_optimized",
    "InstanceType": "instance_type",
    "UserData": "user_data_base64",
}
#: API_ModifyInstanceAttribute: "you must stop the instance first".
_STOPPED_ONLY = ("EbsOptimized", "InstanceType", "UserData")


class InstanceAttributes(Action):
    """Mixed into moto's response class, which has the parameters."""

    def modify_instance_attribute(self) -> ActionResult:
        state = self.services.state
        instance = state.instance(self._get_param("InstanceId"))
        attributes = {name: v for name in _PLAIN if (v := self._wire(f"{name}.Value")) is not None}
        if attribute := self._get_param("Attribute"):
            name = attribute[0].upper() + attribute[1:]
            if name not in _PLAIN:
                raise EC2ClientError("UnsupportedOperation", f"localec2 cannot change {attribute} this way.")
            attributes[name] = self._wire("Value") or ""
        groups = self._get_param("Groups", [])
        mappings = self._get_param("BlockDeviceMappings") or []
        checked = (
            self._wire("SourceDestCheck.Value") is not None
        )  # true, as it is: the allow-list has seen to it
        kinds = len(attributes) + bool(groups) + bool(mappings) + checked
        if kinds == 0:
            raise EC2ClientError("MissingParameter", "The request must contain an attribute to change")
        if kinds > 1:
            raise EC2ClientError(
                "InvalidParameterCombination", "Fields for multiple attribute types specified"
            )
        changes = {_PLAIN[name]: self._value(instance, name, value) for name, value in attributes.items()}
        if groups:
            state.networks.check_groups(groups, state.subnet(instance.subnet_id).vpc_id)
        mapped = [self._with_flag(instance, mapping) for mapping in mappings]
        self.error_on_dryrun()
        for field, value in changes.items():
            setattr(instance, field, value)
        if default_credits(instance.instance_type) is None:
            instance.cpu_credits = None
        if groups:
            instance.security_group_ids = list(groups)
        for volume, attachment in mapped:
            volume.attachment = attachment
            state.save(volume)
        state.save(instance)
        self.services.instance_changed(instance)
        if groups:
            self.services.lifecycle.refresh_network()
        return EmptyResult()

    def _wire(self, name: str) -> str | None:
        """A parameter as it was sent: user data is still in base64 there."""
        return self.querystring.get(name, [None])[0]

    @staticmethod
    def _value(instance: InstanceRecord, name: str, text: str) -> Any:
        """The value of a plain attribute, checked."""
        if name in _STOPPED_ONLY and instance.state != "stopped":
            raise EC2ClientError(
                "IncorrectInstanceState", f"The instance '{instance.id}' is not in the 'stopped' state."
            )
        if name == "UserData":
            return user_data(text)
        if name == "InstanceType":
            if instance.state_reason_code == HIBERNATION.code:
                raise EC2ClientError(
                    "UnsupportedOperation", f"The type of the hibernated instance '{instance.id}' stays."
                )
            check_type(text, instance.architecture)
            return text
        if name == "InstanceInitiatedShutdownBehavior":
            if text not in ("stop", "terminate"):
                raise EC2ClientError(
                    "InvalidParameterValue", f"Invalid value '{text}' for instanceInitiatedShutdownBehavior"
                )
            return text
        if text.lower() not in ("true", "false"):
            raise EC2ClientError("InvalidParameterValue", f"Invalid value '{text}' for {name}")
        return text.lower() == "true"

    def _with_flag(self, instance: InstanceRecord, mapping: dict[str, Any]) -> tuple[Any, Any]:
        """A volume, and its attachment with DeleteOnTermination as the mapping says."""
        device, ebs = mapping.get("DeviceName"), mapping.get("Ebs") or {}
        for volume in self.services.state.attached(instance.id):
            attachment = volume.attachment
            if attachment is not None and attachment.device == device:
                if ebs.get("VolumeId") not in (None, volume.id):
                    break
                ends = ebs.get("DeleteOnTermination", attachment.delete_on_termination)
                return volume, attachment.model_copy(update={"delete_on_termination": ends})
        raise EC2ClientError(
            "InvalidInstanceAttributeValue", f"No device is currently mapped at {device} to that volume"
        )

    def describe_instance_attribute(self) -> ActionResult:
        state = self.services.state
        instance, attribute = state.instance(self._get_param("InstanceId")), self._get_param("Attribute")
        self.error_on_dryrun()
        name = attribute[0].upper() + attribute[1:]
        answer: dict[str, Any] = {"InstanceId": instance.id}
        if name in _PLAIN:
            value = getattr(instance, _PLAIN[name])
            answer[name] = {"Value": value} if value is not None else {}
        elif name == "RootDeviceName":
            answer[name] = {"Value": instance.root_device_name}
        elif name in ("SourceDestCheck", "EnaSupport"):
            answer[name] = {"Value": True}
        elif name == "GroupSet":
            answer["Groups"] = [{"GroupId": group_id} for group_id in instance.security_group_ids]
        elif name == "BlockDeviceMapping":
            answer["BlockDeviceMappings"] = [
                {
                    "DeviceName": item.device,
                    "Ebs": {
                        "VolumeId": volume.id, "Status": "attached",
                        "DeleteOnTermination": item.delete_on_termination,
                        "AttachTime": item.attach_time.replace(tzinfo=None),
                    },
                }
                for volume in state.attached(instance.id) if (item := volume.attachment)
            ]  # fmt: skip
        else:
            raise EC2ClientError("UnsupportedOperation", f"localec2 does not know the attribute {attribute}.")
        return ActionResult(answer)

    def describe_instance_credit_specifications(self) -> ActionResult:
        """Of instances whose types have CPU credits, as on EC2."""
        self.error_on_dryrun()
        state = self.services.state
        requested = [state.instance(i) for i in dict.fromkeys(self._get_param("InstanceIds", []))]
        for instance in requested:
            if instance.cpu_credits is None and default_credits(instance.instance_type) is None:
                raise EC2ClientError(
                    "InvalidParameterCombination",
                    f"The instance type of '{instance.id}' has no CPU credits: {instance.instance_type}",
                )
        instances = requested or [item for item in state.instances.values() if item.state != "terminated"]
        patterns = self._filters_from_querystring().get("instance-id")  # the only filter that there is
        instances = [item for item in instances if patterns is None or matches(patterns, item.id)]
        credits = [(item.id, item.cpu_credits or default_credits(item.instance_type)) for item in instances]
        return ActionResult(
            {
                "InstanceCreditSpecifications": [
                    {"InstanceId": instance_id, "CpuCredits": option}
                    for instance_id, option in credits
                    if option is not None
                ]
            }
        )

    def modify_instance_credit_specification(self) -> ActionResult:
        state = self.services.state
        self.error_on_dryrun()
        changed, failed = [], []
        for item in self._get_param("InstanceCreditSpecifications", []):
            try:
                instance = state.instance(item.get("InstanceId") or "")
                instance.cpu_credits = cpu_credits(item.get("CpuCredits"), instance.instance_type)
            except EC2ClientError as error:
                refusal = {"Code": error.code, "Message": error.message}
                failed.append({"InstanceId": item.get("InstanceId"), "Error": refusal})
            else:
                state.save(instance)
                changed.append({"InstanceId": instance.id})
        return ActionResult(
            {
                "SuccessfulInstanceCreditSpecifications": changed,
                "UnsuccessfulInstanceCreditSpecifications": failed,
            }
        )

    def monitor_instances(self) -> ActionResult:
        return self._monitored(True)

    def unmonitor_instances(self) -> ActionResult:
        return self._monitored(False)

    def _monitored(self, monitoring: bool) -> ActionResult:
        """Detailed monitoring is recorded; there are no metrics here."""
        state = self.services.state
        instances = [state.instance(i) for i in dict.fromkeys(self._get_param("InstanceIds", []))]
        if not instances:
            raise EC2ClientError("MissingParameter", "The request must contain the parameter InstanceId")
        self.error_on_dryrun()
        for instance in instances:
            instance.monitoring = monitoring
            state.save(instance)
        structure = {"State": "enabled" if monitoring else "disabled"}
        return ActionResult(
            {"InstanceMonitorings": [{"InstanceId": item.id, "Monitoring": structure} for item in instances]}
        )

    # Status checks

    def describe_instance_status(self) -> ActionResult:
        ids, everything = (
            self._get_param("InstanceIds", []),
            self._get_bool_param("IncludeAllInstances", False),
        )
        filters = self._filters_from_querystring()
        self.error_on_dryrun()
        state = self.services.state
        instances = [state.instance(i) for i in dict.fromkeys(ids)] or list(state.instances.values())
        if not everything:
            instances = [instance for instance in instances if instance.state == "running"]
        statuses = [self._status(instance) for instance in instances]
        for name, values in filters.items():
            pick = _STATUS_FILTERS.get(name)
            if pick is None:
                raise EC2ClientError(
                    "UnsupportedOperation",
                    f"localec2 does not support the filter {name} of DescribeInstanceStatus.",
                )
            statuses = [status for status in statuses if matches(values, pick(status))]
        return ActionResult({"InstanceStatuses": statuses})

    def _status(self, instance: InstanceRecord) -> dict[str, Any]:
        system, guest = self._checks(instance)
        return {
            "InstanceId": instance.id, "AvailabilityZone": instance.zone,
            "InstanceState": {"Name": instance.state, "Code": STATE_CODES[instance.state]},
            "SystemStatus": _summary(system), "InstanceStatus": _summary(guest),
        }  # fmt: skip

    def _checks(self, instance: InstanceRecord) -> tuple[str, str]:
        """(the machine, its guest): what can be known of them from outside."""
        lifecycle = self.services.lifecycle
        machine = lifecycle.machines.get(instance.id)
        if instance.state != "running" or machine is None:
            return "not-applicable", "not-applicable"
        if machine.standing_still:
            return "ok", "impaired"
        if instance.id in lifecycle.heard:
            return "ok", "ok"
        if not lifecycle.hears_guests:
            return "ok", "insufficient-data"
        return "ok", "initializing" if now() - instance.launch_time < SILENCE else "impaired"


def _summary(status: str) -> dict[str, Any]:
    if status == "not-applicable":
        return {"Status": status}
    detail = {"ok": "passed", "impaired": "failed"}.get(status, status)
    return {"Status": status, "Details": [{"Name": "reachability", "Status": detail}]}


_STATUS_FILTERS = {
    "availability-zone": lambda status: status["AvailabilityZone"],
    "instance-state-name": lambda status: status["InstanceState"]["Name"],
    "instance-state-code": lambda status: status["InstanceState"]["Code"],
    "instance-status.status": lambda status: status["InstanceStatus"]["Status"],
    "instance-status.reachability": lambda status: (
        status["InstanceStatus"].get("Details", [{}])[0].get("Status")
    ),
    "system-status.status": lambda status: status["SystemStatus"]["Status"],
    "system-status.reachability": lambda status: status["SystemStatus"].get("Details", [{}])[0].get("Status"),
}
