"""Who a security group lets in, and which address is ours: from another network a login must not time out in
silence."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.harness_cloud import Ec2Faults, cloud_in_process

from harness.plan.arguments import Request, read
from harness.run.runner import carry_out
from instant_env.cloud.network import admits, caller_cidr, require_admission, ssh_permission
from instant_env.cloud.session import Cloud, CloudError
from instant_env.errors import UsageError

pytest_plugins = ("support.moto_cloud",)

CALLER = "203.0.113.7/32"


def rule(protocol: str = "tcp", ports: tuple[int, int] | None = (22, 22), **sources: Any) -> dict[str, Any]:
    about = {"FromPort": ports[0], "ToPort": ports[1]} if ports else {}
    return {"IpProtocol": protocol, **about, **(sources or {"IpRanges": [{"CidrIp": CALLER}]})}


@pytest.mark.parametrize(
    ("rules", "admitted"),
    [
        ([rule()], True),
        ([rule(IpRanges=[{"CidrIp": "203.0.113.0/24"}])], True),
        ([rule(IpRanges=[{"CidrIp": "198.51.100.9/32"}])], False),
        ([rule(IpRanges=[{"CidrIp": "198.51.100.9/32"}, {"CidrIp": CALLER}])], True),
        ([rule(ports=(1, 1024))], True),
        ([rule(ports=(80, 80))], False),
        ([rule(protocol="udp")], False),
        ([rule(protocol="-1", ports=None)], True),
        ([rule(Ipv6Ranges=[{"CidrIpv6": "2001:db8::/32"}])], False),
        ([rule(PrefixListIds=[{"PrefixListId": "pl-1"}])], True),
        ([], False),
    ],
)
def test_a_group_admits_who_its_rules_name(rules: list[Any], admitted: bool) -> None:
    assert admits({"IpPermissions": rules}, CALLER) is admitted


def test_an_address_of_either_version_has_a_rule_of_its_own() -> None:
    assert ssh_permission(CALLER)["IpRanges"] == [{"CidrIp": CALLER}]
    assert ssh_permission("2001:db8::7/128")["Ipv6Ranges"] == [{"CidrIpv6": "2001:db8::7/128"}]


def group_of(cloud: Cloud, *tags: dict[str, str]) -> str:
    vpc = cloud.ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    group_id = cloud.ec2.create_security_group(GroupName="g", Description="d", VpcId=vpc)["GroupId"]
    yesterday = [ssh_permission("198.51.100.9/32")]
    cloud.ec2.authorize_security_group_ingress(GroupId=group_id, IpPermissions=yesterday)
    if tags:
        cloud.ec2.create_tags(Resources=[group_id], Tags=list(tags))  # type: ignore[arg-type]
    return group_id


def test_a_group_with_yesterdays_address_is_refused_and_the_hint_depends_on_whose_it_is(cloud: Cloud) -> None:
    group_id = group_of(cloud)
    with pytest.raises(UsageError, match=r"does not admit SSH from here \(203") as refusal:
        require_admission(cloud, group_id, CALLER)
    assert "add a rule for 203.0.113.7/32" in refusal.value.hint
    cloud.ec2.create_tags(Resources=[group_id], Tags=[{"Key": "Project", "Value": "instant-env"}])
    with pytest.raises(UsageError) as refusal:
        require_admission(cloud, group_id, CALLER)
    assert "invoke setup" in refusal.value.hint
    require_admission(cloud, group_id, "198.51.100.9/32")


def test_a_race_in_a_group_that_does_not_admit_us_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with cloud_in_process(tmp_path, 22, Ec2Faults()) as cloud:
        settings = cloud.settings.model_copy(update={"security_group": group_of(cloud)})
        configured = replace(cloud, settings=settings)
        settings, planner = read(Request(techniques=("cold",), iterations=1), settings)
        with pytest.raises(UsageError, match="does not admit SSH"):
            carry_out(settings, planner, progress=print, open_cloud=lambda *_: configured)
        assert cloud.ec2.describe_key_pairs()["KeyPairs"] == []


@contextmanager
def answering(text: str, family: int = socket.AF_INET, port: int = 0) -> Iterator[int]:
    """An HTTP server on loopback that answers everything with one text; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(HTTPServer):
        address_family = family

    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with Server((host, port), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield int(server.server_port)
        finally:
            server.shutdown()


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    """``checkip.example`` is this host, by IPv6 first."""
    resolve = socket.getaddrinfo

    def answer(host: Any, port: Any, *args: Any, **more: Any) -> Any:
        if host != "checkip.example":
            return resolve(host, port, *args, **more)
        stream = (socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [
            (socket.AF_INET6, *stream, ("::1", port, 0, 0)),
            (socket.AF_INET, *stream, ("127.0.0.1", port)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", answer)


@pytest.mark.usefixtures("named")
def test_our_address_is_asked_over_ipv4_and_by_no_proxy(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machines have IPv4 addresses, and SSH goes to them directly: a proxy's address would be let in."""
    with answering("203.0.113.7\n") as port, answering("192.0.2.1\n") as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy}")
        asked = replace(cloud, caller_ip_url=f"http://checkip.example:{port}/")
        with suppress(OSError), answering("2001:db8::7\n", socket.AF_INET6, port):
            assert caller_cidr(asked) == CALLER  # by IPv6 it would have been the other
        assert caller_cidr(asked) == CALLER


@pytest.mark.usefixtures("named")
def test_an_answer_that_is_no_ipv4_address_is_refused(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """EC2 would refuse it as a /32 of IpRanges; as an IPv6 rule it would admit nobody who comes by IPv4."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with answering("2001:db8::7\n") as port:
        asked = replace(cloud, caller_ip_url=f"http://checkip.example:{port}/")
        with pytest.raises(CloudError, match="cannot learn our own address") as refusal:
            caller_cidr(asked)
    assert "SSH does not go through it" in refusal.value.hint
