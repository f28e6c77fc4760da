"""What localec2 knows, as records on disk: the truth that moto is rebuilt from.

How they are written and read: :mod:`instant_env.localec2.records.store`.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

Tags = dict[str, str]


class Record(BaseModel):
    """What all records have in common. ``kind`` is the directory, ``key`` the file's name."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    kind: ClassVar[str]
    version: Literal[1] = 1

    @property
    def key(self) -> str:
        raise NotImplementedError


class ResourceRecord(Record):
    """A record of something that EC2 gives an id and tags."""

    id: str
    tags: Tags = Field(default_factory=dict)

    @property
    def key(self) -> str:
        return self.id


class ServerRecord(Record):
    """The server's own identity: what stays the same from one start to the next."""

    kind: ClassVar[str] = "server"
    access_key_id: str
    secret_access_key: str
    admin_token: str
    network_seed: int  # moto draws the ids of the default VPC and its subnets from this
    address_block: int = 0  # the b of 127.(64 + b / 256).(b mod 256).0/24 that this server had last
    port: int = 0  # the API's port, taken again when it is free
    region: str = ""  # where everything in this state directory is; empty in records of older servers
    home: str = ""  # the state directory when the server started last; empty in records of older servers
    home_inode: str = ""  # and which directory that was: one that is moved stays the same, a copy does not

    @property
    def key(self) -> str:
        return "server"


class UploadTerms(BaseModel):
    """How a snapshot is written block by block (StartSnapshot); they stay for the client token's sake."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    client_token: str | None
    request_digest: str
    timeout_min: int  # given up when no block is written for this long
    sealed: bool = False  # CompleteSnapshot was answered


class SnapshotRecord(ResourceRecord):
    """An EBS snapshot: a qcow2 in ``snapshots/``, an overlay of other snapshots' files when it has layers."""

    kind: ClassVar[str] = "snapshot"
    volume_id: str
    size_gib: int
    layers: list[str] = Field(default_factory=list)  # ids of the snapshots under it, the nearest first
    encrypted: bool = False
    description: str
    owner_id: str
    start_time: datetime
    state: Literal["pending", "completed", "error"]
    state_message: str = ""
    upload: UploadTerms | None = None


class Performance(BaseModel):
    """What was ordered of a gp3 volume beyond what every one has. It is recorded; no disk here is slower."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    iops: int | None = None
    throughput_mib_s: int | None = None


class ImageMapping(BaseModel):
    """A volume that comes with an image, beside the root."""

    model_config = ConfigDict(extra="forbid")

    device: str
    snapshot_id: str | None
    size_gib: int
    volume_type: str = "gp3"
    performance: Performance = Performance()
    delete_on_termination: bool = True
    encrypted: bool = False
    kms_key: str | None = None
    initialization_mib_s: int | None = None


class ImageRecord(ResourceRecord):
    """An AMI. Its root is in fields of its own; other volumes are in ``mappings``."""

    kind: ClassVar[str] = "image"
    name: str
    description: str
    owner_id: str
    owner_alias: str | None = None
    architecture: str
    state: Literal["pending", "available", "failed", "disabled"]
    state_reason: str = ""
    creation_date: datetime
    root_device_name: str
    snapshot_id: str
    size_gib: int
    boot_mode: str = "uefi"
    public: bool = False
    source_instance_id: str | None = None
    source_image_id: str | None = None
    stock_digest: str | None = None  # set on stock images: what the bytes were made from
    ssm_parameter: str | None = None
    root_delete_on_termination: bool = True
    root_volume_type: str = "gp3"
    root_performance: Performance = Performance()
    mappings: list[ImageMapping] = Field(default_factory=list)
    ena_support: bool = True
    imds_support: Literal["v2.0"] | None = None
    deprecation_time: datetime | None = None
    protection: Literal["disabled", "enabled-with-cooldown", "enabled-without-cooldown"] = "disabled"
    protected_until: datetime | None = None  # its protection was taken away, and cools down until then
    last_launched: datetime | None = None
    nocloud: bool = False  # its cloud-init does not look for EC2
    client_token: str | None = None  # of CopyImage
    request_digest: str = ""

    @property
    def snapshot_ids(self) -> list[str]:
        """All snapshots that the image is made of, the root's first."""
        return [self.snapshot_id, *(item.snapshot_id for item in self.mappings if item.snapshot_id)]

    def all_mappings(self, root_encrypted: bool) -> list[ImageMapping]:
        """The mappings of all volumes, the root's first."""
        root = ImageMapping(
            device=self.root_device_name, snapshot_id=self.snapshot_id, size_gib=self.size_gib,
            volume_type=self.root_volume_type, performance=self.root_performance,
            delete_on_termination=self.root_delete_on_termination, encrypted=root_encrypted,
        )  # fmt: skip
        return [root, *self.mappings]


