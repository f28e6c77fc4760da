"""arm64 on whatever this host is: one recipe baked, one login to what came of it.

On x86_64 everything is emulated, so it is one bake only; that minimal works too is seen before each release
(docs/arm64.md). The stock image is built when it is not cached.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.front import NOTHING, Front, rows_of

from instant_env.arch import Arch
from instant_env.errors import MissingToolError
from instant_env.localec2.stock import debian

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    try:
        debian.check_host(Arch.ARM64)
    except MissingToolError as error:
        pytest.skip(f"no arm64 here: {error}; {error.hint}")
    front = Front(tmp_path_factory.mktemp("arm64"))
    try:
        yield front
    finally:
        print((front.directory / "state" / "localec2" / "server.log").read_text()[-20000:])
        front.run("local.down")
        assert front.machines() == []


def test_custom_init_is_baked_and_logs_in(front: Front) -> None:
    baked = front.json("bake", "--arch", "arm64", "--recipe", "custom-init")
    manifest = json.loads(Path(baked["manifest"]).read_text())
    assert manifest["audit"]["findings"] == []
    assert manifest["timeline"]["pid1"] is True
    (image,) = front.aws("ec2", "describe-images", "--image-ids", baked["ami"])["Images"]
    assert image["Architecture"] == "arm64"

    result = front.json("bench", "--arch", "arm64", "--technique", "custom-init", "--iterations", "1")
    (row,) = rows_of(result["csv"])
    assert (row["outcome"], row["arch"], row["instance_type"]) == ("ok", "arm64", "m7g.large")
    assert front.leftovers() == NOTHING
