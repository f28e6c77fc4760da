"""The stand-in's kernel, fetched, unpacked, built and packed: all of it, but for a source of three rules.

The mirror is an apt-get that makes the package; tar, dpkg-deb and make are the real ones. `make test-al2023`
builds Debian's source.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from instant_env import requirements
from instant_env.debian.command import BuildError
from instant_env.debian.mirrors import Mirrors
from instant_env.errors import MissingToolError
from instant_env.localec2.stock.al2023_like import kernel
from instant_env.progress import Progress

pytest_plugins = ["support.stock_site"]

MIRRORS = Mirrors("http://one/debian", "http://one/debian-security")
#: What the build calls, each with what the real one leaves behind.
MAKEFILE = """
olddefconfig:
\tcp $(O)/.config $(O)/.given
\tprintf '%s\\n' $(SETTINGS) >>$(O)/.config
bzImage modules:
\tmkdir -p $(O)/arch/x86/boot $(O)/include/config
\techo "$$KBUILD_BUILD_USER $$KBUILD_BUILD_TIMESTAMP" >$(O)/arch/x86/boot/bzImage
\techo 6.1.999 >$(O)/include/config/kernel.release
modules_install:
\tmkdir -p $(INSTALL_MOD_PATH)/lib/modules/6.1.999/kernel
\techo module >$(INSTALL_MOD_PATH)/lib/modules/6.1.999/kernel/xfs.ko
\tln -s $(O) $(INSTALL_MOD_PATH)/lib/modules/6.1.999/build
"""
#: apt-get: `update` does nothing, `download PACKAGE` makes PACKAGE with a source below /usr/src.
APT_GET = """#!/bin/sh
set -eu
echo "$*" >>"$0.log"
case " $* " in
*" download "*) ;;
*) exit 0 ;;
esac
for name in "$@"; do :; done
tree=$(mktemp -d "$PWD/made.XXXXXX")
mkdir -p "$tree/DEBIAN" "$tree/usr/src" "$tree/source/$name"
cp "$0.makefile" "$tree/source/$name/Makefile"
tar --create --xz --file "$tree/usr/src/$name.tar.xz" --directory "$tree/source" "$name"
rm -r "$tree/source"
printf '%s\\n' "Package: $name" "Version: 6.1.999-1" "Architecture: all" "Maintainer: x <x@example.com>" \\
    "Description: x" >"$tree/DEBIAN/control"
dpkg-deb --build "$tree" "${name}_6.1.999-1_all.deb"
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that puts a mirror with such a source in place; it takes the settings olddefconfig adds."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "apt-get").write_text(APT_GET)
    (programs / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(kernel, "_NEEDED_BYTES", 0)
    monkeypatch.setattr(kernel, "require_tools", lambda: None)

    def put(settings: list[str]) -> None:
        (programs / "apt-get.makefile").write_text(MAKEFILE.replace("$(SETTINGS)", " ".join(settings)))

    return put


GOOD = [f"CONFIG_{name}=y" for name in kernel.BUILT_IN] + [f"CONFIG_{name}=m" for name in kernel.MODULES]


def test_a_kernel_is_fetched_built_and_packed_once(
    source: Callable[..., None], tmp_path: Path, progress: Progress, lines: list[str]
) -> None:
    source(GOOD)
    archive = kernel.build(tmp_path / "cache", MIRRORS, progress)
    assert archive == kernel.archive(tmp_path / "cache")
    with tarfile.open(archive) as packed:
        names = packed.getnames()
        assert {member.uid for member in packed} == {0}
        image = packed.extractfile("boot/vmlinuz-6.1.999")
        assert image is not None
        assert image.read() == b"instant-env Thu Jan  1 00:00:00 UTC 2026\n"
        config = packed.extractfile("boot/config-6.1.999")
        assert config is not None
        assert config.read().decode().startswith(kernel.CONFIG.read_text())
    assert "usr/lib/modules/6.1.999/kernel/xfs.ko" in names
    assert not [name for name in names if re.search("/(build|source)$", name)]
    assert any("kernel 6.1.999 is built" in line for line in lines)
    assert not list(tmp_path.glob("instant-env-kernel.*"))
    calls = (tmp_path / "bin" / "apt-get.log").read_text()
    assert kernel.build(tmp_path / "cache", MIRRORS, progress) == archive
    assert (tmp_path / "bin" / "apt-get.log").read_text() == calls, "the second time it is in the cache"


def test_a_source_that_has_moved_on_leaves_no_kernel(
    source: Callable[..., None], tmp_path: Path, progress: Progress
) -> None:
    source([line for line in GOOD if "NVME" not in line])
    (config := tmp_path / "config").write_text(
        "".join(f"{line}\n" for line in kernel.CONFIG.read_text().splitlines() if "NVME" not in line)
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kernel, "CONFIG", config)
        with pytest.raises(BuildError, match="lacks CONFIG_BLK_DEV_NVME=y"):
            kernel.build(tmp_path / "cache", MIRRORS, progress)
        assert not kernel.archive(tmp_path / "cache").exists()


def test_what_is_missing_is_named_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's header, too, and with the command that installs all of it."""
    for name in set(kernel.TOOLS) - {"flex", "bc"}:
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(kernel, "search_path", lambda: str(tmp_path))
    monkeypatch.setattr(kernel, "LIBELF", tmp_path / "libelf.h")
    with pytest.raises(
        MissingToolError, match=r"kernel of the al2023-like base: .*libelf\.h, bc, flex$"
    ) as caught:
        kernel.require_tools()
    assert caught.value.hint == "run: apt-get install bc flex libelf-dev"


def test_the_doctor_and_set_up_know_what_the_build_needs() -> None:
    (row,) = (row for row in requirements.TABLE if row.scope is requirements.Scope.STAND_IN)
    assert set(row.programs) == set(kernel.TOOLS) - {"apt-get", "apt-cache", "dpkg-deb"}
    assert row.files == ((str(kernel.LIBELF),),)
    assert {*kernel.TOOLS.values(), "libelf-dev"} - {"apt", "dpkg"} <= set(row.apt.split())