class VolumeModification(BaseModel):
    """The last change of a volume (ModifyVolume): what it was before, and whether its file has followed."""

    model_config = ConfigDict(extra="forbid")

    size_gib: int
    volume_type: str
    performance: Performance
    start_time: datetime
    end_time: datetime | None = None


class Attachment(BaseModel):
    """Where a volume is attached."""

    model_config = ConfigDict(extra="forbid")

    instance_id: str
    device: str
    delete_on_termination: bool
    attach_time: datetime


class VolumeRecord(ResourceRecord):
    """An EBS volume: a qcow2 in ``volumes/``, an overlay of its snapshot's file when it has one."""

    kind: ClassVar[str] = "volume"
    size_gib: int
    zone: str
    volume_type: str
    performance: Performance = Performance()
    snapshot_id: str | None
    layers: list[str] = Field(default_factory=list)  # snapshots under snapshot_id, the nearest first
    encrypted: bool = False
    kms_key: str | None = None  # as it was given; None is the account's default key
    initialization_mib_s: int | None = None  # VolumeInitializationRate; nothing here is read late
    create_time: datetime
    attachment: Attachment | None = None
    modification: VolumeModification | None = None
    client_token: str | None = None
    request_digest: str = ""


class MetadataOptions(BaseModel):
    """EC2's MetadataOptions, with the defaults of a new account: IMDSv2 only, one hop."""

    model_config = ConfigDict(extra="forbid")

    http_tokens: Literal["required", "optional"] = "required"
    http_endpoint: Literal["enabled", "disabled"] = "enabled"
    hop_limit: Annotated[int, Field(ge=1, le=64)] = 1
    instance_tags: bool = False


class ProfileAssociation(BaseModel):
    """An instance profile that is associated with an instance. The profile may be deleted meanwhile."""

    model_config = ConfigDict(extra="forbid")

    id: str
    profile_name: str
    profile_arn: str
    profile_id: str
    since: datetime


class Interruption(BaseModel):
    """The notice that a spot instance got: what happens to it, and when."""

    model_config = ConfigDict(extra="forbid")

    action: Literal["terminate", "stop", "hibernate"]
    noticed: datetime
    time: datetime


InstanceState = Literal["pending", "running", "shutting-down", "terminated", "stopping", "stopped"]


class InterfaceAttachment(BaseModel):
    """Where a network interface is attached."""

    model_config = ConfigDict(extra="forbid")

    id: str
    instance_id: str
    device_index: int
    delete_on_termination: bool
    attach_time: datetime


class InterfaceRecord(ResourceRecord):
    """A network interface that was made by itself; what a launch makes is part of its instance's record.

    Attached as an instance's first one, the instance's record says the same of it.
    """

    kind: ClassVar[str] = "interface"
    description: str
    subnet_id: str
    zone: str
    private_ip: str
    mac_address: str
    security_group_ids: list[str]
    client_token: str | None = None
    request_digest: str = ""
    attachment: InterfaceAttachment | None = None


class AddressRecord(ResourceRecord):
    """An Elastic IP: one of the server's loopback addresses, kept."""

    kind: ClassVar[str] = "address"
    public_ip: str
    interface_id: str | None = None
    association_id: str | None = None


