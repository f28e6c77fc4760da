"""The cloud that the contract is asked of: localec2 always, real EC2 with INSTANT_ENV_AWS_TESTS=1.

Both are reached by the same code, with the same client. Everything made carries our tags and an expiry, and
is removed at the end of the session, whatever happened; `invoke clean --cloud aws` finds what a killed one
left.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from botocore.exceptions import ClientError

from instant_env.arch import Arch
from instant_env.bake.recipe import load_base
from instant_env.cloud import instances
from instant_env.cloud.keys import KeyPair, imported_key_pair
from instant_env.cloud.network import caller_cidr, temporary_security_group
from instant_env.cloud.session import Cloud, connect
from instant_env.cloud.tags import Role, new_run_id, project_filter, tag_list
from instant_env.localec2 import starter
from instant_env.localec2_settings import LocalEc2Settings
from instant_env.settings import ROOT, AcceleratorChoice, CloudName, Settings, load
from instant_env.ssh.connection import wait_for_login
from support.localec2_cloud import STRICT, machines
from support.patience import Patience
from support.tiny_cloud import INSTANCE_TYPES, Guest

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client
    from mypy_boto3_ec2.type_defs import FilterTypeDef, InstanceTypeDef

T = TypeVar("T")

AWS = os.environ.get("INSTANT_ENV_AWS_TESTS") == "1"
#: What exists longer than this was left behind.
LIFETIME = timedelta(hours=2)
STATE_TIMEOUT_S = 300.0
LOGIN_TIMEOUT_S = 300.0

#: The tiny image has a program of this name; elsewhere curl does the same.
_IMDS_BY_CURL = r"""
imds() (
    url=http://169.254.169.254/latest token= code= make=yes
    while getopts snTt: option; do
        case $option in s) code=1 ;; n) make= ;; T) make=only ;; t) make= token=$OPTARG ;; esac
    done
    shift $((OPTIND - 1))
    new() { curl -sf -X PUT -H "X-aws-ec2-metadata-token-ttl-seconds: ${1:-60}" $url/api/token; }
    if [ "$make" = only ]; then new "$1"; return; fi
    [ "$make" ] && token=$(new)
    set -- -s ${token:+-H "X-aws-ec2-metadata-token: $token"} "$url/$1"
    if [ "$code" ]; then curl -o /dev/null -w '%{http_code}\n' "$@"; else curl -f "$@"; fi
)
"""


def differs(row: str) -> None:
    """Says that what follows is not as on EC2: a row of the table in localec2's README.

    Does nothing at run time; tests/unit/test_contract_rows.py checks that the row is there.
    """
    assert row


@dataclass
class Login(Guest):
    """A login with which root's commands can be run on either cloud's image."""

    prelude: str = ""
    sudo: bool = False

    def run(self, command: str, timeout_s: float = 60) -> str:
        return super().run(self._whole(command), timeout_s)

    def status(self, command: str, timeout_s: float = 60) -> int:
        return super().status(self._whole(command), timeout_s)

    def _whole(self, command: str) -> str:
        whole = self.prelude + command
        return f"sudo sh -c {shlex.quote(whole)}" if self.sudo else whole

    def imds(self, path: str) -> str:
        """What the metadata service answers below /latest."""
        return self.run(f"imds {shlex.quote(path)}")

    @property
    def boot_id(self) -> str:
        return self.run("cat /proc/sys/kernel/random/boot_id")


@dataclass
class ContractCloud:
    """One cloud during one session of tests."""

    cloud: Cloud
    arch: Arch
    image_id: str
    login_user: str
    key: KeyPair
    key_name: str
    group_id: str
    run_id: str
    expires_at: datetime
    logins: dict[str, Login] = field(default_factory=dict)

    @property
    def ec2(self) -> EC2Client:
        return self.cloud.ec2

    @property
    def is_local(self) -> bool:
        return self.cloud.name is CloudName.LOCAL

    @property
    def instance_type(self) -> str:
        return INSTANCE_TYPES[self.arch]

    @property
    def zone(self) -> str:
        return f"{self.cloud.region}a"

    def name(self, what: str) -> str:
        """A name that nobody else uses."""
        return f"instant-env-contract-{self.run_id}-{what}"

    def tags(self, *kinds: Any, name: str = "contract", **extra: str) -> list[Any]:
        """TagSpecifications for things of these kinds; ``extra`` keys get our prefix."""
        tags = tag_list(self.run_id, Role.BENCH, name=name, expires_at=self.expires_at, extra=extra)
        return [{"ResourceType": kind, "Tags": tags} for kind in kinds]

    @property
    def ours(self) -> list[FilterTypeDef]:
        """Filters for what this session made."""
        return project_filter(run=self.run_id)

    def run_instances(self, *, spot: bool = False, **more: Any) -> list[InstanceTypeDef]:
        """RunInstances of our image, of one machine unless ``more`` says so; ``spot`` only on AWS."""
        arguments: dict[str, Any] = {
            "ImageId": self.image_id, "InstanceType": self.instance_type, "MinCount": 1, "MaxCount": 1,
            "KeyName": self.key_name, "SecurityGroupIds": [self.group_id],
            "TagSpecifications": self.tags("instance", "volume"),
            "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 1},
        }  # fmt: skip
        if spot and not self.is_local:
            options = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"}
            arguments["InstanceMarketOptions"] = {"MarketType": "spot", "SpotOptions": options}
            arguments["InstanceInitiatedShutdownBehavior"] = "terminate"
        launched = self.ec2.run_instances(**arguments | more)["Instances"]
        for instance in launched:
            self.eventually(lambda id=instance["InstanceId"]: self._is_known(id), bool)  # type: ignore[misc]
        return launched

    def launch(self, *, spot: bool = False, **more: Any) -> str:
        return self.run_instances(spot=spot, **more)[0]["InstanceId"]

    def _is_known(self, instance_id: str) -> bool:
        """Whether it is found several times in a row: just after its launch, EC2's answers may change."""
        for _ in range(3):
            with suppress(ClientError):
                if self.ec2.describe_instances(InstanceIds=[instance_id])["Reservations"]:
                    time.sleep(0.1 if self.is_local else 1)
                    continue
            return False
        return True

    def describe(self, instance_id: str) -> InstanceTypeDef:
        answer = self.ec2.describe_instances(InstanceIds=[instance_id])
        return answer["Reservations"][0]["Instances"][0]

    def wait(self, instance_id: str, state: str) -> InstanceTypeDef:
        return instances.wait_for_state(self.cloud, instance_id, {state}, timeout_s=STATE_TIMEOUT_S)

    def eventually(self, ask: Callable[[], T], good: Callable[[T], bool], timeout_s: float = 120) -> T:
        """Ask until the answer is good: EC2's answers lag behind. The last answer, good or not."""
        deadline = time.monotonic() + timeout_s
        while not good(answer := ask()) and time.monotonic() < deadline:
            time.sleep(0.1 if self.is_local else 2)
        return answer

    def login(self, instance_id: str) -> Login:
        """Wait for a machine, log in; the connection is kept for the next who asks."""
        self.wait(instance_id, "running")
        # EC2 may describe it later than the state.
        address = self.eventually(lambda: self.describe(instance_id).get("PublicIpAddress", ""), bool)
        open_login = self.logins.get(instance_id)
        if open_login and open_login.connection.is_connected and open_login.connection.host == address:
            return open_login
        connection = wait_for_login(
            address, self.cloud.ssh_port, self.login_user, self.key, timeout_s=LOGIN_TIMEOUT_S
        )
        login = Login(
            instance_id, connection, "" if self.is_local else _IMDS_BY_CURL, sudo=self.login_user != "root"
        )
        self.logins[instance_id] = login
        return login

    def log_out(self, instance_id: str) -> None:
        """Forget the connection: the machine is about to go down."""
        if login := self.logins.pop(instance_id, None):
            login.connection.close()

    def accepts(self, instance_id: str, port: int) -> bool:
        """Whether something answers at this port of the machine's public address."""
        try:
            address = self.describe(instance_id)["PublicIpAddress"]
            socket.create_connection((address, port), timeout=3).close()
        except OSError:
            return False
        return True

    @property
    def caller(self) -> str:
        return caller_cidr(self.cloud)

    def environment(self) -> dict[str, str]:
        """What `invoke local.env` prints, for other clients; AWS's is the caller's own.

        localec2 is as it is for a user from then on, to the end of the test: those clients are not ours.
        """
        if not self.is_local:
            return {"AWS_DEFAULT_REGION": self.cloud.region}
        endpoint = starter.up(self.cloud.settings)
        starter.strictness(endpoint, **LocalEc2Settings().model_dump())
        return {
            "AWS_ENDPOINT_URL": endpoint.url,
            "AWS_DEFAULT_REGION": endpoint.region, "AWS_REGION": endpoint.region,
            "no_proxy": "127.0.0.1,localhost", "NO_PROXY": "127.0.0.1,localhost",
            "AWS_ACCESS_KEY_ID": endpoint.access_key_id,
            "AWS_SECRET_ACCESS_KEY": endpoint.secret_access_key,
        }  # fmt: skip

    def remove_everything(self) -> None:
        """End and delete all that carries this run's tag."""
        ids = instances.live_of_run(self.cloud, self.run_id, Role.BENCH)
        for instance_id in ids:
            with suppress(ClientError):  # not there yet, or protected by a test that failed
                self.ec2.modify_instance_attribute(
                    InstanceId=instance_id, DisableApiTermination={"Value": False}
                )
        instances.terminate(self.cloud, ids)
        for image in self.ec2.describe_images(Filters=self.ours, Owners=["self"])["Images"]:
            self.ec2.deregister_image(ImageId=image["ImageId"])
        for snapshot in self.ec2.describe_snapshots(Filters=self.ours, OwnerIds=["self"])["Snapshots"]:
            self.ec2.delete_snapshot(SnapshotId=snapshot["SnapshotId"])
        for volume in self.ec2.describe_volumes(Filters=self.ours)["Volumes"]:
            with suppress(ClientError):  # it goes with its machine
                self.ec2.delete_volume(VolumeId=volume["VolumeId"])
        for group in self.ec2.describe_security_groups(Filters=self.ours)["SecurityGroups"]:
            if group["GroupId"] != self.group_id:
                self.ec2.delete_security_group(GroupId=group["GroupId"])
        for pair in self.ec2.describe_key_pairs(Filters=self.ours)["KeyPairs"]:
            if pair["KeyName"] != self.key_name:
                self.ec2.delete_key_pair(KeyName=pair["KeyName"])


