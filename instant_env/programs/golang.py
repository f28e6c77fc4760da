"""Programs from Go modules: static binaries, built for either architecture on any machine.

The module's go.sum is checked by Go before anything is compiled, wherever GOPROXY lets it come from.
"""

from __future__ import annotations

from pathlib import Path

from instant_env import toolchain
from instant_env.arch import Arch
from instant_env.debian.command import Runner
from instant_env.programs.program import GoSource
from instant_env.progress import Progress


class Maker:
    """Builds a Go program. ``directory`` has its go.mod and go.sum."""

    def __init__(self, source: GoSource, directory: Path, arch: Arch) -> None:
        self._source, self._directory, self._arch = source, directory, arch

    def toolchain(self) -> str:
        return toolchain.go_version()

    def make(self, work: Path, runner: Runner, progress: Progress) -> Path:
        variables = [f"-X={name}={value}" for name, value in sorted(self._source.variables.items())]
        modules = packages = 0

        def on_line(line: str) -> None:
            nonlocal modules, packages
            if line.startswith("go: downloading "):
                modules += 1
                progress(f"{modules} modules fetched")
            elif not line.startswith(("go: ", "#")):  # -v names each package as it is compiled
                packages += 1
                progress(f"{packages} packages compiled")

        runner.environment.update(toolchain.go_environment(self._arch), GOWORK="off")
        runner.run(
            [
                toolchain.find_go(), "build", "-v", "-trimpath", "-buildvcs=false",
                f"-ldflags={' '.join(['-s', '-w', '-buildid=', *variables])}",
                "-o", work / "program", self._source.package,
            ],
            directory=self._directory, on_line=on_line,
        )  # fmt: skip
        return work / "program"
