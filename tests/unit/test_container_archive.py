"""Archives of container images that the tests write themselves, read back as `docker load` reads them."""

from __future__ import annotations

import hashlib
import json
import platform
import tarfile
from pathlib import Path

import pytest
from support.containers import archive

from instant_env.arch import Arch


@pytest.mark.slow  # compiles
def test_an_archive_has_what_its_manifest_names(tmp_path: Path) -> None:
    arch = Arch.parse(platform.machine())
    images = {"team/app:v1": {"VERSION": "v1"}, "team/app:v2": {"VERSION": "v2"}}
    digest = archive.write(tmp_path / "app.tar", images, arch)
    assert digest == hashlib.sha256((tmp_path / "app.tar").read_bytes()).hexdigest()
    assert digest == archive.write(tmp_path / "again.tar", images, arch), "the same bytes each time"
    with tarfile.open(tmp_path / "app.tar") as tar:
        content = {member.name: tar.extractfile(member) for member in tar}
        files = {name: file.read() for name, file in content.items() if file is not None}
    for entry, (reference, environment) in zip(
        json.loads(files["manifest.json"]), images.items(), strict=True
    ):
        assert entry["RepoTags"] == [reference]
        config = json.loads(files[entry["Config"]])
        assert entry["Config"] == hashlib.sha256(files[entry["Config"]]).hexdigest() + ".json"
        assert (config["architecture"], config["config"]["Entrypoint"]) == (arch.debian, ["/app"])
        assert config["config"]["Env"] == [f"{name}={value}" for name, value in environment.items()]
        layers = [f"sha256:{hashlib.sha256(files[layer]).hexdigest()}" for layer in entry["Layers"]]
        assert config["rootfs"]["diff_ids"] == layers