def _open(cloud: Cloud, arch: Arch, image_id: str, login_user: str, stack: ExitStack) -> ContractCloud:
    Patience(cloud.ec2, pause_s=0.1 if cloud.name is CloudName.LOCAL else 2.0)
    run_id, key = new_run_id(), KeyPair.generate()
    place: dict[str, Any] = {
        "run_id": run_id, "role": Role.BENCH, "expires_at": datetime.now(UTC) + LIFETIME,
    }  # fmt: skip
    key_name = stack.enter_context(imported_key_pair(cloud, key, **place))
    group_id = stack.enter_context(temporary_security_group(cloud, **place))
    contract = ContractCloud(
        cloud, arch, image_id, login_user, key, key_name, group_id, run_id, place["expires_at"]
    )
    stack.callback(contract.remove_everything)
    return contract


def _local(arch: Arch, state_dir: Path, stack: ExitStack) -> ContractCloud:
    settings = Settings(state_dir=state_dir, accelerator=AcceleratorChoice.TCG, localec2=STRICT)
    stack.callback(starter.down, settings)
    image_id = starter.ensure_stock(settings, "tiny", arch)
    return _open(connect(settings), arch, image_id, "root", stack)


def _aws(arch: Arch, stack: ExitStack) -> ContractCloud:
    """Amazon Linux as Amazon publishes it. Never run so far."""
    cloud = connect(load({"cloud": "aws"}))
    base = load_base(ROOT / "recipes", "al2023")
    parameter = cloud.ssm.get_parameter(Name=base.reference_for(arch))
    return _open(cloud, arch, parameter["Parameter"]["Value"], base.login_user, stack)


