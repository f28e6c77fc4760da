"""Writes an archive of container images with one program in them, which `docker load` reads.

The form is that of moby's image/spec/spec.md (v1.2), "Combined Image JSON + Filesystem Changeset Format": a
manifest.json that names a configuration and layers for each image.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

from instant_env.arch import Arch
from instant_env.toolchain import go_build

#: Nothing in an archive depends on when it was written.
CREATED = "2026-01-01T00:00:00Z"


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), mode
    tar.addfile(member, io.BytesIO(content))


def write(file: Path, images: Mapping[str, Mapping[str, str]], arch: Arch) -> str:
    """Write ``file`` with an image for each reference (``team/app:v1``) and its environment, all of the
    program in app/; its SHA-256."""
    program = go_build("tests/support/containers/app", arch, file.parent / arch.value)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        _add(tar, "app", program.read_bytes(), 0o755)
    layer = packed.getvalue()
    digest = hashlib.sha256(layer).hexdigest()
    manifest = []
    with tarfile.open(file, mode="w") as tar:
        _add(tar, f"{digest}/layer.tar", layer)
        for reference, environment in images.items():
            config = json.dumps(
                {
                    "architecture": arch.debian,
                    "os": "linux",
                    "created": CREATED,
                    "config": {
                        "Entrypoint": ["/app"],
                        "Env": [f"{name}={value}" for name, value in environment.items()],
                    },
                    "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
                    "history": [{"created": CREATED}],
                }
            ).encode()
            name = f"{hashlib.sha256(config).hexdigest()}.json"
            _add(tar, name, config)
            manifest.append({"Config": name, "RepoTags": [reference], "Layers": [f"{digest}/layer.tar"]})
        _add(tar, "manifest.json", json.dumps(manifest).encode())
    return hashlib.sha256(file.read_bytes()).hexdigest()
