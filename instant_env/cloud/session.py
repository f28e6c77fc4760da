"""A connection to one cloud: the clients, and the few facts in which clouds differ.

localec2 and AWS differ by their endpoint, the base that is the default, the port of SSH and the URL that
tells the caller's address. All of that is decided here, and nowhere above.
"""

from __future__ import annotations

import ipaddress
import os
import platform
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from instant_env.arch import Arch
from instant_env.cloud.launch_log import LaunchLog
from instant_env.errors import InstantEnvError
from instant_env.progress import Progress, quiet
from instant_env.settings import DEFAULT_REGION, CloudName, Settings
from instant_env.waiting import wait_until

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client
    from mypy_boto3_ssm import SSMClient


#: Answers with the caller's public IPv4 address as plain text; AWS runs it.
AWS_CALLER_IP_URL = "https://checkip.amazonaws.com"


#: Connections that a client keeps. Each of the launches in flight has one (botocore's default is 10).
_CONNECTIONS = 64
_COMMON = Config(user_agent_extra="instant-env", max_pool_connections=_CONNECTIONS)
_AWS_CONFIG = _COMMON.merge(Config(retries={"mode": "adaptive", "max_attempts": 8}))
#: A proxy of the environment is for the world outside.
_NO_PROXY = Config(proxies={})
_LOCAL_CONFIG = _COMMON.merge(_NO_PROXY).merge(Config(retries={"mode": "standard", "max_attempts": 2}))
#: For calls that cloud/launching/repeats.py repeats, and polls, which ask again anyway.
_ONCE = Config(retries={"mode": "standard", "total_max_attempts": 1})


class InstanceConnectClient(Protocol):
    """The one call of EC2 Instance Connect that we make."""

    def send_ssh_public_key(self, *, InstanceId: str, InstanceOSUser: str, SSHPublicKey: str) -> Any:
        """For a minute the running machine finds this key in IMDS. Raises botocore's ClientError."""


#: A guest's SSH, and the first port that a user may listen on (ip(7), ip_unprivileged_port_start).
_SSH_PORT, _FIRST_FREE_PORT = 22, 1024


class CloudError(InstantEnvError):
    """The cloud refused or failed a call."""

    exit_code = 4


@dataclass(frozen=True)
class Cloud:
    """One EC2 endpoint with what a caller must know of it."""

    name: CloudName
    settings: Settings
    ec2: EC2Client
    ssm: SSMClient
    instance_connect: InstanceConnectClient
    region: str
    ssh_port: int
    caller_ip_url: str
    accelerator: str
    """How machines run: ``tcg`` or ``kvm`` in localec2, ``ec2`` on AWS."""
    session: boto3.Session | None = None
    endpoint_url: str | None = None
    """Where all services are, in place of AWS's own endpoints."""
    refusals_from_guest: bool = True
    """Whether a refused connect proves that the guest's network is up; in localec2 the host refuses."""

    console_is_prompt: bool = False
    """Whether the console shows a line at once, so that a missing one proves something; EC2's is late."""
    launches: LaunchLog = field(default_factory=LaunchLog)
    """What was asked for over this connection of late."""
    once_client: EC2Client | None = field(default=None, repr=False)
    poll_client: EC2Client | None = field(default=None, repr=False)

    @property
    def ec2_once(self) -> EC2Client:
        """EC2 for calls on somebody's clock. It tries once: see instant_env/cloud/launching/repeats.py."""
        return self.once_client or self.ec2

    @property
    def ec2_polls(self) -> EC2Client:
        """EC2 for polls. It tries once and limits nothing: a poll has a back-off of its own."""
        return self.poll_client or self.ec2

    def port_of(self, guest_port: int) -> int:
        """Where a guest's TCP port is found on its address: localec2 has those below 1024 as much higher as
        that of SSH, where they are root's."""
        is_moved = self.name is CloudName.LOCAL and guest_port < _FIRST_FREE_PORT
        return guest_port + (self.ssh_port - _SSH_PORT if is_moved else 0)

    def ec2_clients(self) -> list[EC2Client]:
        """Every client of EC2, for whoever counts calls or reads answers by botocore's events."""
        return list({id(one): one for one in (self.ec2, self.ec2_once, self.ec2_polls)}.values())

    def client(self, service: str, config: Config = _AWS_CONFIG, *, region: str | None = None) -> Any:
        """A client of another service than those above; ``region`` is for services that have one only."""
        session = self.session or boto3.Session(region_name=self.region)
        if self.name is CloudName.LOCAL:
            config = config.merge(_NO_PROXY)
        return session.client(  # type: ignore[call-overload]
            service, region_name=region or self.region, endpoint_url=self.endpoint_url, config=config
        )

    def accelerator_for(self, arch: Arch) -> str:
        """How machines of ``arch`` run: those of another architecture than this computer's are emulated."""
        if self.name is CloudName.LOCAL and arch.machine != platform.machine():
            return "tcg"
        return self.accelerator

    def ensure_base(self, base: str, arch: Arch, progress: Progress) -> None:
        """Make the stock image of ``base`` known to the cloud.

        AWS has them all; localec2 builds or downloads one the first time and keeps it. A base that localec2
        knows nothing of is looked up like any other: its parameter may name an AMI that was baked there.
        """
        if self.name is CloudName.LOCAL:
            from instant_env.localec2 import starter

            if base not in starter.BASES:
                return
            starter.ensure_stock(self.settings, base, arch, progress)

    def root_reads(self, instance_id: str) -> tuple[int, int] | None:
        """Requests and bytes read from the root volume since the machine was started, firmware and loader
        included. Only localec2 knows; else None, also when the machine is gone.
        """
        if self.name is not CloudName.LOCAL:
            return None
        from instant_env.localec2 import starter

        try:
            return starter.root_reads(starter.running(self.settings), instance_id)
        except InstantEnvError:
            return None


