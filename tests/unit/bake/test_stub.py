"""The EFI stub of the other architecture: kept once fetched, and what is said when it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from instant_env.arch import Arch
from instant_env.bake import artefacts, stub
from instant_env.debian import apt
from instant_env.errors import MissingToolError

NAME = "linuxaa64.efi.stub"


@pytest.fixture
def no_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("INSTANT_ENV_DEBIAN_MIRROR", "INSTANT_ENV_DEBIAN_SECURITY_MIRROR"):
        monkeypatch.setenv(name, "file:///nonexistent")


@pytest.mark.usefixtures("no_mirror")
def test_what_lies_in_the_cache_is_not_fetched_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(artefacts, "_STUB_DIRS", ())
    kept = tmp_path / "efi-stub/arm64" / NAME
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"MZ")
    assert artefacts.efi_stub(Arch.ARM64, tmp_path) == kept


@pytest.mark.usefixtures("no_mirror")
def test_a_mirror_that_does_not_answer_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(stub.StubError) as caught:
        stub.fetch(NAME, Arch.ARM64, tmp_path)
    assert "systemd-boot-efi:arm64" in caught.value.hint
    assert [path.name for path in (tmp_path / "efi-stub/arm64").iterdir()] == ["linuxaa64.efi.log"]


def test_without_apt_the_error_says_where_to_put_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(apt, "TOOLS", {"no-such-apt": "apt"})
    with pytest.raises(MissingToolError, match="no EFI stub") as caught:
        stub.fetch(NAME, Arch.ARM64, tmp_path)
    assert str(tmp_path / "efi-stub/arm64" / NAME) in caught.value.hint
