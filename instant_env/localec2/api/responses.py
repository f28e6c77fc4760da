"""The EC2 API: moto's response class behind an allow-list, with what touches machines and disks overridden.

moto parses requests, filters, and writes XML. What an action does is in :mod:`lifecycle`, :mod:`images` and
:mod:`volumes`; what moto does itself (key pairs, security groups, tags) is captured into records afterwards.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Set as AbstractSet
from typing import Any, ClassVar

from instant_env.localec2.api import allowed
from instant_env.localec2.api.account.places import Places
from instant_env.localec2.api.account.prices import Prices
from instant_env.localec2.api.account.tags import TagListing
from instant_env.localec2.api.describe import Descriptions
from instant_env.localec2.api.groups.rules import GroupRules
from instant_env.localec2.api.groups.security_groups import SecurityGroups
from instant_env.localec2.api.image_lifecycle import ImageLifecycle
from instant_env.localec2.api.image_registration import ImageRegistration
from instant_env.localec2.api.instance_attributes import InstanceAttributes
from instant_env.localec2.api.instance_profiles import InstanceProfiles
from instant_env.localec2.api.key_pairs import KeyPairs
from instant_env.localec2.api.network_interfaces import NetworkInterfaces
from instant_env.localec2.api.networks.gateways import InternetGateways
from instant_env.localec2.api.networks.route_tables import RouteTables
from instant_env.localec2.api.networks.subnets import Subnets
from instant_env.localec2.api.networks.vpcs import Vpcs
from instant_env.localec2.api.pages import paged
from instant_env.localec2.api.requests.checks import check
from instant_env.localec2.api.requests.fields import present_fields
from instant_env.localec2.api.requests.tags import check_metadata_keys
from instant_env.localec2.api.services import Services
from instant_env.localec2.api.spot_requests import SpotRequests
from instant_env.localec2.api.templates.actions import LaunchTemplateActions
from instant_env.localec2.instances.admission import check_account
from instant_env.localec2.instances.hibernation import check_stop
from instant_env.localec2.instances.launches import metadata_options, run_instances
from instant_env.localec2.instances.state_reasons import HIBERNATION, USER
from instant_env.localec2.protocol.moto_request import CallResponse
from instant_env.localec2.qemu.disks import DiskError
from instant_env.localec2.records.journal import StorageError
from instant_env.localec2.records.records import InstanceRecord
from instant_env.localec2.state.client_tokens import request_digest
from instant_env.localec2.state.mirror import STATE_CODES
from instant_env.localec2.state.moto_api import ActionResult, EC2ClientError, EC2Response, EmptyResult
from instant_env.localec2.state.state import now
from instant_env.localec2.state.strictness.visibility import check_named, prepare, shown

log = logging.getLogger(__name__)

#: What CreateVolume can order beside type and size.
_VOLUME_ORDER = ("Iops", "Throughput", "Encrypted", "KmsKeyId", "VolumeInitializationRate")


class LocalResponse(
    CallResponse,
    InstanceAttributes,
    Descriptions,
    InstanceProfiles,
    ImageRegistration,
    ImageLifecycle,
    NetworkInterfaces,
    SpotRequests,
    Vpcs,
    Subnets,
    InternetGateways,
    RouteTables,
    GroupRules,
    SecurityGroups,
    KeyPairs,
    Places,
    Prices,
    TagListing,
    LaunchTemplateActions,
):
    """One request to EC2. The server holds the state's lock while it runs."""

    services: ClassVar[Services]
    hidden_ids: AbstractSet[str] = frozenset()
    #: A copy: moto's own is shared by all classes and some of its actions write to it.
    RESPONSE_KEY_PATH_TO_TRANSFORMER: ClassVar[dict[str, Any]] = {
        **EC2Response.RESPONSE_KEY_PATH_TO_TRANSFORMER,
        # moto invents names that no DNS knows; EC2 answers "" where there is none.
        "Instance.PublicDnsName": lambda _: "",
        "Association.PublicDnsName": lambda name: "" if name else None,
        # Of an interface without a public address moto makes an empty one; EC2 answers none.
        "Interface.Association": lambda association: association or None,
    }

    @property
    def ec2_backend(self) -> Any:
        """This server's; moto's would be the one that is in its table now."""
        return self.services.state.mirror.ec2

    def parse_parameters(self, _: Any) -> None:
        """Let moto read what was given and can be read; :meth:`refused` answers the refusals."""
        self.refusal: EC2ClientError | None = None
        self.querystring = present_fields(self._get_action(), self.querystring)
        wire = [(name, values[0]) for name, values in self.querystring.items()]
        try:
            check(self._get_action(), wire)
            if sentence := allowed.refusal(self._get_action(), wire):
                raise EC2ClientError("UnsupportedOperation", sentence)
            self.parse_fields(dict(wire))
            if self.unread:
                raise EC2ClientError(
                    "UnknownParameter", f"The parameter {min(self.unread)} is not recognized"
                )
        except EC2ClientError as error:
            self.refusal = error
        except ValueError as error:  # a blob or a time
            self.refusal = EC2ClientError("InvalidParameterValue", f"A parameter cannot be read: {error}.")

    def refusal_answer(self) -> Any:
        return None if self.refusal is None else self._error(self.refusal)

    def call_action(self) -> Any:
        action = self._get_action()
        try:
            self.hidden_ids = prepare(self.services.state)
            check_named(self.services.state, self.hidden_ids, action, self.call.fields)
            return super().call_action()
        except EC2ClientError as error:
            return self._error(error)
        except NotImplementedError as error:
            text = str(error).split(" yet.")[0] or f"{action} is not implemented"
            return self._error(EC2ClientError("UnsupportedOperation", f"localec2: {text}"))
        except StorageError:
            raise  # the server's to answer: SSM has it too
        except DiskError as error:
            _, headers, body = self._error(EC2ClientError("InsufficientVolumeCapacity", error.message))
            return 500, {**headers, "status": "500"}, body
        except Exception:
            log.exception("%s failed", action)
            _, headers, body = self._error(
                EC2ClientError("InternalError", f"{action} failed; server.log says why.")
            )
            return 500, {**headers, "status": "500"}, body

    def serialized(self, result: ActionResult) -> Any:
        """moto's answer, a page of it where EC2 has pages."""
        if isinstance(result.result, dict) and not isinstance(result, EmptyResult):
            action = self._get_action()
            answer = shown(self.services.state, self.hidden_ids, action, result.result, self.call.fields)
            result = ActionResult(paged(action, answer, self.params))
        return super().serialized(result)

    @staticmethod
    def _enrich_response(headers: dict[str, str], body: Any) -> tuple[dict[str, str], Any]:
        """Give the answer an id of its own; moto's looks through all of it for a tag that EC2 has not."""
        if "status" in headers:
            headers["status"] = str(headers["status"])
        request_id = str(uuid.uuid4())
        headers["x-amzn-requestid"] = request_id
        if isinstance(body, str):
            head, made_up, tail = body.rpartition("request-id</")  # the last element, or nearly
            if made_up and len(tail) < 100:
                body = f"{head}{request_id}</{tail}"
        return headers, body

    def _error(self, error: EC2ClientError) -> Any:
        status, headers, body = self.serialized(ActionResult(error))
        headers["status"] = str(status)
        headers, body = self._enrich_response(headers, body)
        return status, headers, body

    # Instances

    def run_instances(self) -> ActionResult:
        state = self.services.state
        self.params = state.launch_templates.merged(self.params)
        tags = self._parse_tag_specification()
        self.error_on_dryrun()
        if (self._get_param("MetadataOptions") or {}).get("InstanceMetadataTags") == "enabled":
            check_metadata_keys(tags.get("instance", {}))
        instances = self.launch(tags)
        return ActionResult(state.mirror.ec2.reservations[instances[0].reservation_id])

    def launch(self, tags: dict[str, dict[str, str]]) -> list[InstanceRecord]:
        """Launch what the request's parameters say, or find what its client token has launched."""
        state, lifecycle = self.services.state, self.services.lifecycle
        self.services.purge()
        earlier = set(state.instances)
        instances = run_instances(state, self._get_param, tags, request_digest(self.querystring))
        if interface_tags := tags.get("network-interface"):
            for instance in instances:
                self.services.save_tags(instance.interface_id, interface_tags)
        for instance in instances:
            if instance.id not in earlier:
                state.faults.launched(instance.id)
                lifecycle.boot(instance)
        if instances[0].id not in earlier and (image := state.images.get(instances[0].image_id)) is not None:
            image.last_launched = now()
            state.save(image)
        return instances

    def _changed(self, before: dict[str, str]) -> list[dict[str, Any]]:
        instances = self.services.state.instances
        return [
            {
                "InstanceId": instance_id,
                "PreviousState": {"Name": earlier, "Code": STATE_CODES[earlier]},
                "CurrentState": {
                    "Name": instances[instance_id].state, "Code": STATE_CODES[instances[instance_id].state]
                },
            }
            for instance_id, earlier in before.items()
        ]  # fmt: skip

    def _instance_ids(self) -> list[str]:
        """The request's instances; all of them exist, or the request fails as a whole."""
        ids = list(dict.fromkeys(self._get_param("InstanceIds", [])))
        if not ids:
            raise EC2ClientError("InvalidParameterCombination", "No instances specified")
        for instance_id in ids:
            self.services.state.instance(instance_id)
        self.error_on_dryrun()
        return ids

    def start_instances(self) -> ActionResult:
        ids = self._instance_ids()
        return ActionResult({"StartingInstances": self._changed({i: self._start(i) for i in ids})})

    def _start(self, instance_id: str) -> str:
        state = self.services.state
        instance = state.instances[instance_id]
        if instance.state == "stopped":
            check_account(state, instance.instance_type, 1, spot=instance.market == "spot")
        return self.services.lifecycle.start(instance_id)

    def stop_instances(self) -> ActionResult:
        ids, force = self._instance_ids(), self._at_once()
        hibernate = bool(self._get_bool_param("Hibernate", False))
        for instance_id in ids:
            instance = self.services.state.instances[instance_id]
            self._check_protection(instance_id, "disable_api_stop", "stopped")
            self.services.spot.check_stop(instance)
            if hibernate:
                check_stop(instance, self.services.state.strictness.hibernates_from_s(instance_id))
        lifecycle, cause = self.services.lifecycle, HIBERNATION if hibernate else USER
        before = {i: lifecycle.stop(i, force=force, hibernate=hibernate, cause=cause) for i in ids}
        return ActionResult({"StoppingInstances": self._changed(before)})

    def _at_once(self) -> bool:
        """Whether the guest is not to be asked."""
        return bool(self._get_bool_param("Force", False) or self._get_bool_param("SkipOsShutdown", False))

    def _check_protection(self, instance_id: str, attribute: str, verb: str) -> None:
        if getattr(self.services.state.instances[instance_id], attribute):
            name = {"disable_api_stop": "disableApiStop", "disable_api_termination": "disableApiTermination"}
            raise EC2ClientError(
                "OperationNotPermitted",
                f"The instance '{instance_id}' may not be {verb}. Modify its '{name[attribute]}' instance "
                "attribute and try again.",
            )

    def terminate_instances(self) -> ActionResult:
        ids = self._instance_ids()
        for instance_id in ids:
            self._check_protection(instance_id, "disable_api_termination", "terminated")
        # EC2 asks the guest unless told otherwise; here only when told to (README).
        by_guest = self._get_bool_param("SkipOsShutdown") is False and not self._at_once()
        grace = True if by_guest else False if self._at_once() else None
        before = {i: self.services.lifecycle.terminate(i, graceful=grace) for i in ids}
        return ActionResult({"TerminatingInstances": self._changed(before)})

    def reboot_instances(self) -> ActionResult:
        for instance_id in self._instance_ids():
            self.services.lifecycle.reboot(instance_id)
        return EmptyResult()

    def modify_instance_metadata_options(self) -> ActionResult:
        state = self.services.state
        instance = state.instance(self._get_param("InstanceId"))
        names = ("HttpTokens", "HttpEndpoint", "HttpPutResponseHopLimit", "InstanceMetadataTags")
        changes = {name: value for name in names if (value := self._get_param(name)) is not None}
        options = metadata_options(changes, instance.metadata_options)
        if options.instance_tags:
            check_metadata_keys(instance.tags)
        self.error_on_dryrun()
        instance.metadata_options = options
        state.save(instance)
        self.services.instance_changed(instance)
        structure = state.mirror.find_instance(instance.id).metadata_options
        return ActionResult({"InstanceId": instance.id, "InstanceMetadataOptions": structure})

    # Images and snapshots

    def create_image(self) -> ActionResult:
        tags = self._parse_tag_specification()
        self.error_on_dryrun()
        image = self.services.images.create(
            self._get_param("InstanceId"), self._get_param("Name") or "",
            self._get_param("Description") or "",
            self._get_bool_param("NoReboot", False), self._get_param("BlockDeviceMappings") or [], tags,
        )  # fmt: skip
        return ActionResult({"ImageId": image.id})

    def deregister_image(self) -> ActionResult:
        image_id = self._get_param("ImageId")
        self.services.state.image(image_id)
        self.error_on_dryrun()
        deleted = self.services.images.deregister(
            image_id, self._get_bool_param("DeleteAssociatedSnapshots", False)
        )
        results = [{"SnapshotId": snapshot_id, "ReturnCode": "success"} for snapshot_id in deleted]
        return ActionResult({"Return": True, "DeleteSnapshotResults": results})

    def create_snapshot(self) -> ActionResult:
        tags = self._parse_tag_specification()
        self.error_on_dryrun()
        snapshot = self.services.snapshots.create(
            self._get_param("VolumeId"), self._get_param("Description") or "", tags.get("snapshot", {})
        )
        tag_set = [{"Key": key, "Value": value} for key, value in snapshot.tags.items()]
        return ActionResult(self._snapshot(snapshot.id, tag_set))

    def copy_snapshot(self) -> ActionResult:
        tags, state = self._parse_tag_specification(), self.services.state
        for name in ("SourceRegion", "DestinationRegion"):
            if self._get_param(name) not in (None, state.region):
                raise EC2ClientError("UnsupportedOperation", f"localec2 has one region, {state.region}.")
        source_id = self._get_param("SourceSnapshotId") or ""
        state.snapshot(source_id)
        self.error_on_dryrun()
        snapshot = self.services.snapshots.copy(
            source_id, self._get_param("Description") or "", tags.get("snapshot", {}),
            encrypted=bool(self._get_bool_param("Encrypted", False)),
        )  # fmt: skip
        tag_set = [{"Key": key, "Value": value} for key, value in snapshot.tags.items()]
        return ActionResult({"SnapshotId": snapshot.id, "Tags": tag_set})

    def delete_snapshot(self) -> ActionResult:
        self.error_on_dryrun()
        self.services.snapshots.delete(self._get_param("SnapshotId"))
        return EmptyResult()

    # Volumes

    def create_volume(self) -> ActionResult:
        tags = self._parse_tag_specification()
        self.error_on_dryrun()
        size = self._get_param("Size")
        volume = self.services.volumes.create(
            size_gib=None if size is None else int(size), snapshot_id=self._get_param("SnapshotId"),
            zone=self._get_param("AvailabilityZone") or "",
            volume_type=self._get_param("VolumeType") or "gp2",
            order={name: self._get_param(name) for name in _VOLUME_ORDER},
            token=self._get_param("ClientToken"), digest=request_digest(self.querystring),
            encrypted=self._get_bool_param("Encrypted", False),
            tags=tags.get("volume", {}),
        )  # fmt: skip
        return ActionResult(self._volume(volume) | {"State": "creating"})

    def attach_volume(self) -> ActionResult:
        self.error_on_dryrun()
        volume = self.services.volumes.attach(
            self._get_param("VolumeId"), self._get_param("InstanceId"), self._get_param("Device") or ""
        )
        return ActionResult(self._volume(volume)["Attachments"][0] | {"State": "attaching"})

    def detach_volume(self) -> ActionResult:
        self.error_on_dryrun()
        volume_id = self._get_param("VolumeId")
        attachments = self._volume(self.services.state.volume(volume_id))["Attachments"]
        self.services.volumes.detach(volume_id, self._get_param("InstanceId"), self._get_param("Device"))
        return ActionResult(attachments[0] | {"State": "detaching"})

    def modify_volume(self) -> ActionResult:
        order = {name: self._get_param(name) for name in ("Size", "VolumeType", "Iops", "Throughput")}
        volume, changes = self.services.modifications.check(self._get_param("VolumeId") or "", order)
        self.error_on_dryrun()
        self.services.modifications.modify(volume, changes)
        return ActionResult({"VolumeModification": self.services.modifications.describe(volume)})

    def delete_volume(self) -> ActionResult:
        self.error_on_dryrun()
        self.services.volumes.delete(self._get_param("VolumeId"))
        return EmptyResult()

    # Tags

    def create_tags(self) -> ActionResult:
        self._check_resources()
        instances = self.services.state.instances
        for resource_id in self._get_param("Resources", []):
            if resource_id in instances and instances[resource_id].metadata_options.instance_tags:
                check_metadata_keys(tag["Key"] for tag in self._get_param("Tags", []))
        result = super().create_tags()
        keys = [tag["Key"] for tag in self._get_param("Tags", [])]
        self.services.state.strictness.tagged(self._get_param("Resources", []), keys)
        self.services.capture_tags(self._get_param("Resources", []))
        return result

    def delete_tags(self) -> ActionResult:
        self._check_resources()
        # moto deletes nothing when no tags are named; EC2 deletes all.
        if not self._get_param("Tags", []):
            self.error_on_dryrun()
            for resource_id in self._get_param("Resources", []):
                self.services.state.mirror.ec2.tags.pop(resource_id, None)
            result: ActionResult = EmptyResult()
        else:
            result = super().delete_tags()
        self.services.capture_tags(self._get_param("Resources", []))
        return result

    def _check_resources(self) -> None:
        """All resources of the request exist, or none is changed; moto tags what is not there."""
        for resource_id in self._get_param("Resources", []):
            self.services.state.check_resource(resource_id)

    def get_console_output(self) -> ActionResult:
        instance = self.services.state.instance(self._get_param("InstanceId"))
        return ActionResult(
            {
                "InstanceId": instance.id,
                "Timestamp": now().replace(tzinfo=None),
                "Output": self.services.console_output(
                    instance.id, latest=bool(self._get_bool_param("Latest", False))
                ),
            }
        )