def default_base(settings: Settings) -> str:
    """The base to bake from when none is named: it belongs to the cloud."""
    return settings.base or ("debian-12" if settings.cloud is CloudName.LOCAL else "al2023")


def connect(settings: Settings, progress: Progress = quiet) -> Cloud:
    """Open the cloud that the settings name; localec2 is started when it is not up.

    Raises CloudError when AWS has no credentials for us, MissingToolError when localec2 lacks a program.
    """
    if settings.cloud is CloudName.LOCAL:
        return _connect_local(settings, progress)
    return _connect_aws(settings, progress)


def region_of(settings: Settings) -> str:
    """The region of the cloud that the settings name, without a connection to it.

    Raises CloudError for a profile that is not there.
    """
    return named_region(settings) or DEFAULT_REGION


def named_region(settings: Settings) -> str | None:
    """What names a region, on AWS after the settings: AWS_REGION, which boto3 does not read (AWS SDKs and
    Tools Reference Guide, "AWS Region"), then boto3's own, AWS_DEFAULT_REGION or that of the profile."""
    if settings.region or settings.cloud is CloudName.LOCAL:
        return settings.region
    try:
        session = boto3.Session(profile_name=settings.profile)
    except BotoCoreError as error:
        raise CloudError(
            f"AWS's own settings cannot be used: {error}",
            hint="see AWS_PROFILE, and profile: in instant-env.yml",
        ) from error
    return os.environ.get("AWS_REGION") or session.region_name


def _connect_local(settings: Settings, progress: Progress) -> Cloud:
    # Imported here: moto and its friends are heavy, and AWS needs none of them.
    from instant_env.localec2 import starter

    endpoint = starter.up(settings, progress)
    session = starter.session(endpoint)
    return Cloud(
        name=CloudName.LOCAL,
        settings=settings,
        ec2=session.client("ec2", endpoint_url=endpoint.url, config=_LOCAL_CONFIG),
        once_client=session.client("ec2", endpoint_url=endpoint.url, config=_LOCAL_CONFIG.merge(_ONCE)),
        poll_client=session.client("ec2", endpoint_url=endpoint.url, config=_LOCAL_CONFIG.merge(_ONCE)),
        ssm=session.client("ssm", endpoint_url=endpoint.url, config=_LOCAL_CONFIG),
        instance_connect=session.client(
            "ec2-instance-connect", endpoint_url=endpoint.url, config=_LOCAL_CONFIG.merge(_ONCE)
        ),
        region=endpoint.region,
        refusals_from_guest=False,
        console_is_prompt=True,
        ssh_port=settings.ssh_port or endpoint.ssh_port,
        caller_ip_url=settings.caller_ip_url or endpoint.caller_ip_url,
        accelerator=endpoint.accelerator,
        session=session,
        endpoint_url=endpoint.url,
    )


