"""--from-parent: which steps are left, from which AMI, and when it is refused."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import pytest
import yaml
from support.al2023.machine import with_boot_files
from support.pretend_bakery import NOTHING, Bakery, Calls

from instant_env.arch import Arch
from instant_env.bake.bake import estimate
from instant_env.bake.parent import NO_AMI, on_parent
from instant_env.bake.plan import BakePlan, Script, make_plan
from instant_env.bake.recipe import load_base, resolve
from instant_env.bake.request import Options, Request
from instant_env.cli.bake_progress import plan_lines
from instant_env.errors import UsageError
from instant_env.settings import ROOT

pytest_plugins = ("support.pretend_bakery",)

RECIPES = ROOT / "recipes"


def write(bakery: Bakery, name: str, **keys: Any) -> None:
    """A recipe, or changes to one; each script that it names says its name."""
    path = bakery.settings.recipes_dir / name / "recipe.yml"
    path.parent.mkdir(exist_ok=True)
    before = yaml.safe_load(path.read_text()) if path.exists() else {"recipe": name, "description": "x"}
    path.write_text(yaml.safe_dump(before | keys))
    for step in keys.get("steps", []):
        if "script" in step and not (path.parent / step["script"]).exists():
            (path.parent / step["script"]).write_text(f"echo {step['name']}\n")


def step(name: str, phase: str = "install", **more: Any) -> dict[str, Any]:
    return {"name": name, "phase": phase, "script": f"{name}.sh.j2", **more}


@pytest.fixture
def family(bakery: Bakery) -> Bakery:
    """`pretend` with a step that has to run again, and `child`, which extends it."""
    write(
        bakery, "pretend",
        steps=[step("first", "check", again=True), step("strip", "strip"), step("own", "install")],
        remove={"apt": {"cloud-init": "x", "vim": "y"}},
    )  # fmt: skip
    scripts = bakery.settings.recipes_dir / "pretend"
    (scripts / "strip.sh.j2").write_text("purge {{ remove | sort | join(' ') }}\n")
    write(bakery, "child", extends="pretend", steps=[step("more")])
    return bakery


def request(recipe: str = "child", **options: Any) -> Request:
    return Request(recipe, Arch.X86_64, Options(base="pretend", from_parent=True, **options))


def plan(bakery: Bakery, recipe: str = "child", **options: Any) -> BakePlan:
    return estimate(bakery.cloud, bakery.settings, request(recipe, **options), lambda _: None).plan


def bake(bakery: Bakery, recipe: str = "child", **options: Any) -> Any:
    from instant_env.bake.bake import bake as bake_image

    return bake_image(bakery.cloud, bakery.settings, request(recipe, **options), progress=lambda _: None)


def test_only_what_the_parent_does_not_have_is_done(family: Bakery) -> None:
    parent = family.bake().image
    calls = Calls(family.cloud)
    family.guest.commands.clear()
    result = bake(family)
    scripts = re.findall(r"/run/instant-bake/([0-9]+-\w+)\.sh", "\n".join(family.guest.commands))
    assert scripts == ["01-first", "02-more"]
    assert any("systemctl stop instant-init-key.service" in command for command in family.guest.commands)
    built, verified = (asked for action, asked in calls.requests if action == "RunInstances")
    assert built["ImageId"] == parent.id
    assert (
        json.loads(base64.b64decode(built["UserData"]))["instant-env"]["ttl_s"] > 0
    )  # no cloud-init reads it
    assert verified["ImageId"] == result.image.id
    assert family.leftovers() == NOTHING
    image = result.image
    assert (image.parent_ami, image.base_ami) == (parent.id, parent.base_ami)
    record = json.loads(result.manifest_path.read_text())
    assert record["plan"]["parent_ami"] == parent.id
    assert record["base_image"]["id"] == parent.id
    assert bake(family).image.id == image.id  # reused
    from_base = family.bake().image
    assert from_base.id == parent.id  # the parent's own plan is as it was


@pytest.mark.slow
def test_the_parents_ami_is_in_the_hash(family: Bakery) -> None:
    first = family.bake().image
    one = plan(family)
    assert one.parent_ami == first.id
    second = family.bake(force=True).image
    other = plan(family)
    assert other.parent_ami == second.id
    assert other.hash != one.hash
    full = Request("child", Arch.X86_64, Options(base="pretend"))
    from_base = estimate(family.cloud, family.settings, full, lambda _: None).plan
    assert from_base.parent_ami == ""
    assert len({one.hash, other.hash, from_base.hash}) == 3
    lines = list(plan_lines(estimate(family.cloud, family.settings, request(), lambda _: None)))
    assert any(f"from  {second.id}" in line for line in lines)


def test_a_parent_that_is_not_there_or_stale_is_refused_with_the_command(family: Bakery) -> None:
    with pytest.raises(UsageError, match="there is no verified pretend AMI for x86_64 on pretend") as caught:
        plan(family)
    assert "run: invoke bake --recipe pretend --arch x86_64 --base pretend" in caught.value.hint
    old = family.bake().image
    (family.settings.recipes_dir / "pretend" / "own.sh.j2").write_text("echo other\n")
    with pytest.raises(
        UsageError, match=f"{old.id}, the newest verified .*, is stale: it is of plan "
    ) as caught:
        bake(family)
    assert old.plan_hash[:12] in caught.value.message
    new = family.bake().image
    assert plan(family).parent_ami == new.id


def test_a_newer_base_makes_the_parent_stale(family: Bakery) -> None:
    old_base = family.bake().image.base_ami
    family.new_base("second-base")
    with pytest.raises(UsageError, match="is stale"):
        plan(family)
    assert plan(family, base_ami=old_base).parent_ami
    family.cloud.ec2.deregister_image(ImageId=family.images()[0])
    with pytest.raises(UsageError, match="no verified pretend AMI") as caught:
        plan(family, base_ami=old_base)
    assert f"--base-ami {old_base}" in caught.value.hint


def test_an_ami_that_is_not_verified_is_no_parent(family: Bakery) -> None:
    image = family.bake().image
    tag = {"Key": "instant-env:expires-at", "Value": "2099-01-01T00:00:00Z"}
    family.cloud.ec2.create_tags(Resources=[image.id], Tags=[tag])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="no verified pretend AMI"):
        plan(family)


@pytest.mark.slow
def test_the_parents_parameters_have_the_childs_values(family: Bakery) -> None:
    parameter = {"description": "x", "default": "plain", "pattern": "[a-z ]+"}
    write(family, "pretend", parameters={"colour": parameter})
    (family.settings.recipes_dir / "pretend" / "own.sh.j2").write_text(
        "echo {{ parameters.colour | quote }}\n"
    )
    family.bake()
    assert plan(family).parent_ami
    with pytest.raises(UsageError, match="is stale") as caught:
        plan(family, parameters={"colour": "dark red"})
    assert "--set 'colour=dark red'" in caught.value.hint
    red = family.bake(parameters={"colour": "dark red"}).image
    assert plan(family, parameters={"colour": "dark red"}).parent_ami == red.id
    assert plan(family).parent_ami != red.id


def test_an_inherited_step_that_the_child_renders_in_another_way_runs_again(family: Bakery) -> None:
    family.bake()
    assert [one.name for one in plan(family).steps] == ["first", "more"]
    write(family, "child", remove={"apt": {"nano": "z"}})
    steps = plan(family).steps
    assert [one.name for one in steps] == ["first", "strip", "more"]
    assert isinstance(steps[1], Script)
    assert "purge cloud-init nano vim" in steps[1].text


def test_what_was_in_the_parents_memory_is_put_there_again(family: Bakery) -> None:
    tool = {"name": "tool", "phase": "prepare", "upload": "imagetool", "to": "/run/instant-bake/imagetool"}
    write(family, "pretend", steps=[step("first", "check", again=True), tool, step("own")])
    family.bake()
    assert [one.name for one in plan(family).steps] == ["first", "tool", "more"]


@pytest.mark.slow
def test_a_grandchild_takes_a_child_of_either_origin(family: Bakery) -> None:
    write(family, "grandchild", extends="child", steps=[step("last")])
    family.bake()
    with pytest.raises(UsageError, match="no verified child AMI"):
        plan(family, "grandchild")
    middle = bake(family).image
    last = plan(family, "grandchild")
    assert (last.parent_ami, [one.name for one in last.steps]) == (middle.id, ["first", "last"])
    family.bake(force=True)  # another AMI of the same plan: the child's is of an older one, which is as good
    assert plan(family, "grandchild").parent_ami == middle.id
    (family.settings.recipes_dir / "pretend" / "own.sh.j2").write_text("echo other\n")
    with pytest.raises(UsageError, match="is stale"):
        plan(family, "grandchild")


@pytest.mark.slow
def test_a_larger_root_grows_the_parents(family: Bakery) -> None:
    write(family, "child", root_gib=4)
    family.bake()
    calls = Calls(family.cloud)
    assert bake(family).image.root_gib == 4
    built = next(asked for action, asked in calls.requests if action == "RunInstances")
    assert built["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] == 4


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"steps": [step("own")]}, "child replaces steps that pretend has run: own"),
        ({"keep": {"apt": {"vim": "for people"}}}, "child keeps packages that pretend has removed: vim"),
    ],
)
def test_what_the_parent_did_cannot_be_taken_back(family: Bakery, keys: dict[str, Any], reason: str) -> None:
    write(family, "child", **keys)
    calls = Calls(family.cloud)
    with pytest.raises(UsageError, match=f"recipe child cannot be baked from pretend's AMI: {reason}"):
        plan(family)
    assert calls.requests == []
    assert estimate(
        family.cloud, family.settings, Request("child", Arch.X86_64, Options(base="pretend")), lambda _: None
    ).plan.steps


def test_a_recipe_without_a_parent_and_one_without_systemd_are_refused(family: Bakery) -> None:
    with pytest.raises(UsageError, match="recipe pretend extends no other"):
        plan(family, "pretend")
    write(family, "pretend", kernel_arguments=["quiet", "init=/usr/sbin/instant-init"])
    with pytest.raises(UsageError, match="machines of pretend run no systemd"):
        plan(family)


def test_a_child_keeps_what_its_parent_removes_and_removes_what_that_keeps(family: Bakery) -> None:
    write(family, "pretend", keep={"apt": {"sudo": "a", "dbus": "b"}})
    write(
        family, "child", keep={"apt": {"vim": "for people"}}, remove={"apt": {"dbus": "nobody speaks it"}}
    )  # fmt: skip
    recipe = resolve(family.settings.recipes_dir, "child", "apt")
    assert recipe.remove == {"cloud-init": "x", "dbus": "nobody speaks it"}
    assert recipe.keep == {"sudo": "a", "vim": "for people"}
    write(family, "child", remove={"apt": {"vim": "no"}})
    with pytest.raises(UsageError, match="recipe child both removes and keeps vim"):
        resolve(family.settings.recipes_dir, "child", "apt")


@pytest.mark.parametrize("name", ["container-host", "devbox"])
@pytest.mark.parametrize("base_name", ["debian-12", "al2023"])
def test_what_runs_on_the_ami_of_minimal(name: str, base_name: str, tmp_path: Any) -> None:
    """What has to be done around packages, and nothing that takes the time of a bake from the base."""
    base = load_base(RECIPES, base_name)
    child, parent = (resolve(RECIPES, one, base.family) for one in (name, "minimal"))
    binary = tmp_path / "binary"
    binary.write_bytes(b"x")
    files = {one.spec.artefact: binary for one in child.steps if one.spec.artefact is not None}
    given = {
        key: "0f" * 32 if key.endswith("sha256") else "a/b"
        for key, parameter in child.parameters.items()
        if parameter.default_for(Arch.X86_64) is None
    }
    plans = [
        make_plan(recipe, base, NO_AMI, Arch.X86_64, files, values)
        for recipe, values in ((child, given), (parent, {}))
    ]
    names = [one.name for one in on_parent(plans[0], plans[1], "ami-1").steps]
    own = {one.spec.name for one in child.steps if one.directory.name == name}
    wrapped = {"preflight", "divert", "undivert", "prove", "clean"}
    assert set(names) - own >= wrapped
    assert not {"strip", "network", "instant-init", "key-agent", "sshd", "quiet"} & set(names)
    assert ("loader" in names) == (base.family == "dnf")
    assert names.index("divert") < min(names.index(one) for one in own) < names.index("undivert")


def test_custom_init_is_not_baked_from_minimal() -> None:
    base = load_base(RECIPES, "debian-12")
    files = dict.fromkeys(("instant-init", "imagetool", "efi-stub", "instant-ssm"), ROOT / "README.md")
    child, parent = (
        make_plan(resolve(RECIPES, name, "apt"), base, NO_AMI, Arch.X86_64, files)
        for name in ("custom-init", "minimal")
    )
    with pytest.raises(UsageError, match="custom-init replaces steps that minimal has run: key-agent"):
        on_parent(child, parent, "ami-1")


@pytest.mark.parametrize("selinux", ["keep", "disabled"])
def test_the_boot_steps_may_run_twice(tmp_path: Any, selinux: str) -> None:
    """On AL2023's boot files: the second time changes nothing."""
    from support.al2023.machine import run

    machine = with_boot_files(tmp_path / "root")
    run(machine, "minimal", "selinux", "loader", selinux=selinux)
    places = [machine.root / "boot", machine.root / "etc"]
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    first = {path: path.read_bytes() for path in files}
    run(machine, "minimal", "selinux", "loader", selinux=selinux)
    assert {path: path.read_bytes() for path in files} == first
