"""localec2's parts that need no server: command lines, addresses, rules, records, the allow-list."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from instant_env.arch import Arch
from instant_env.errors import InstantEnvError, MissingToolError
from instant_env.localec2 import restore, starter
from instant_env.localec2.api import allowed
from instant_env.localec2.instances import guest_size
from instant_env.localec2.network import addresses, metadata, network
from instant_env.localec2.qemu import accelerator, command_line, disks
from instant_env.localec2.qemu.qmp import Qmp, QmpError
from instant_env.localec2.records import layout, records
from instant_env.localec2.records.store import RecordError, RecordStore
from instant_env.settings import AcceleratorChoice, Settings

HAS_QEMU = shutil.which("qemu-system-x86_64") is not None


NIC = command_line.Nic("eni-0123456789abcdef0", "02:11:22:33:44:55", Path("/run/eni.nic"))


def spec(
    arch: Arch = Arch.X86_64, accelerator_name: str = "tcg", disk_count: int = 1
) -> command_line.MachineSpec:
    platform = command_line.Platform(arch, "/usr/bin/qemu", Path("/fw/code.fd"), Path("/fw/vars.fd"))
    made = tuple(command_line.Disk(f"vol-{n:017x}", Path(f"/v/{n}.qcow2")) for n in range(disk_count))
    return command_line.MachineSpec(
        "i-0123456789abcdef0", "m7i.large", platform, accelerator_name, 2, 1024, made,
        (NIC,), Path("/i/vars,copy.fd"), Path("/i/console.log"), Path("/run/x.qmp"),
    )  # fmt: skip


def options(line: list[str], name: str) -> list[str]:
    return [line[index + 1] for index, word in enumerate(line) if word == name]


# The command line


def test_a_machine_looks_like_ec2() -> None:
    line = command_line.command(spec())
    (smbios,) = [text for text in options(line, "-smbios") if text.startswith("type=1,")]
    fields = dict(part.split("=", 1) for part in smbios.split(","))
    assert fields["manufacturer"] == "Amazon EC2"
    assert fields["product"] == "m7i.large"
    assert fields["uuid"].startswith("ec2")
    assert fields["uuid"] == fields["serial"]
    (nvme,) = [json.loads(text) for text in options(line, "-device") if '"nvme"' in text]
    assert nvme["serial"] == "vol00000000000000000"
    assert nvme["bootindex"] == 0


def test_nothing_is_there_that_was_not_asked_for() -> None:
    line = command_line.command(spec())
    assert line[:2] == ["nice", "-n"]
    for flag in ("-nodefaults", "-no-user-config", "-sandbox"):
        assert flag in line
    assert options(line, "-display") == ["none"]
    assert options(line, "-accel")[0].startswith("tcg,thread=multi")


def test_commas_in_paths_are_doubled() -> None:
    assert any("file=/i/vars,,copy.fd" in text for text in options(command_line.command(spec()), "-drive"))


def test_firmware_code_is_shared_read_only_and_variables_are_not() -> None:
    code, variables = options(command_line.command(spec()), "-drive")
    assert "readonly=on" in code
    assert "readonly" not in variables


def test_arm64_has_its_own_machine() -> None:
    line = command_line.command(spec(Arch.ARM64))
    assert options(line, "-machine") == ["virt,gic-version=3"]
    assert options(line, "-cpu") == ["neoverse-n1"]


def test_kvm_is_passed_on() -> None:
    line = command_line.command(spec(accelerator_name="kvm"))
    assert options(line, "-accel") == ["kvm"]
    assert options(line, "-cpu") == ["max"]


def test_more_volumes_than_slots_are_a_mistake() -> None:
    assert len(command_line.command(spec(disk_count=1 + command_line.VOLUME_SLOTS))) > 0
    with pytest.raises(ValueError, match="6 disks"):
        command_line.command(spec(disk_count=2 + command_line.VOLUME_SLOTS))


def test_missing_qemu_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(MissingToolError) as error:
        command_line.find_platform(Arch.X86_64)
    assert "apt-get install qemu-system-x86" in error.value.hint


def test_a_sparse_copy_has_the_same_bytes_and_fewer_blocks(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    mib = 1 << 20
    source.write_bytes(bytes(3 * mib) + b"word" + bytes(2 * mib) + b"end" + bytes(5 * mib))
    disks.copy_sparse(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks * 512 <= 3 * mib


# The network


def rule(**fields: object) -> records.RuleRecord:
    defaults: dict[str, object] = {
        "id": "sgr-1", "egress": False, "ip_protocol": "tcp", "from_port": 22, "to_port": 22,
        "ip_range": {"CidrIp": "127.0.0.1/32"},
    }  # fmt: skip
    return records.RuleRecord.model_validate(defaults | fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, {}),
        ({"ip_range": {"CidrIpv6": "::/0"}}, {"cidr": ""}),
        ({"ip_range": {}, "source_group": {"GroupId": "sg-1"}}, {"cidr": "", "group": "sg-1"}),
        ({"egress": True}, {"egress": True}),
        (
            {"ip_protocol": "-1", "from_port": None, "to_port": None},
            {"protocol": "-1", "from": 0, "to": 65535},
        ),
        ({"ip_protocol": "icmp", "from_port": 8, "to_port": -1}, {"protocol": "icmp", "from": 8, "to": -1}),
    ],
)
def test_rules_in_the_words_of_the_network(fields: dict[str, object], said: dict[str, object]) -> None:
    group = records.SecurityGroupRecord(id="sg-0", name="g", description="d", rules=[rule(**fields)])
    usual = {"egress": False, "protocol": "tcp", "from": 22, "to": 22, "cidr": "127.0.0.1/32", "group": ""}
    assert network.rules([group]) == {"sg-0": [usual | said]}


def test_two_servers_get_different_addresses() -> None:
    first = addresses.AddressBlock(7)
    second = addresses.AddressBlock(7)
    try:
        assert first.allot().rsplit(".", 1)[0] != second.allot().rsplit(".", 1)[0]
    finally:
        first.close()
        second.close()


def test_an_address_is_not_given_again_at_once() -> None:
    net = addresses.AddressBlock(99)
    try:
        first = net.allot()
        net.release(first)
        assert net.allot() != first
    finally:
        net.close()


def test_a_network_card_ends_in_a_socket() -> None:
    line = command_line.command(spec())
    (card,) = [json.loads(text) for text in options(line, "-device") if "virtio-net" in text]
    (cable,) = [json.loads(text) for text in options(line, "-netdev")]
    assert card["mac"] == "02:11:22:33:44:55"
    assert card["netdev"] == cable["id"]
    assert cable["addr"] == {"type": "unix", "path": "/run/eni.nic"}
    assert "spawn=deny" in options(line, "-sandbox")[0]


# Records and places


def test_a_record_is_read_back(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    parameter = records.ParameterRecord(
        name="/a/b", value="v", parameter_type="String", description=None, data_type="text", tier=None,
        parameter_version=1, last_modified=datetime.now(UTC),
    )  # fmt: skip
    store.save(parameter)
    assert store.load_all(records.ParameterRecord) == [parameter]
    assert [path.suffix for path in (tmp_path / "parameter").iterdir()] == [".json"], (
        "no temporary file is left"
    )
    store.delete(records.ParameterRecord, parameter.key)
    assert store.load_all(records.ParameterRecord) == []


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "tags").mkdir()
    (tmp_path / "tags" / "vpc-1.json").write_text('{"version": 1, "resource_id"')
    with pytest.raises(RecordError, match=r"vpc-1\.json"):
        RecordStore(tmp_path).load_all(records.TagsRecord)


def test_a_record_that_a_power_failure_left_empty_was_never_made(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    store.save(records.TagsRecord(resource_id="vpc-1", tags={"a": "b"}))
    (tmp_path / "tags" / "vpc-2.json").touch()
    assert [record.resource_id for record in store.load_all(records.TagsRecord)] == ["vpc-1"]
    assert [path.name for path in (tmp_path / "tags").iterdir()] == ["vpc-1.json"]


def test_a_record_cannot_leave_its_directory(tmp_path: Path) -> None:
    with pytest.raises(RecordError):
        RecordStore(tmp_path).save(records.TagsRecord(resource_id="../../etc/x", tags={}))


def test_sockets_of_deep_directories_are_short(tmp_path: Path) -> None:
    deep = layout.Layout(tmp_path / ("d" * 90) / ("e" * 90))
    assert len(str(deep.qmp_socket("i-0123456789abcdef0"))) <= layout.MAX_SOCKET_PATH
    assert not deep.runtime.exists(), "naming a socket makes no directory"


# The allow-list


@pytest.mark.parametrize(
    ("action", "parameters", "word"),
    [
        ("CreateNatGateway", {}, "CreateNatGateway"),
        ("RunInstances", {"IamInstanceProfile.Id": "x"}, "IamInstanceProfile.Id"),
        ("RunInstances", {"NetworkInterface.1.Ipv6AddressCount": "1"}, "NetworkInterface.1.Ipv6AddressCount"),
        ("RunInstances", {"SomethingNew.1": "x"}, "SomethingNew.1"),
        ("RunInstances", {"InstanceMarketOptions.MarketType": "capacity-block"}, "capacity-block"),
        ("StartInstances", {"AdditionalInfo": "x"}, "AdditionalInfo"),
        ("DescribeEverything; DropTable", {}, "Describe"),
    ],
)
def test_a_refusal_names_what_it_refuses(action: str, parameters: dict[str, str], word: str) -> None:
    sentence = allowed.refusal(action, parameters.items())
    assert sentence is not None
    assert word in sentence


def test_reading_is_never_refused() -> None:
    assert allowed.refusal("DescribeVpcPeeringConnections", [("Anything", "x")]) is None


# The rest


def test_the_openssh_line_carries_the_pairs_name() -> None:
    instance = records.InstanceRecord(
        id="i-1", reservation_id="r-1", interface_id="eni-1", interface_attachment_id="eni-attach-1",
        mac_address="02:00:00:00:00:01", image_id="ami-1", architecture="x86_64",
        root_device_name="/dev/xvda",
        instance_type="t3.micro", key_name="mine", public_key="ssh-ed25519 AAAA me@laptop",
        security_group_ids=["sg-1"],
        subnet_id="subnet-1", zone="us-east-1a", private_ip="172.31.5.10", launch_time=datetime.now(UTC),
    )  # fmt: skip
    interface = metadata.Interface(
        0, "eni-1", "02:00:00:00:00:01", ("172.31.5.10",), "subnet-1", "172.31.0.0/20", "vpc-1",
        "172.31.0.0/16",
        {"sg-1": "default"},
    )  # fmt: skip
    content = metadata.metadata(instance, [], [interface], region="us-east-1", zone_id="use1-az1", secret="s")
    assert content["tree"]["public-keys"]["0"]["openssh-key"] == "ssh-ed25519 AAAA mine\n"
    assert content["tree"]["local-hostname"] == "ip-172-31-5-10.ec2.internal"
    assert "public-ipv4" not in content["tree"]
    assert len(bytes.fromhex(content["token_key"])) == 32


@pytest.mark.slow
@pytest.mark.skipif(not HAS_QEMU, reason="QEMU is not installed")
def test_the_probe_guest_speaks_where_nothing_is_broken() -> None:
    assert accelerator.probe(command_line.find_platform(Arch.X86_64), "tcg", timeout_s=60)


@pytest.mark.skipif(not HAS_QEMU, reason="QEMU is not installed")
def test_a_probe_that_fails_is_remembered_and_means_tcg(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes: list[str] = []

    def fails(_: command_line.Platform, name: str) -> bool:
        probes.append(name)
        return False

    monkeypatch.setattr(accelerator, "_kvm_opens", lambda: True)
    monkeypatch.setattr(accelerator, "probe", fails)
    platform, memory = command_line.find_platform(Arch.X86_64), tmp_path / "memory.json"
    for _ in range(2):
        assert accelerator.choose(AcceleratorChoice.AUTO, platform, memory) == "tcg"
    assert probes == ["kvm"]


@pytest.mark.skipif(not HAS_QEMU, reason="QEMU is not installed")
def test_tcg_is_taken_without_a_probe(tmp_path: Path) -> None:
    platform = command_line.find_platform(Arch.X86_64)
    assert accelerator.choose(AcceleratorChoice.TCG, platform, tmp_path / "memory.json") == "tcg"
    assert not (tmp_path / "memory.json").exists()


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
def test_a_flattened_disk_needs_no_other(tmp_path: Path) -> None:
    base, overlay, flat = tmp_path / "base.qcow2", tmp_path / "overlay.qcow2", tmp_path / "flat.qcow2"
    disks.create(base, 1)
    disks.create(overlay, 2, base)
    with pytest.raises(disks.DiskError, match="needs"):
        disks.check_self_contained(overlay)
    disks.flatten(overlay, flat)
    disks.check_self_contained(flat)
    assert disks.virtual_size_gib(flat) == 2
    assert not list(tmp_path.glob("*.part"))


def test_nobody_at_the_monitors_socket(tmp_path: Path) -> None:
    with pytest.raises(QmpError, match="no QEMU"):
        Qmp(tmp_path / "none.qmp", timeout_s=0.05)


def test_the_server_refuses_a_helper_it_cannot_have(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "instant_env.localec2", "--state-dir", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 2
    assert "--netd" in result.stderr


def test_errors_are_one_family() -> None:
    for error in (disks.DiskError, QmpError, RecordError, addresses.NetworkError, layout.LayoutError):
        assert issubclass(error, InstantEnvError)


def test_a_state_directory_has_a_region(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    made = restore.identity(store, "eu-west-1")
    assert restore.identity(store, "eu-west-1") == made
    with pytest.raises(restore.RegionError, match=r"us-east-1 was asked for.*in eu-west-1") as caught:
        restore.identity(store, "us-east-1")
    assert "set the region to eu-west-1" in str(caught.value.hint)


def test_the_state_of_an_older_server_is_where_its_volumes_are(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    made = restore.identity(store, "us-east-1")
    made.region = ""
    store.save(made)
    store.save(
        records.VolumeRecord(
            id="vol-0123456789abcdef0", tags={}, size_gib=1, zone="eu-west-1a", volume_type="gp3",
            snapshot_id=None, create_time=datetime.now(UTC),
        )
    )  # fmt: skip
    with pytest.raises(restore.RegionError):
        restore.identity(store, "us-east-1")
    assert restore.identity(store, "eu-west-1").region == "eu-west-1"


def test_a_server_of_another_region_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = starter.Endpoint(
        url="http://127.0.0.1:1", region="eu-west-1", access_key_id="", secret_access_key="", ssh_port=22,
        pid=1, state_dir=tmp_path, accelerator="tcg", admin_token="", caller_ip_url="",
    )  # fmt: skip
    monkeypatch.setattr(starter, "_running", lambda _: endpoint)
    for call in (starter.up, starter.running):
        assert call(Settings(region="eu-west-1", state_dir=tmp_path)) is endpoint
        assert call(Settings(state_dir=tmp_path)) is endpoint, "no other one was asked for"
        with pytest.raises(starter.LocalEc2Error, match="runs in eu-west-1"):
            call(Settings(region="us-east-1", state_dir=tmp_path))


@pytest.mark.parametrize(
    ("chosen_mib", "host_mib", "most_mib"),
    [
        (0, 8 * 1024, 1024),  # a small laptop
        (0, 2 * 1024, 1024),
        (0, 24 * 1024, 3 * 1024),
        (4096, 8 * 1024, 4096),  # somebody knows better
        (512, 64 * 1024, 512),
    ],
)
def test_the_most_that_a_guest_gets(chosen_mib: int, host_mib: int, most_mib: int) -> None:
    assert guest_size.most_memory_mib(chosen_mib, host_mib) == most_mib


def test_a_guest_has_the_memory_of_its_type_up_to_the_limit() -> None:
    sizes = [
        guest_size.memory_mib_of(name, 3000) for name in ("t3.nano", "t3.micro", "t3.small", "m7i.large")
    ]
    assert sizes == [512, 1024, 2048, 3000]


def test_the_host_is_its_container(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    whole_mib = guest_size.host_memory_mib(limit)
    limit.write_text("max\n")
    assert guest_size.host_memory_mib(limit) == whole_mib > 256
    limit.write_text(f"{256 * 1024 * 1024}\n")
    assert guest_size.host_memory_mib(limit) == 256
