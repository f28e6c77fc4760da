"""Debian's packages of any architecture, fetched and unpacked, never installed and never run.

apt does what it is good at (mirrors, proxies, signatures) in a directory of its own, so neither root nor the
host's package lists are touched, and a foreign architecture is as good as the host's.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from instant_env.arch import Arch
from instant_env.debian.command import BuildError, Runner

#: Tools used here, with the Debian packages that have them.
TOOLS = {"apt-get": "apt", "apt-cache": "apt", "dpkg-deb": "dpkg"}


class Archive:
    """The packages of one architecture that ``sources`` (lines of sources.list) offer."""

    def __init__(self, runner: Runner, directory: Path, arch: Arch, sources: str) -> None:
        """``directory`` must be there; it holds lists and packages, and is the caller's to remove."""
        self.runner = runner
        self._packages = directory / "packages"
        for path in (directory / "lists/partial", directory / "cache/archives/partial", self._packages):
            path.mkdir(parents=True)
        status, source_list = directory / "status", directory / "sources.list"
        status.touch()
        source_list.write_text(sources, encoding="utf-8")
        settings = {
            "Dir::State": directory,
            "Dir::State::lists": directory / "lists",
            "Dir::State::status": status,
            "Dir::Cache": directory / "cache",
            "Dir::Etc::sourcelist": source_list,
            "Dir::Etc::sourceparts": "-",
            "APT::Architecture": arch.debian,
            "APT::Architectures": arch.debian,
            # As root apt drops its rights for the download, to a user that cannot see our directory.
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
        }
        self._options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]

    def update(self) -> None:
        """Fetch the lists, checked against the keys that the sources name."""
        self.runner.run(["apt-get", *self._options, "--quiet", "--error-on=any", "update"])

    def dependency(self, package: str, prefix: str) -> str:
        """The package that ``package`` depends on whose name begins with ``prefix``.

        Debian's kernels have their version in the name, and a package without one that depends on the latest.
        """
        dependencies: list[str] = []

        def on_line(line: str) -> None:
            kind, _, name = line.strip().partition(": ")
            if kind == "Depends" and name.startswith(prefix):
                dependencies.append(name)

        self.runner.run(["apt-cache", *self._options, "depends", "--important", package], on_line=on_line)
        if len(dependencies) != 1:
            raise BuildError(f"{package} depends on {len(dependencies)} packages named {prefix}*, not on one")
        return dependencies[0]

    def unpack(self, packages: Iterable[str], tree: Path) -> list[str]:
        """Download ``packages`` and unpack them into ``tree``; returns their file names (with versions)."""
        self.runner.run(
            ["apt-get", *self._options, "--quiet", "download", *packages], directory=self._packages
        )
        files = sorted(self._packages.glob("*.deb"))
        tree.mkdir(exist_ok=True)
        for file in files:
            self.runner.run(["dpkg-deb", "--extract", file, tree])
        return [file.name for file in files]
