"""Programs from npm packages, with native modules compiled here and the Node that runs them beside.

The result is one tar.gz: the package with what it needs, and Node at lib/node. Native modules are
compiled by this machine's compiler for this machine's architecture only.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from instant_env.arch import Arch
from instant_env.debian.command import BuildError, Runner
from instant_env.errors import MissingToolError
from instant_env.programs import glibc
from instant_env.programs.program import NpmSource
from instant_env.progress import Progress
from instant_env.requirements import find_program

#: The compiler, what node-gyp runs, and the header of kerberos' binding, with Debian's packages.
_TOOLS = {"g++": "g++", "make": "make", "python3": "python3", "pkg-config": "pkg-config"}
_HEADERS = {Path("/usr/include/gssapi/gssapi.h"): "libkrb5-dev"}
#: Wheels of Node say by these which machines they are for.
_PLATFORMS = {Arch.X86_64: "manylinux_2_28_x86_64", Arch.ARM64: "manylinux_2_28_aarch64"}
#: Node's names of architectures.
_NODE_ARCHS = {Arch.X86_64: "x64", Arch.ARM64: "arm64"}
#: Folders of binaries that packages bring for all kinds of machines, by process.platform and process.arch.
_PLATFORM = re.compile(
    "(aix|android|darwin|freebsd|linux|linuxmusl|netbsd|openbsd|sunos|win32)"
    "-(arm|arm64|ia32|loong64|mips64el|ppc64|ppc64le|riscv64|s390x|x64)"
)
#: Of packages below node_modules, not needed to run: their tests, whose keys and tokens nobody could tell
#: from real ones in an image's audit, and what people read. Licences stay.
_TESTS = ("test", "tests", "__tests__")
_UNREAD = re.compile(r"(README|CHANGELOG|HISTORY)(\..*)?|\..*\.yml", re.IGNORECASE)
#: Not needed to run: what compiling leaves, and maps for debuggers.
_LEFTOVERS = ("*.map", "*.o", "*.o.d", "*.a", "obj.target", ".deps", "*.tsbuildinfo")


class Maker:
    """Installs an npm package. ``directory`` has node.txt."""

    def __init__(self, source: NpmSource, version: str, directory: Path, arch: Arch) -> None:
        self._source, self._version, self._directory, self._arch = source, version, directory, arch

    def toolchain(self) -> str:
        if Arch.parse(platform.machine()) is not self._arch:
            raise MissingToolError(
                f"{self._source.package} has native modules, which are compiled for this machine's own "
                f"architecture only, and not for {self._arch}",
                hint=f"run the same command on an {self._arch} machine, or leave {self._arch} out",
            )
        missing = [package for tool, package in _TOOLS.items() if find_program(tool) is None]
        missing += [package for header, package in _HEADERS.items() if not header.is_file()]
        if missing:
            raise MissingToolError(
                f"compiling the native modules of {self._source.package} takes {', '.join(missing)}",
                hint=f"run: apt-get install {' '.join(missing)}",
            )
        result = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=False)
        return result.stdout

    def make(self, work: Path, runner: Runner, progress: Progress) -> Path:
        progress("fetching Node")
        node = self._node(work, runner)
        runner.environment.update(
            {
                "PATH": f"{work / 'bin'}:{node / 'bin'}:{runner.environment['PATH']}",
                # node-gyp would fetch headers otherwise.
                "npm_config_nodedir": str(node),
                "npm_config_cache": str(work / "npm-cache"),
                "npm_config_audit": "false",
                "npm_config_fund": "false",
                "npm_config_update_notifier": "false",
            }
        )
        npm = _npm(work / "bin", node)
        progress("fetching the package")
        runner.run([npm, "pack", "--silent", f"{self._source.package}@{self._version}"], directory=work)
        tree = self._unpack(work, runner)
        progress("installing what it needs, and compiling its native modules")
        runner.run([npm, "ci", "--omit=dev", "--foreground-scripts"], directory=tree)
        progress("packing")
        _tidy(tree, self._arch)
        for module in [*tree.rglob("*.node")]:
            glibc.check(module, self._source.glibc)
        shutil.copy2(node / "bin/node", tree / "lib/node")
        return _pack(tree, work / "program.tar.gz", Path(self._source.package).name)

    def _node(self, work: Path, runner: Runner) -> Path:
        """Node for the target, which is this machine's own architecture: with npm, and with headers."""
        runner.run(
            [
                sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes",
                "--only-binary=:all:", f"--platform={_PLATFORMS[self._arch]}", f"--target={work / 'node'}",
                f"--requirement={self._directory / 'node.txt'}",
            ]
        )  # fmt: skip
        (program,) = (work / "node").glob("*/bin/node")
        return program.parents[1]

    def _unpack(self, work: Path, runner: Runner) -> Path:
        """The package's own files, once their digest is the pinned one."""
        (archive,) = work.glob("*.tgz")
        digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if f"sha512-{digest}" != self._source.integrity:
            raise BuildError(
                f"{archive.name} has the integrity sha512-{digest}, not {self._source.integrity}",
                hint="check which registry npm uses; a new version needs a new digest in program.yml",
            )
        runner.run(["tar", "--extract", "--gzip", "--file", archive, "--directory", work])
        return work / "package"


def _npm(directory: Path, node: Path) -> Path:
    """The command `npm`, for us and for packages' own scripts. A wheel has no symbolic links, and what it has
    in their place does not find npm."""
    directory.mkdir()
    program = directory / "npm"
    script = node / "lib/node_modules/npm/bin/npm-cli.js"
    command = shlex.join([str(node / "bin/node"), str(script)])
    program.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    return program


def _tidy(tree: Path, arch: Arch) -> None:
    ours = f"linux-{_NODE_ARCHS[arch]}"
    for folder in [path for path in tree.rglob("*-*") if path.is_dir() and not path.is_symlink()]:
        if _PLATFORM.fullmatch(folder.name) and folder.name != ours:
            shutil.rmtree(folder, ignore_errors=True)
    for packages in [*tree.rglob("node_modules")]:
        for path in [*packages.rglob("*")]:
            if (path.name in _TESTS and path.is_dir()) or _UNREAD.fullmatch(path.name):
                _remove(path)
    for pattern in _LEFTOVERS:
        for path in [*tree.rglob(pattern)]:
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _pack(tree: Path, archive: Path, name: str) -> Path:
    """``tree`` as a tar.gz whose bytes depend on its files' names, modes and contents alone."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = "root"
        member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
        return member

    with archive.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as stream:  # noqa: SIM117
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as packed:
            packed.add(tree, arcname=name, filter=plain)  # sorted by name, as TarFile.add does
    return archive