def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _connect_aws(settings: Settings, progress: Progress) -> Cloud:
    region = region_of(settings)
    if named_region(settings) is None:
        progress(f"no region is named, so it is {region}: set AWS_REGION, or region: in instant-env.yml")
    try:
        session = boto3.Session(profile_name=settings.profile, region_name=region)
        where: dict[str, Any] = {"endpoint_url": settings.endpoint_url, "config": _AWS_CONFIG}
        sts = session.client("sts", **where)
        if settings.endpoint_url is None and is_loopback(sts.meta.endpoint_url):
            raise CloudError(
                f"--cloud aws, but the environment leads to {sts.meta.endpoint_url}",
                hint="unset AWS_ENDPOINT_URL and the keys beside it, or say INSTANT_ENV_ENDPOINT_URL",
            )
        identity = sts.get_caller_identity()
    except NoCredentialsError as error:
        raise CloudError(
            "no AWS credentials found", hint="set AWS_PROFILE or AWS_ACCESS_KEY_ID, or use --cloud local"
        ) from error
    except (BotoCoreError, ClientError) as error:
        raise CloudError(
            f"AWS did not accept us: {error}",
            hint="try: aws sts get-caller-identity; a region that has to be opted into refuses every key "
            "until it is: aws account list-regions",
        ) from error
    if not identity.get("Account"):
        raise CloudError(
            "AWS named no account for these credentials", hint="try: aws sts get-caller-identity"
        )
    return Cloud(
        name=CloudName.AWS,
        settings=settings,
        ec2=session.client("ec2", **where),
        once_client=session.client("ec2", **where | {"config": _AWS_CONFIG.merge(_ONCE)}),
        poll_client=session.client("ec2", **where | {"config": _AWS_CONFIG.merge(_ONCE)}),
        ssm=session.client("ssm", **where),
        instance_connect=session.client(
            "ec2-instance-connect", **where | {"config": _AWS_CONFIG.merge(_ONCE)}
        ),
        region=region,
        ssh_port=settings.ssh_port or 22,
        caller_ip_url=settings.caller_ip_url or AWS_CALLER_IP_URL,
        accelerator="ec2",
        session=session,
        endpoint_url=settings.endpoint_url,
    )


def error_code(error: ClientError) -> str:
    """EC2's code of the error, as ``InvalidInstanceID.NotFound``."""
    return str(error.response.get("Error", {}).get("Code", ""))


def cloud_error(error: ClientError, doing: str, *, hint: str = "") -> CloudError:
    """Turn botocore's error into ours: what we were doing, EC2's code, EC2's words."""
    detail = error.response.get("Error", {})
    text = f"{doing}: {detail.get('Code', '?')}: {detail.get('Message', '')}".strip()
    return CloudError("; ".join([text, *getattr(error, "__notes__", [])]), hint=hint)


#: Pauses of `retry_cleanup`, in seconds. The client's own retries come on top of each try.
_RETRY_PAUSES_S = (0.25, 1.0, 4.0)


T = TypeVar("T")


def finish_despite_interrupt(clean_up: Callable[[], T]) -> T:
    """Clean up to the end. After an interrupt, ``clean_up`` is called again and the interrupt passed on.

    There is one interrupt at most (stopping.interrupts, stopping.StopSignals).
    """
    try:
        return clean_up()
    except KeyboardInterrupt:
        clean_up()
        raise


@contextmanager
def undo_on_error(undo: Callable[[], Any], doing: str) -> Iterator[None]:
    """Around one request that makes something: call ``undo`` when it fails.

    The cloud may have done it although no answer came, or an interrupt came first: ``undo`` has to find the
    resource and remove it. Raises CloudError for a refusal.
    """
    try:
        yield
    except BaseException as error:
        with suppress(ClientError, BotoCoreError, CloudError):  # nothing to undo, or no answer
            undo()
        if isinstance(error, ClientError):
            raise cloud_error(error, doing) from error
        raise


def retry_cleanup(
    call: Callable[[], Any],
    *,
    missing_code: str = "",
    missing_pauses_s: Sequence[float] = (0.25,),
    sleep: Callable[[float], None] | None = None,
) -> bool:
    """Make a call that cleans up, again when the cloud refuses, because nothing else makes it.

    ``missing_code`` is the error code for a resource that does not exist. EC2 also returns it for one that
    it does not know yet, so it counts only after ``missing_pauses_s``; the result is then False. The last
    error is passed on.
    """
    return finish_despite_interrupt(lambda: _retry(call, missing_code, missing_pauses_s, sleep))


def delete_once_unused(delete: Callable[[], Any], in_use: Collection[str], timeout_s: float) -> None:
    """Delete what EC2 still counts as used for a while after its machine has ended.

    ``in_use`` are the codes that say so. After ``timeout_s`` the last of these errors is passed on.
    """
    refusal: ClientError | None = None

    def is_deleted() -> bool:
        nonlocal refusal
        try:
            delete()
        except ClientError as error:
            if error_code(error) not in in_use:
                raise
            refusal = error
            return False
        return True

    if not wait_until(is_deleted, timeout_s, 0.25) and refusal is not None:
        raise refusal


def _retry(
    call: Callable[[], Any],
    missing_code: str,
    missing_pauses_s: Sequence[float],
    sleep: Callable[[float], None] | None,
) -> bool:
    failures, absences = iter(_RETRY_PAUSES_S), iter(missing_pauses_s)
    while True:
        try:
            call()
            return True
        except ClientError as error:
            missing = bool(missing_code) and error_code(error) == missing_code
            pause_s = next(absences if missing else failures, None)
            if pause_s is None:
                if missing:
                    return False
                raise
        (sleep or time.sleep)(pause_s)