class InstanceRecord(ResourceRecord):
    """An instance. The network interface that a launch makes lives with it, so it is part of this."""

    kind: ClassVar[str] = "instance"
    reservation_id: str
    interface_id: str
    interface_attachment_id: str
    mac_address: str
    image_id: str
    architecture: str
    root_device_name: str
    instance_type: str
    key_name: str | None
    public_key: str | None  # as it was at launch: deleting the key pair takes nothing from a running machine
    security_group_ids: list[str]
    subnet_id: str
    zone: str
    private_ip: str
    public_ip: str | None = None
    wants_public_ip: bool = True
    user_data_base64: str | None = None
    client_token: str | None = None
    request_digest: str = ""
    launch_index: int = 0
    launch_time: datetime
    shutdown_behavior: Literal["stop", "terminate"] = "stop"
    market: Literal["on-demand", "spot"] = "on-demand"
    ebs_optimized: bool = False
    disable_api_termination: bool = False
    disable_api_stop: bool = False
    cpu_credits: Literal["standard", "unlimited"] | None = None
    monitoring: bool = False
    spot_request_id: str | None = None
    one_time: bool = False  # its spot request is; such an instance cannot be stopped
    interruption: Interruption | None = None
    hibernation: bool = False  # HibernationOptions.Configured
    memory_mib: int = 0  # of the machine started last; 0 before the first start
    nocloud: bool = False  # as its image: it gets a NoCloud disk
    metadata_options: MetadataOptions = MetadataOptions()
    profile: ProfileAssociation | None = None
    state: InstanceState = "pending"
    transition_reason: str = ""
    state_reason_code: str = ""
    state_reason_message: str = ""
    terminated_at: datetime | None = None
    qmp_socket: str = ""  # of the machine started last; a lost machine is found by it

    @property
    def stoppable(self) -> bool:
        """Whether it can be stopped and started again: all but those of one-time spot requests."""
        return self.market != "spot" or (self.spot_request_id is not None and not self.one_time)


class SpotRequestRecord(ResourceRecord):
    """A spot instance request, one per instance; what a persistent one launches again is in it."""

    kind: ClassVar[str] = "spot-request"
    persistent: bool
    behavior: Literal["terminate", "stop", "hibernate"]
    max_price: str | None = None
    create_time: datetime
    state: Literal["open", "active", "disabled", "closed", "cancelled"]
    status_code: str
    status_time: datetime
    instance_id: str | None
    template: InstanceRecord
    volumes: list[ImageMapping]
    volume_tags: Tags = Field(default_factory=dict)


class KeyPairRecord(ResourceRecord):
    """A key pair's public half; the private one is given out once and never kept."""

    kind: ClassVar[str] = "key-pair"
    name: str
    key_type: str
    fingerprint: str
    public_key: str
    create_time: datetime


class RuleRecord(BaseModel):
    """One security group rule, in the shapes moto keeps."""

    model_config = ConfigDict(extra="forbid")

    id: str
    egress: bool
    ip_protocol: str
    from_port: int | None
    to_port: int | None
    ip_range: dict[str, str] = Field(default_factory=dict)
    source_group: dict[str, str] = Field(default_factory=dict)
    prefix_list_id: str | None = None
    tags: Tags = Field(default_factory=dict)


class SecurityGroupRecord(ResourceRecord):
    """A security group, its rules included."""

    kind: ClassVar[str] = "security-group"
    vpc_id: str = ""  # the default VPC, in records of older servers
    name: str
    description: str
    is_default: bool = False
    rules: list[RuleRecord]


class ParameterRecord(Record):
    """The newest version of an SSM parameter."""

    kind: ClassVar[str] = "parameter"
    name: str
    value: str
    parameter_type: str
    description: str | None
    data_type: str
    tier: str | None
    parameter_version: int
    last_modified: datetime
    tags: Tags = Field(default_factory=dict)

    @property
    def key(self) -> str:
        return self.key_of(self.name)

    @staticmethod
    def key_of(name: str) -> str:
        """Names hold slashes; a digest makes them file names and keeps distinct names apart.

        "/x" and "x" are the same to SSM, "/x/y" and "x/y" are not.
        """
        name = name if "/" in name.removeprefix("/") else name.removeprefix("/")
        return hashlib.sha256(name.encode()).hexdigest()[:32]


class TagsRecord(Record):
    """Tags of what has no record of its own: the default VPC, its subnets, network interfaces."""

    kind: ClassVar[str] = "tags"
    resource_id: str
    tags: Tags

    @property
    def key(self) -> str:
        return self.resource_id
