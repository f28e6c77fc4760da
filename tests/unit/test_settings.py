"""Settings: the order of the layers, and how a mistake is explained."""

from __future__ import annotations

from pathlib import Path

import pytest

from instant_env.arch import Arch
from instant_env.errors import UsageError
from instant_env.settings import CloudName, load


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
