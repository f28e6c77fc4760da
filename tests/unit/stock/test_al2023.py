"""The al2023 base, from a mirror on loopback."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from instant_env.arch import Arch
from instant_env.debian import download
from instant_env.debian.command import BuildError
from instant_env.errors import InstantEnvError
from instant_env.localec2.stock import al2023
from instant_env.progress import Progress

if TYPE_CHECKING:
    from support.stock_site import Site

pytest_plugins = ["support.stock_site"]

VERSION = "2023.9.20251117.1"
NAME = f"al2023-kvm-{VERSION}-kernel-6.1-x86_64.xfs.gpt.qcow2"
FOLDER = "/os-images/latest/kvm"


@pytest.fixture
def mirror(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A mirror that holds one version, a small qcow2 file, found through the environment."""
    monkeypatch.setenv("INSTANT_ENV_AL2023_MIRROR", f"{site.url}/os-images/")
    monkeypatch.setattr(download, "_PAUSE_S", 0.0)
    disk = tmp_path / "made.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "25G"], check=True)
    site.files[f"{FOLDER}/{NAME}"] = disk.read_bytes()
    site.files[f"{FOLDER}/SHA256SUMS"] = sums(disk.read_bytes()).encode()
    return site


def sums(body: bytes) -> str:
    digest = hashlib.sha256(body).hexdigest()
    return f"{'1' * 64}  {NAME.replace('qcow2', 'ova')}\n{digest}  {NAME}\n"


def test_fetched_and_described(mirror: Site, tmp_path: Path, progress: Progress) -> None:
    image = al2023.build(Arch.X86_64, tmp_path / "cache", progress)
    assert image.disk.read_bytes() == mirror.files[f"{FOLDER}/{NAME}"]
    assert image.size_gib == 25
    assert image.nocloud, "its cloud-init does not look for EC2"
    assert image.owner_id == "137112412989"
    assert image.ssm_parameter == "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-6.1-x86_64"
    assert image.name == f"al2023-ami-{VERSION}-kernel-6.1-x86_64"


def test_the_second_time_asks_only_for_the_checksums(
    mirror: Site, tmp_path: Path, progress: Progress
) -> None:
    first = al2023.build(Arch.X86_64, tmp_path / "cache", progress)
    mirror.requests.clear()
    assert al2023.build(Arch.X86_64, tmp_path / "cache", progress) == first
    assert mirror.requests == [(f"{FOLDER}/SHA256SUMS", None)]


def test_a_mirror_that_went_away_leaves_the_cached_image(
    mirror: Site, tmp_path: Path, progress: Progress, lines: list[str]
) -> None:
    first = al2023.build(Arch.X86_64, tmp_path / "cache", progress)
    mirror.files.clear()
    assert al2023.build(Arch.X86_64, tmp_path / "cache", progress) == first
    assert "answers HTTP 404; using al2023-ami-2023.9" in lines[-1]


def one_line(error: InstantEnvError) -> bool:
    return "\n" not in error.message + error.hint


def test_absent_says_what_to_do(site: Site, tmp_path: Path, progress: Progress) -> None:
    with pytest.raises(BuildError, match=r"cannot be fetched here: .*404") as caught:
        al2023.build(Arch.X86_64, tmp_path / "cache", progress, mirror=f"{site.url}/os-images")
    assert one_line(caught.value)
    assert "--base debian-12" in caught.value.hint


def test_no_network_says_what_to_do(
    tmp_path: Path, progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_PAUSE_S", 0.0)
    with pytest.raises(BuildError, match=r"cannot be fetched here: .*refused") as caught:
        al2023.build(Arch.X86_64, tmp_path / "cache", progress, mirror="http://127.0.0.1:9")
    assert one_line(caught.value)
    assert "--base debian-12" in caught.value.hint


def test_wrong_checksum_caches_nothing(mirror: Site, tmp_path: Path, progress: Progress) -> None:
    mirror.files[f"{FOLDER}/{NAME}"] += b"?"
    with pytest.raises(BuildError, match="SHA256SUMS says") as caught:
        al2023.build(Arch.X86_64, tmp_path / "cache", progress)
    assert one_line(caught.value)
    assert [path.suffix for path in (tmp_path / "cache/stock").iterdir()] == [".lock"]


def test_a_truncated_body_is_resumed(mirror: Site, tmp_path: Path, progress: Progress) -> None:
    mirror.cuts[f"{FOLDER}/{NAME}"] = [1000]
    image = al2023.build(Arch.X86_64, tmp_path / "cache", progress)
    assert image.disk.read_bytes() == mirror.files[f"{FOLDER}/{NAME}"]
    assert (f"{FOLDER}/{NAME}", "bytes=1000-") in mirror.requests


def test_parts_of_older_versions_go(mirror: Site, tmp_path: Path, progress: Progress) -> None:
    old = tmp_path / "cache/stock/al2023-x86_64-0123456789abcdef.qcow2.part"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"old")
    al2023.build(Arch.X86_64, tmp_path / "cache", progress)
    assert not old.exists()


def test_what_is_no_qcow2_is_refused(mirror: Site, tmp_path: Path, progress: Progress) -> None:
    mirror.files[f"{FOLDER}/{NAME}"] = b"hello"
    mirror.files[f"{FOLDER}/SHA256SUMS"] = sums(b"hello").encode()
    with pytest.raises(BuildError, match="not a qcow2 image"):
        al2023.build(Arch.X86_64, tmp_path / "cache", progress)
    assert not list((tmp_path / "cache/stock").glob("*.qcow2"))


@pytest.mark.parametrize(
    ("text", "count"), [("", 0), (f"{'a' * 64}  {NAME}\n{'b' * 64}  {NAME.replace('.1-k', '.2-k')}\n", 2)]
)
def test_sums_without_the_one_image(text: str, count: int) -> None:
    with pytest.raises(BuildError, match=f"names {count} images for kernel 6.1 on x86_64"):
        al2023.find_image(text, Arch.X86_64)


def test_arm64_has_a_folder_and_a_name_of_its_own(site: Site, tmp_path: Path, progress: Progress) -> None:
    with pytest.raises(BuildError, match="latest/kvm-arm64/SHA256SUMS"):
        al2023.build(Arch.ARM64, tmp_path / "cache", progress, mirror=site.url)
    name = NAME.replace("x86_64", "arm64")
    assert al2023.find_image(f"{'a' * 64} *{name}\n", Arch.ARM64) == (name, "a" * 64)
