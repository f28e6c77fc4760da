"""Where machines go: subnets, zones and public addresses, known before anything is launched."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from moto.ec2.models import ec2_backends
from support.moto_cloud import LATER, launch, make_image

from harness.plan import definition, planning
from harness.plan.arguments import Request, read
from harness.plan.experiment import Cell
from harness.plan.experiment import Options as Variants
from harness.run.runner import carry_out
from instant_env.arch import Arch
from instant_env.bake import bake
from instant_env.bake.request import Options
from instant_env.bake.request import Request as BakeRequest
from instant_env.cloud import instances
from instant_env.cloud.account.setup import set_up
from instant_env.cloud.instances import LaunchOptions, LaunchRequest, NoPublicAddress
from instant_env.cloud.launching import places
from instant_env.cloud.session import Cloud, CloudError
from instant_env.cloud.tags import Role
from instant_env.errors import UsageError
from instant_env.settings import ROOT

pytest_plugins = ("support.moto_cloud",)


def configured(cloud: Cloud, subnet: str, **more: Any) -> Cloud:
    settings = cloud.settings.model_copy(update={"subnet": subnet, **more})
    return dataclasses.replace(cloud, settings=settings)


@pytest.fixture
def vpc(cloud: Cloud) -> str:
    return cloud.ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]


def subnet(cloud: Cloud, vpc: str, zone: str, number: int, *, public: bool) -> str:
    made = cloud.ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.9.{number}.0/24", AvailabilityZone=zone)
    subnet_id = made["Subnet"]["SubnetId"]
    cloud.ec2.modify_subnet_attribute(SubnetId=subnet_id, MapPublicIpOnLaunch={"Value": public})
    return subnet_id


def test_a_configured_subnet_without_public_addresses_is_refused_before_anything_is_made(
    cloud: Cloud, vpc: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = configured(cloud, subnet(cloud, vpc, "us-east-1a", 1, public=False))
    made: list[str] = []
    cloud.ec2.meta.events.register(
        "before-call.ec2",
        lambda model, **_: made.append(model.name) if "Describe" not in model.name else None,
    )
    settings, planner = read(Request(), inner.settings)
    request = BakeRequest("minimal", Arch.X86_64, Options())
    refused = r"subnet-\w+ get no public address \(MapPublicIpOnLaunch is false\)"
    for act in (
        lambda: carry_out(settings, planner, progress=lambda _: None, open_cloud=lambda *_: inner),
        lambda: bake.bake(inner, settings, request, progress=lambda _: None),
        lambda: set_up(inner, dry_run=False, progress=lambda _: None),
    ):
        with pytest.raises(UsageError, match=refused) as error:
            act()
        assert "--ssh-private" in error.value.hint
    assert made == []
    places.check_subnet(configured(cloud, str(inner.settings.subnet), ssh_private=True))
    places.check_subnet(inner, private=True)
    places.check_subnet(configured(cloud, subnet(cloud, vpc, "us-east-1a", 2, public=True)))


def test_a_subnet_that_is_not_there_is_said_so(cloud: Cloud) -> None:
    with pytest.raises(CloudError, match=r"InvalidSubnetID\.NotFound"):
        places.check_subnet(configured(cloud, "subnet-00000000000000000"))


def test_a_builder_without_a_public_address_is_not_reached_by_its_private_one(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(cloud)
    (reservation, *_) = cloud.ec2.describe_instances()["Reservations"]
    description = dict(reservation["Instances"][0])
    monkeypatch.setattr(instances, "describe", lambda *_: description)
    described: Any = description
    assert instances.wait_for_address(cloud, described, private=False) == description["PublicIpAddress"]
    del description["PublicIpAddress"]
    with pytest.raises(NoPublicAddress):
        instances.wait_for_address(cloud, described, private=False, timeout_s=0.01)
    assert instances.wait_for_address(cloud, described, private=True) == description["PrivateIpAddress"]


def test_a_subnet_and_another_zone_never_go_out_together(cloud: Cloud, vpc: str) -> None:
    """EC2 refuses them: InvalidParameterValue."""
    inner = configured(cloud, subnet(cloud, vpc, "us-east-1a", 1, public=True))
    other = subnet(cloud, vpc, "us-east-1b", 2, public=True)
    with pytest.raises(UsageError, match=r"its VPC vpc-\w+ has none there"):
        places.choose(inner, ["m7i.large"], "us-east-1c")
    subnet(cloud, vpc, "us-east-1c", 3, public=False)
    with pytest.raises(UsageError, match="no public address"):
        places.choose(inner, ["m7i.large"], "us-east-1c")
    place = places.choose(inner, ["m7i.large"], "us-east-1b")
    assert (place.subnet_id, place.zone) == (other, "us-east-1b")
    assert places.choose(inner, ["m7i.large"], "us-east-1a").subnet_id == inner.settings.subnet
    for zone, subnet_id in (("us-east-1b", other), (None, None)):
        body = instances.request_body(inner, request(LaunchOptions(zone=zone, subnet_id=subnet_id)))
        assert body["SubnetId"] == (subnet_id or inner.settings.subnet)
        assert "Placement" not in body
    with pytest.raises(UsageError, match="cannot be in the configured subnet"):
        instances.request_body(inner, request(LaunchOptions(zone="us-east-1b")))
    body = instances.request_body(cloud, request(LaunchOptions(zone="us-east-1b")))
    assert body["Placement"] == {"AvailabilityZone": "us-east-1b"}
    assert "SubnetId" not in body


def request(options: LaunchOptions) -> LaunchRequest:
    return LaunchRequest(
        image_id="ami-1", instance_type="m7i.large", run_id="r1", role=Role.BENCH, name="n", expires_at=LATER,
        client_token="t", options=options,
    )  # fmt: skip


def test_a_zone_without_the_type_is_refused_and_each_is_those_that_have_it(cloud: Cloud) -> None:
    """us-east-1e has no current types."""
    with pytest.raises(UsageError, match=r"us-east-1e does not have m7i\.large") as error:
        places.choose(cloud, ["m7i.large"], "us-east-1e")
    assert "us-east-1a, us-east-1b" in error.value.hint
    with pytest.raises(UsageError, match="us-east-1z"):
        places.choose(cloud, ["m7i.large"], "us-east-1z")
    with pytest.raises(UsageError, match=r"x9\.large"):
        places.choose(cloud, ["x9.large"])
    zones = places.zones_for(cloud, ["m7i.large", "m7g.large"])
    assert "us-east-1e" not in zones
    assert len(zones) > 2
    experiment = definition.load(ROOT / "experiments" / "zones.yml")
    image = bakery_image(cloud)
    plan = planning.of_definition(cloud, experiment.model_copy(update={"ami": image, "techniques": ["cold"]}))
    assert [cell.options.zone for cell in plan.experiment.cells] == places.zones_for(cloud, ["m7i.large"])
    assert [plan.places[cell].zone for cell in plan.experiment.cells] == [
        cell.options.zone for cell in plan.experiment.cells
    ]


def bakery_image(cloud: Cloud) -> str:
    """An AMI of ours whose base is there, too."""
    base = make_image(cloud, "minimal")
    image = make_image(cloud, "minimal")
    ec2_backends["123456789012"]["us-east-1"].amis[image].architecture = "x86_64"
    cloud.ec2.create_tags(Resources=[image], Tags=[{"Key": "instant-env:base-ami", "Value": base}])
    return image


def test_all_cells_without_a_zone_of_their_own_are_in_one(cloud: Cloud) -> None:
    cells = [
        Cell("cold", Arch.X86_64, "m7i.large"),
        Cell("minimal-ami", Arch.X86_64, "m7i.large"),
        Cell("cold", Arch.ARM64, "m7g.large"),
        Cell("cold", Arch.X86_64, "m7i.large", options=Variants(zone="us-east-1c")),
    ]
    where = planning.places_of(cloud, cells)
    first, second, third, fourth = (where[cell].zone for cell in cells)
    assert first == second == third
    assert fourth == "us-east-1c"
    with pytest.raises(UsageError, match="us-east-1e does not have"):
        planning.places_of(
            cloud, [Cell("cold", Arch.X86_64, "m7i.large", options=Variants(zone="us-east-1e"))]
        )


def test_default_subnets_without_public_addresses_are_left_out(cloud: Cloud) -> None:
    """EC2's own choice may be one of them, so it is not asked for."""
    assert places.leaves_choice(cloud)
    (first, *others) = cloud.ec2.describe_subnets(Filters=[{"Name": "default-for-az", "Values": ["true"]}])[
        "Subnets"
    ]
    cloud.ec2.modify_subnet_attribute(SubnetId=first["SubnetId"], MapPublicIpOnLaunch={"Value": False})
    assert not places.leaves_choice(cloud)
    assert first["SubnetId"] not in {one.subnet_id for one in places.candidates(cloud, ["m7i.large"])}
    bodies: list[Any] = []
    cloud.ec2.meta.events.register(
        "before-parameter-build.ec2.RunInstances", lambda params, **_: bodies.append(dict(params))
    )
    instances.launch_where_there_is_room(cloud, request(LaunchOptions()), ["m7i.large"], lambda _: None)
    assert bodies[0]["SubnetId"] in {one["SubnetId"] for one in others}
    for subnet in others:
        cloud.ec2.modify_subnet_attribute(SubnetId=subnet["SubnetId"], MapPublicIpOnLaunch={"Value": False})
    with pytest.raises(UsageError, match="no public address"):
        places.choose(cloud, ["m7i.large"])
