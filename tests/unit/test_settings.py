"""Settings: the order of the layers, and how a mistake is explained."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from instant_env.arch import Arch
from instant_env.errors import UsageError
from instant_env.settings import ROOT, CloudName, load


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
        ("cluod: aws\n", "cluod: Extra inputs"),
        ("cloud: moon\n", "cloud: Input should be 'local' or 'aws'"),
        ("- x\n", "must hold keys and values"),
        ("a: [\n", "is not YAML"),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, text: str, message: str) -> None:
    config = tmp_path / "instant-env.yml"
    config.write_text(text)
    with pytest.raises(UsageError, match=message):
        load(environ={"INSTANT_ENV_CONFIG": str(config)})


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
        ["git", "grep", "-hoE", r"INSTANT_ENV_[A-Z0-9_]*[A-Z0-9]", "--", "instant_env", "tests/support",
         "tests/conftest.py", "tests/unit/test_fuzz.py", "recipes", "docs", "README.md"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    names = set(listed.stdout.split())
    assert {"INSTANT_ENV_CONFIG", "INSTANT_ENV_AL2023_MIRROR", "INSTANT_ENV_E2E_DIR"} <= names
    unknown = []
    for name in names - {"INSTANT_ENV_CONFIG"}:
        try:
            load(environ={name: "x"})
        except UsageError as error:
            unknown += [name] if "unknown environment variable" in error.message else []
    assert unknown == []
