"""Which region it is: what is said nearest counts, and a default is never taken in silence."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.localec2_served import Served, aws_settings

from instant_env.cloud.session import CloudError, connect, region_of
from instant_env.service.server.files import store_of
from instant_env.settings import CloudName, Settings

pytest_plugins = ("support.localec2_served",)


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """AWS's own configuration, with nothing in it and nothing beside it."""
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_DEFAULT_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "config"
    path.write_text("")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(path))
    return path


def test_the_nearest_word_counts_and_us_east_1_is_the_last(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aws = Settings(cloud=CloudName.AWS)
    assert region_of(aws) == "us-east-1"
    config.write_text("[default]\nregion = eu-north-1\n[profile away]\nregion = sa-east-1\n")
    assert region_of(aws) == "eu-north-1"
    assert region_of(Settings(cloud=CloudName.AWS, profile="away")) == "sa-east-1"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-2")
    assert region_of(aws) == "eu-west-2"
    monkeypatch.setenv("AWS_REGION", "eu-west-3")
    assert region_of(aws) == "eu-west-3"
    assert region_of(Settings(cloud=CloudName.AWS, region="ap-south-1")) == "ap-south-1"
    assert region_of(Settings()) == "us-east-1", "localec2 is nobody's profile"


def test_the_store_of_a_service_is_that_of_the_region(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-3")
    assert store_of(Settings(cloud=CloudName.AWS, state_dir=tmp_path)).name == "aws-eu-west-3.sqlite"


def test_a_profile_that_is_not_there_is_said_so() -> None:
    with pytest.raises(CloudError, match="nosuch"):
        region_of(Settings(cloud=CloudName.AWS, profile="nosuch"))


def test_a_connection_has_the_region_of_the_environment_and_tells_of_a_default(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", served.state.server.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", served.state.server.secret_access_key)
    settings, lines = aws_settings(served, tmp_path, region=None), list[str]()
    cloud = connect(settings, lines.append)
    assert cloud.region == cloud.ec2.meta.region_name == cloud.ec2_once.meta.region_name == "us-east-1"
    assert [line for line in lines if "no region is named, so it is us-east-1" in line]
    lines.clear()
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    connect(settings, lines.append)
    assert lines == []


def test_a_refused_key_is_told_of_regions_that_have_to_be_opted_into(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a region answers as if the key were wrong (AWS Account Management Reference Guide, "Enable or
    disable AWS Regions in your account")."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAAAAAAAAAAAAAAAAA")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x" * 40)
    with pytest.raises(CloudError, match="did not accept us") as caught:
        connect(aws_settings(served, tmp_path))
    assert "aws account list-regions" in caught.value.hint
