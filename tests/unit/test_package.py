"""Installing: the wheel runs outside the checkout, and set-up checks the hash of what it downloads."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from instant_env import __version__
from instant_env.settings import ROOT
from instant_env.toolchain import find_go


def run(*command: str | Path, cwd: Path, **environ: str) -> str:
    result = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=os.environ | environ, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", directory, cwd=ROOT)
    (path,) = directory.glob("instant_env-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel in it; dependencies are read from the one that runs the tests."""
    directory = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(directory, symlinks=True, with_pip=False)
    python = directory / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-index", "--no-deps", wheel, cwd=directory)
    (packages,) = (directory / "lib").glob("python*/site-packages")
    # A directory named in a .pth file is searched; .pth files in it, the checkout's one too, are not read.
    (packages / "dependencies.pth").write_text(f"{Path(pytest.__file__).parents[1]}\n")
    return directory


@pytest.mark.slow
def test_the_wheel_holds_no_module_called_tasks_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {
        "instant_env", "harness", f"instant_env-{__version__}.dist-info"
    }  # fmt: skip
    assert not [name for name in names if name.endswith("_test.go") or "/testdata/" in name]


@pytest.mark.slow
def test_an_installed_package_runs_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    def instant_env(*arguments: str) -> str:
        environ = {
            "XDG_CACHE_HOME": str(tmp_path / "cache"), "XDG_STATE_HOME": str(tmp_path / "state"),
            # Whoever installs the package has Go; here it may be in the checkout's environment alone.
            "PATH": f"{Path(find_go()).parent}:{os.environ['PATH']}",
        }  # fmt: skip
        return run(installed / "bin" / "instant-env", *arguments, cwd=tmp_path, **environ)

    before = sorted(installed.rglob("*.*"))
    assert instant_env("--version").strip() == f"instant-env {__version__}"
    verbs = instant_env("--list")
    assert "bake" in verbs
    assert "local.up" in verbs
    assert "custom-init" in instant_env("recipes")
    assert "minimal" in instant_env("recipe.show", "minimal")
    instant_env("init.build", "--arch", "x86_64")
    program = tmp_path / "cache" / "instant-env" / "build" / "x86_64" / "instant-init"
    assert __version__ in run(program, "--version", cwd=tmp_path)
    # Nothing was written into the package but compiled modules.
    after = sorted(path for path in installed.rglob("*.*") if "__pycache__" not in path.parts)
    assert after == [path for path in before if "__pycache__" not in path.parts]


@pytest.mark.slow
def test_an_installed_package_holds_the_files_that_code_reads(installed: Path, tmp_path: Path) -> None:
    code = """
from instant_env import settings
from instant_env.cloud import prices
from instant_env.cloud.account import roles
from instant_env.localec2.state import moto_api
from harness.figures import report
import os
print(settings.ROOT, os.environ["MOTO_AMIS_PATH"], prices._TABLE, report._TEMPLATES / "report.html.j2",
    roles.POLICIES, settings.ROOT / "experiments" / "README.md", settings.ROOT / "go.sum", sep="\\n")
print(settings.load().results_dir.resolve())
from instant_env.provenance import git_state
print(git_state())
"""
    # Environments are often made within a repository of their user's.
    repository = installed.parent
    run("git", "init", "--quiet", cwd=repository)
    author = ("-c", "user.name=x", "-c", "user.email=x@localhost")
    run("git", *author, "commit", "--quiet", "--allow-empty", "--message", "x", cwd=repository)
    *paths, results, commit = run(installed / "bin" / "python", "-c", code, cwd=tmp_path).splitlines()
    assert commit == "unknown"
    for path in paths:
        assert Path(path).is_relative_to(installed)
        assert Path(path).exists(), path
    assert results == str(tmp_path / "results")


@pytest.fixture
def bootstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """scripts/bootstrap.py, with a virtual environment of its own to install into and no index to ask."""
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "scripts" / "bootstrap.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "target"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    return module


def small_wheel(directory: Path) -> str:
    """Write a wheel of one module, and return the file's SHA-256."""
    path = directory / "pinned-1.0-py3-none-any.whl"
    files = {
        "pinned.py": b"",
        "pinned-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: pinned\nVersion: 1.0\n",
        "pinned-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {
        name: base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        for name, content in files.items()
    }
    record = "".join(f"{name},sha256={digests[name]},{len(content)}\n" for name, content in files.items())
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
        wheel.writestr("pinned-1.0.dist-info/RECORD", f"{record}pinned-1.0.dist-info/RECORD,,\n")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_setup_refuses_a_package_whose_hash_is_not_the_pinned_one(
    bootstrap: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = small_wheel(tmp_path)
    constraints = tmp_path / "constraints.txt"
    for pinned in ("0" * 64, digest):
        constraints.write_text(f"# made by hand\npinned==1.0 \\\n    --hash=sha256:{pinned}\n")
        pins = bootstrap.pins(path=constraints)
        if pinned == digest:
            bootstrap.pip_install(pins)
        else:
            with pytest.raises(bootstrap.SetupError, match="installing Python packages failed"):
                bootstrap.pip_install(pins)
            assert "DO NOT MATCH THE HASHES" in capsys.readouterr().err
        assert (tmp_path / "target" / "pinned.py").exists() == (pinned == digest)
    with pytest.raises(bootstrap.SetupError):
        bootstrap.pip_install(["pinned==1.0"])


def test_every_pin_has_hashes(bootstrap: ModuleType) -> None:
    pins = bootstrap.pins()
    assert len(pins) > 50
    assert not [pin for pin in pins if " --hash=sha256:" not in pin]
    (pip,) = bootstrap.pins("pip")
    assert pip.startswith("pip==")