@pytest.fixture(
    scope="session",
    params=[
        pytest.param("localec2", marks=pytest.mark.boot),
        *([pytest.param("aws", marks=[pytest.mark.aws, pytest.mark.timeout(3600)])] if AWS else []),
    ],
)
def contract(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, guest_arch: Arch
) -> Iterator[ContractCloud]:
    """The cloud under test."""
    state_dir = tmp_path_factory.mktemp("contract")
    with ExitStack() as stack:
        yield (
            _local(guest_arch, state_dir, stack) if request.param == "localec2" else _aws(guest_arch, stack)
        )
    assert machines(str(state_dir)) == [], "no machine is left"


@pytest.fixture(autouse=True)
def as_strict_as_ec2(request: pytest.FixtureRequest) -> None:
    """localec2 is strict at the start of every test that uses it."""
    if "contract" in request.fixturenames:
        contract: ContractCloud = request.getfixturevalue("contract")
        if contract.is_local:
            starter.strictness(starter.up(contract.cloud.settings), **STRICT.model_dump())


@pytest.fixture(scope="session")
def first(contract: ContractCloud) -> str:
    """A machine that all tests may look at and none may stop."""
    return contract.launch(spot=True, UserData="first")


@pytest.fixture(scope="session")
def second(contract: ContractCloud) -> str:
    """A machine that may be stopped and started; every test leaves it running."""
    return contract.launch(UserData="second")


def refused(code: str) -> Any:
    """Expects EC2's error code."""
    return pytest.raises(ClientError, match=rf"\({re.escape(code)}\)")


def document(text: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(text)
    return answer
