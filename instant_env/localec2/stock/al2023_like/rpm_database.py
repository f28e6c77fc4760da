"""Runs in the stand-in's chroot: makes an rpm database whose packages own files that are there already.

``python3 rpm_database.py TABLE`` reads a JSON list of packages: ``name``, ``requires`` and ``provides``,
``debian`` (packages of Debian whose files it owns), ``paths`` (globs of files besides), ``protected``,
``preun`` and ``postun`` (shell). One specification has them all; rpmbuild packs the files as they are, and
``rpm --justdb`` enters the packages without unpacking anything, so that ``rpm --verify`` agrees and a removal
by dnf deletes the files.

A package that has units of systemd gets the %preun that Fedora's macro %systemd_preun writes.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

#: A symbolic link to /: rpmbuild refuses / itself as the tree that it packs from.
TREE = "/tmp/stock/tree"  # noqa: S108 (inside the chroot)
TOP = Path("/tmp/stock/rpm")  # noqa: S108
#: Names that a list of files cannot hold as they are.
ODD = re.compile(r"""[\s*?\[\]{}%"'\\]""")
LEFT_OUT = ("/usr/share/doc/", "/usr/share/man/", "/usr/share/lintian/", "/usr/share/locale/")


def debian_files(package: str) -> list[str]:
    """Files of an installed package of Debian, by where they really are (/lib is /usr/lib)."""
    result = subprocess.run(["dpkg", "-L", package], capture_output=True, text=True, check=True)
    return result.stdout.splitlines()


def real(path: str) -> str | None:
    """The path with its directory resolved; None for what is no file or is not to be owned.

    A link to a directory is not: dpkg lists /lib as a directory, where it is a link to usr/lib, and the
    removal of a package that owned it took the dynamic loader away from everybody.
    """
    directory, name = os.path.split(path)
    resolved = f"{os.path.realpath(directory).rstrip('/')}/{name}"
    file = Path(resolved)
    if file.is_dir() or not (file.is_symlink() or file.is_file()):
        return None
    if ODD.search(resolved) or resolved.startswith(LEFT_OUT):
        return None
    return resolved


def files_of(package: dict[str, Any], taken: set[str]) -> list[str]:
    paths = [path for name in package["debian"] for path in debian_files(name)]
    for pattern in package["paths"]:
        matches = [str(path) for path in Path("/").glob(pattern.lstrip("/"))]
        if not matches:
            raise SystemExit(f"{package['name']}: no file {pattern}")
        paths += matches
    owned = sorted({path for path in map(real, paths) if path} - taken)
    taken.update(owned)
    return owned


def scriptlets(package: dict[str, Any], files: list[str]) -> str:
    name = package["name"]
    units = [
        Path(file).name
        for file in files
        if file.startswith("/usr/lib/systemd/system/")
        and re.search(r"[^@]\.(service|socket|timer|path)$", file)
        and not Path(file).is_symlink()
    ]
    preun = package.get("preun", "")
    if units:
        preun += (
            "if [ $1 -eq 0 ] && [ -x /usr/bin/systemctl ]; then\n"
            f"    systemctl --no-reload disable --now {' '.join(units)} >/dev/null 2>&1 || :\nfi\n"
        )
    text = f"%preun -n {name}\n{preun}" if preun else ""
    if postun := package.get("postun", ""):
        text += f"%postun -n {name}\n{postun}"
    return text


def specification(packages: list[dict[str, Any]]) -> str:
    taken: set[str] = set()
    parts = []
    # The most particular first: what a package names by path is not what the remainder of another one is.
    for package in sorted(packages, key=lambda one: not one["paths"]):
        name = package["name"]
        if package["protected"]:
            file = Path(f"/etc/dnf/protected.d/{name}.conf")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{name}\n")
            package["paths"] = [*package["paths"], str(file)]
        files = files_of(package, taken)
        relations = "AutoReqProv: no\n"  # of each package: it is not inherited
        relations += "".join(f"Requires: {one}\n" for one in package["requires"])
        relations += "".join(f"Provides: {one}\n" for one in package["provides"])
        parts.append(
            f"%package -n {name}\nSummary: {name} (stand-in)\n{relations}%description -n {name}\n{name}\n"
            f"{scriptlets(package, files)}%files -n {name}\n" + "".join(f"{file}\n" for file in files)
        )
    return (
        "Name: stand-in\nVersion: 2023\nRelease: 1.standin\nSummary: x\nLicense: MIT\n"
        f"%description\nx\n%install\n{''.join(parts)}"
    )


def main(table: str) -> None:
    packages = json.loads(Path(table).read_text(encoding="utf-8"))
    Path(TREE).symlink_to("/")
    TOP.mkdir()
    spec = TOP / "all.spec"
    spec.write_text(specification(packages), encoding="utf-8")
    nothing = (
        "__spec_install_pre", "__spec_install_post", "__os_install_post", "__arch_install_post",
        "__spec_clean_body", "__check_files",
    )  # fmt: skip
    defines = {
        "_topdir": TOP, "_rpmdir": TOP / "made", "_binary_payload": "w0.gzdio", "_build_id_links": "none",
        "_missing_build_ids_terminate_build": "0", "_unpackaged_files_terminate_build": "0",
        **dict.fromkeys(nothing, "%{nil}"),
    }  # fmt: skip
    options = [part for name, value in defines.items() for part in ("--define", f"{name} {value}")]
    subprocess.run(
        ["rpmbuild", "-bb", "--quiet", "--noclean", "--buildroot", TREE, *options, spec], check=True
    )
    files = sorted((TOP / "made").rglob("*.rpm"))
    subprocess.run(
        [
            "rpm",
            "--force-debian",
            "--install",
            "--justdb",
            "--noscripts",
            "--nosignature",
            "--ignoresize",
            *files,
        ],
        check=True,
    )
    count = subprocess.run(["rpm", "-qa"], capture_output=True, text=True, check=True).stdout.count("\n")
    if count != len(packages):
        raise SystemExit(f"the database has {count} packages, not {len(packages)}")


if __name__ == "__main__":
    main(sys.argv[1])
