"""Settings: the order of the layers, and how a mistake is explained."""

from __future__ import annotations

import pickle
import subprocess
from pathlib import Path

import pytest

from instant_env.arch import Arch
from instant_env.errors import UsageError
from instant_env.settings import ROOT, CloudName, Settings, load


def test_flags_beat_environment_beats_file(tmp_path: Path) -> None:
    config = tmp_path / "instant-env.yml"
    config.write_text("region: from-file\nbase: from-file\ncloud: aws\n")
    environ = {
        "INSTANT_ENV_CONFIG": str(config),
        "INSTANT_ENV_REGION": "from-env",
        "INSTANT_ENV_BASE": "from-env",
    }
    settings = load({"region": "from-flag", "base": "", "cloud": None}, environ)
    assert (settings.region, settings.base, settings.cloud) == ("from-flag", "from-env", CloudName.AWS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cluod: aws\n", "instant-env.yml: cluod: unknown key"),
        ("CLOUD: aws\n", "instant-env.yml: CLOUD: unknown key"),
        ("cloud: moon\n", "instant-env.yml: cloud: Input should be 'local' or 'aws'"),
        ("region: 1\nssh_port: x\n", "yml: region: Input should be a .*yml: ssh_port: Input should be a"),
        ("- x\n", "must hold keys and values"),
        ("- ab\n", "must hold keys and values"),
        ("1: x\n", "must hold keys and values"),
        ("a: [\n", "is not YAML"),
        ("\udcff: aws\n", "cannot be read"),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, text: str, message: str) -> None:
    config = tmp_path / "instant-env.yml"
    config.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UsageError, match=message):
        load(environ={"INSTANT_ENV_CONFIG": str(config)})


def test_a_misspelt_key_gets_the_nearest_as_a_hint(tmp_path: Path) -> None:
    config = tmp_path / "instant-env.yml"
    config.write_text("cluod: aws\n")
    with pytest.raises(UsageError) as caught:
        load(environ={"INSTANT_ENV_CONFIG": str(config)})
    assert caught.value.hint == "did you mean cloud?"


def test_a_wrong_value_is_an_error_that_names_where_it_was_given(tmp_path: Path) -> None:
    config = tmp_path / "instant-env.yml"
    config.write_text("cloud: aws\nssh_port: 22\n")
    environ = {"INSTANT_ENV_CONFIG": str(config), "INSTANT_ENV_SSH_PORT": "70000"}
    with pytest.raises(UsageError) as caught:
        load({"cloud": "moon"}, environ)
    assert caught.value.message == (
        "--cloud: Input should be 'local' or 'aws'; "
        "INSTANT_ENV_SSH_PORT: Input should be less than or equal to 65535"
    )


def test_the_environment_is_text_and_empty_variables_do_not_count() -> None:
    settings = load(environ={"INSTANT_ENV_LOCAL_EGRESS": "no", "INSTANT_ENV_SSH_PORT": "2222",
                             "INSTANT_ENV_REGION": "", "INSTANT_ENV_STATE_DIR": "/elsewhere"})  # fmt: skip
    assert (settings.local_egress, settings.ssh_port, settings.region) == (False, 2222, None)
    assert settings.local_dir == Path("/elsewhere/localec2")


def test_settings_made_by_hand_read_no_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "instant-env.yml").write_text("cloud: aws\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INSTANT_ENV_REGION", "eu-west-1")
    by_hand = Settings()
    assert (by_hand.cloud, by_hand.region) == (CloudName.LOCAL, None)
    assert load() == Settings(cloud=CloudName.AWS, region="eu-west-1")
    # Bakes that run in parallel get their settings pickled.
    assert pickle.loads(pickle.dumps(load())) == load()  # noqa: S301


def test_a_password_in_a_url_is_not_shown() -> None:
    settings = load({"endpoint_url": "https://me:secret@example.com", "caller_ip_url": "http://x/?t=secret"})
    assert "secret" not in repr(settings) + str(settings)
    with pytest.raises(UsageError, match="--endpoint-url: String should match pattern") as caught:
        load({"endpoint_url": "ftp://me:secret@example.com"})
    assert "secret" not in caught.value.message + caught.value.hint


def test_a_named_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load(environ={"INSTANT_ENV_CONFIG": str(tmp_path / "none.yml")})


def test_architectures_by_any_of_their_names() -> None:
    assert Arch.parse("amd64") is Arch.X86_64
    assert Arch.parse(" AArch64 ") is Arch.ARM64
    with pytest.raises(UsageError, match="unknown architecture 'sparc'"):
        Arch.parse("sparc")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("INSTANT_ENV_CLOUDD", "did you mean INSTANT_ENV_CLOUD?"),
        ("INSTANT_ENV_SUBNETS", "did you mean INSTANT_ENV_SUBNET?"),
        ("INSTANT_ENV_ENDPOINT", "did you mean INSTANT_ENV_ENDPOINT_URL?"),
        ("INSTANT_ENV_QQQQQQQQ", "instant_env/settings.py"),
    ],
)
def test_an_unknown_variable_is_an_error_that_names_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=f"unknown environment variable {name}") as caught:
        load(environ={name: "aws"})
    assert hint in caught.value.hint


def test_every_variable_that_the_project_reads_is_known() -> None:
    """Those of the tests and of recipes too: they are set for commands that read the settings."""
    listed = subprocess.run(
        ["git", "grep", "-hoE", r"INSTANT_ENV_[A-Z0-9_]*[A-Z0-9]", "--", ".",
         ":!tests/unit/test_settings.py"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    names = set(listed.stdout.split())
    assert {"INSTANT_ENV_CONFIG", "INSTANT_ENV_AL2023_MIRROR", "INSTANT_ENV_KILLS"} <= names
    unknown = []
    for name in names - {"INSTANT_ENV_CONFIG"}:
        try:
            load(environ={name: "x"})
        except UsageError as error:
            unknown += [name] if "unknown environment variable" in error.message else []
    assert unknown == []
