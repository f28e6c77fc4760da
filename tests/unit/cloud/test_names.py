"""Names that EC2 accepts, whatever they are made of."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from support.harness_cloud import Ec2Faults, cloud_in_process, register_image

from harness.plan.arguments import Request, read
from harness.run.runner import carry_out
from instant_env.arch import Arch
from instant_env.bake.request import Request as BakeRequest
from instant_env.cloud.images import parameter_name
from instant_env.cloud.rules.names import image_name
from instant_env.cloud.tags import Role, new_run_id, tag_list

#: API reference, CreateImage: Name.
ACCEPTED = re.compile(r"[A-Za-z0-9()\[\] ./\-'@_]{3,128}")


@pytest.mark.parametrize("text", ["custom-init+prealloc-eni", "ü" * 300, "", "a:b=c{d}", "x" * 128])
def test_a_name_of_an_image_is_one_that_ec2_takes_and_the_only_one(text: str) -> None:
    run = new_run_id()
    name = image_name(text, run)
    assert ACCEPTED.fullmatch(name)
    assert name.endswith(f"-{run}")


def test_a_bakes_image_of_any_recipe_has_a_name() -> None:
    request = BakeRequest("r" * 200, Arch.ARM64)
    assert ACCEPTED.fullmatch(request.image_name)
    assert BakeRequest("minimal", Arch.ARM64, run_id="R").image_name == "instant-env-minimal-arm64-R"


def test_copies_for_a_technique_with_a_plus_have_one(tmp_path: Path) -> None:
    """A technique's name is in that of an attempt, and so in that of its copy; the run itself fails early."""
    path = tmp_path / "e.yml"
    path.write_text(
        "{name: e, about: why, techniques: custom-init+warm-stopped, options: {fresh_copy: true}, n: 1}"
    )
    names: list[str] = []

    def refuse(params: dict[str, str], **_: Any) -> None:
        names.append(params["Name"])
        raise ClientError({"Error": {"Code": "UnauthorizedOperation", "Message": ""}}, "CopyImage")

    with cloud_in_process(tmp_path, 22, Ec2Faults()) as cloud:
        base = register_image(cloud)
        about = {"recipe": "custom-init", "base": "b", "base-ami": base, "login-user": "admin"}
        ami = register_image(cloud, "custom-init")
        cloud.ec2.create_tags(Resources=[ami], Tags=tag_list("r", Role.IMAGE, name="n", extra=about))
        latest = parameter_name("custom-init", Arch.X86_64)
        cloud.ssm.put_parameter(Name=latest, Value=ami, Type="String")
        cloud.ec2.meta.events.register("provide-client-params.ec2.CopyImage", refuse)
        settings, planner = read(Request(experiment=str(path)), cloud.settings)
        result = carry_out(settings, planner, progress=lambda _: None, open_cloud=lambda *_: cloud)
    assert [row.outcome for row in result.rows] == ["launch_error"]
    (name,) = names
    assert ACCEPTED.fullmatch(name)
    assert "custom-init-warm-stopped" in name
