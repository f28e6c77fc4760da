"""The dnf side of the recipes: the scripts as rendered, run with the real dnf on packages that have AL2023's
names.

It shows what the solver does with our lists and our script, while a plugin talks as AL2023's do. It does not
show AL2023: see support.al2023.rpms.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from support.al2023 import rpms
from support.al2023.machine import RECIPES, render
from support.moved_machine import AS_ROOT, Machine

from instant_env.bake.recipe import ResolvedRecipe, resolve
from instant_env.localec2.stock.al2023_like.packages import PROTECTED, RENAMED, REQUIRES, closure, names
from instant_env.requirements import find_program


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """What the lists name, and all that it requires, installed as asked for by the real dnf."""
    if find_program("dnf") is None or find_program("rpmbuild") is None:
        pytest.fail(
            "dnf or rpmbuild is missing: make setup installs them, `invoke doctor` says how", pytrace=False
        )
    directory = tmp_path_factory.mktemp("al2023")
    recipe = resolve(RECIPES, "minimal", "dnf")
    packages = closure(
        {*recipe.remove, *recipe.keep, *REQUIRES, *PROTECTED, "amazon-linux-repo-s3", "e2fsprogs"}
    )
    rpms.build(directory / "repository", packages)
    rpms.install(directory / "root", directory / "repository", sorted(packages))
    return Machine(directory / "root", directory / "repository")


@pytest.fixture
def machine(stock: Machine, tmp_path: Path) -> Machine:
    """A copy of the stock machine, on which dnf and rpm are the real ones."""
    assert stock.repository is not None
    shutil.copytree(stock.root, tmp_path / "root", symlinks=True)
    (tmp_path / "root/etc/systemd/system").mkdir(parents=True)
    found = Machine(tmp_path / "root", stock.repository)
    options = " ".join(rpms.dnf_options(found.root, stock.repository))
    found.program("dnf", f'exec {find_program("dnf")} {options} "$@"')
    found.program("rpm", f'exec {find_program("rpm")} --root={found.root} "$@"')
    return found


def child(tmp_path: Path, **lists: dict[str, str]) -> ResolvedRecipe:
    """A recipe on top of `minimal` with lists of its own for dnf."""
    recipes = tmp_path / "recipes"
    shutil.copytree(RECIPES, recipes)
    (recipes / "child").mkdir()
    text = {"recipe": "child", "description": "x", "extends": "minimal"}
    (recipes / "child/recipe.yml").write_text(
        yaml.safe_dump({**text, **{key: {"dnf": value} for key, value in lists.items()}})
    )
    return resolve(recipes, "child", "dnf")


def test_every_name_is_one_of_the_amis_packages() -> None:
    """And all that stays is in the minimal AMI, which is a base too."""
    for name in ("minimal", "custom-init", "devbox", "container-host"):
        recipe = resolve(RECIPES, name, "dnf")
        removed = {RENAMED.get(package, package) for package in recipe.remove}
        assert removed <= set(names(minimal=False))
        assert set(recipe.keep) <= set(names(minimal=True))
        assert all(recipe.remove.values()), "each with its reason"
        assert all(recipe.keep.values()), "each with its reason"


@pytest.mark.slow
def test_strip_removes_its_list_and_what_only_that_needed(machine: Machine) -> None:
    recipe = resolve(RECIPES, "minimal", "dnf")
    before = machine.installed()
    wants = machine.root / "etc/systemd/system/sysinit.target.wants"
    wants.mkdir()
    (wants / "policy-routes@ens5.service").symlink_to("/usr/lib/systemd/system/policy-routes@.service")
    there = machine.write("usr/lib/systemd/system/chronyd.service", "[Unit]\n")
    (wants / "chronyd.service").symlink_to(there)
    (wants.parent / "masked.timer").symlink_to("/dev/null")
    result = machine.run(render("strip", recipe))
    assert result.returncode == 0, result.stdout + result.stderr
    assert [link.name for link in wants.iterdir()] == ["chronyd.service"], "a link to a unit that has gone"
    assert (wants.parent / "masked.timer").is_symlink()
    after = machine.installed()
    assert not set(recipe.remove) & after
    assert set(recipe.keep) <= after
    # Everything here counts as asked for, so nothing goes along that is not named.
    assert before - after == set(recipe.remove)
    again = machine.run(render("strip", recipe))
    assert again.returncode == 0, again.stderr
    assert machine.installed() == after
    # And sshd with what it executes is proved file by file.
    (machine.root / "usr/libexec/openssh/sshd-session").unlink()
    result = machine.run(render("strip", recipe))
    assert result.returncode == 1
    assert "/usr/libexec/openssh/sshd-session" in result.stderr.splitlines()[-1]


@pytest.mark.slow
def test_what_was_only_a_dependency_goes_and_what_is_kept_does_not(machine: Machine) -> None:
    """Where dependencies are marked as such, a kept package must not go as one that nobody needs."""
    # The EFI loader is one that dnf refuses to take along; nothing requires the other three.
    stays = {"chrony", "openssh-server", "sudo", "grub2-efi-x64-ec2", "amazon-linux-repo-s3", "e2fsprogs"}
    dependencies = ["python3-jsonpatch", "net-tools", "gdisk", *stays]
    marked = subprocess.run(
        [*AS_ROOT, machine.programs / "dnf", "-q", "mark", "remove", *dependencies],
        capture_output=True,
        check=False,
    )
    assert marked.returncode == 0, marked.stderr
    before = machine.installed()
    result = machine.run(render("strip", resolve(RECIPES, "minimal", "dnf")))
    assert result.returncode == 0, result.stdout + result.stderr
    gone = before - machine.installed()
    assert {"python3-jsonpatch", "net-tools", "gdisk"} <= gone
    assert not stays & gone


@pytest.mark.slow
def test_plugins_talk_on_the_stand_in_as_on_al2023(machine: Machine) -> None:
    """Without that, nothing here would show that the script reads the table and not a plugin's words."""
    resolved = subprocess.run(
        [*AS_ROOT, machine.programs / "dnf", "--assumeno", "remove", "words"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "\n      dnf upgrade --releasever=" in resolved.stdout.partition("Dependencies resolved")[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "message"),
    [
        ("pam", "openssh-server"),  # by way of systemd, too, which protects itself
        ("grub2-tools-minimal", "grub2-tools"),  # which no file protects: it is on our list
    ],
)
def test_a_transaction_that_touches_a_kept_package_is_not_run(
    machine: Machine, tmp_path: Path, package: str, message: str
) -> None:
    before = machine.installed()
    assert package in before
    result = machine.run(render("strip", child(tmp_path, remove={package: "to see what happens"})))
    assert result.returncode == 1
    assert re.search(message, result.stderr), result.stderr
    assert "strip: " in result.stderr.splitlines()[-1]
    assert machine.installed() == before


@pytest.mark.slow
def test_a_protected_package_goes_only_by_name(machine: Machine, tmp_path: Path) -> None:
    """`setup` has a file in protected.d, and nothing here needs it."""
    recipe = child(tmp_path, remove={"setup": "to see what happens"})
    before = machine.installed()
    result = machine.run(render("strip", recipe))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "setup" in before - machine.installed()


@pytest.mark.slow
def test_a_base_without_a_kept_package_is_refused_before_anything(machine: Machine, tmp_path: Path) -> None:
    before = machine.installed()
    result = machine.run(render("strip", child(tmp_path, keep={"telnet-server": "nostalgia"})))
    assert result.returncode == 1
    assert "the base lacks telnet-server, which has to stay (nostalgia)" in result.stderr
    assert machine.installed() == before
