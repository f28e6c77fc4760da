"""The init's network code against a real DHCP server: dnsmasq at the other end of a veth pair.

The tests are Go (init/internal/network/dnsmasq_test.go), nothing is booted. They need a network namespace in
which they are root, and skip without one; here they get it, so here a skip is a failure.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from instant_env.arch import Arch
from instant_env.requirements import find_program
from instant_env.settings import ROOT
from instant_env.toolchain import find_go, go_environment

pytestmark = [pytest.mark.boot, pytest.mark.timeout(400)]

SOURCE = ROOT / "init" / "internal" / "network" / "dnsmasq_test.go"
TESTS = re.findall(r"^func (Test\w+)\(", SOURCE.read_text(), re.MULTILINE)
#: For all that the tests change: interfaces, the host's name, and processes, none of which is left.
NAMESPACE = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert find_program("dnsmasq"), "dnsmasq is missing: make setup installs it"
    path = tmp_path_factory.mktemp("dnsmasq") / "network.test"
    env = go_environment(Arch.X86_64)
    del env["GOARCH"], env["GOOS"]
    subprocess.run([find_go(), "test", "-c", "-o", path, "."], cwd=SOURCE.parent, env=env, check=True)
    return path


@pytest.mark.parametrize("name", TESTS)
def test_with_dnsmasq(binary: Path, name: str) -> None:
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    result = subprocess.run(
        [*NAMESPACE, *user, binary, "-test.v", "-test.run", f"^{name}$", "-test.timeout", "180s"],
        env=os.environ | {"INSTANT_INIT_TEST_NAMESPACE": "1", "PATH": path},
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    if result.returncode != 0:
        pytest.fail(f"{result.stdout}{result.stderr}", pytrace=False)
    assert f"--- PASS: {name}" in result.stdout, result.stdout
