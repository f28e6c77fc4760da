"""What is installed on a machine, as CycloneDX components (CycloneDX 1.6, https://cyclonedx.org/docs/1.6/json)."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from instant_env.bake.recipe import Base, Family
from instant_env.errors import InstantEnvError

#: Prints a line per package: name, version, architecture, size and what one of that size counts, status.
#: dpkg-query(1) prints Installed-Size in KiB, also for packages of which only the configuration is left.
LIST_COMMANDS: dict[Family, list[str]] = {
    "apt": [
        "dpkg-query", "--show", "--showformat",
        r"${Package}\t${Version}\t${Architecture}\t${Installed-Size}\t1024\t${db:Status-Status}\n",
    ],
    "dnf": [
        "rpm", "--query", "--all", "--queryformat",
        r"%{NAME}\t%|EPOCH?{%{EPOCH}:}|%{VERSION}-%{RELEASE}\t%{ARCH}\t%{SIZE}\t1\tinstalled\n",
    ],
}  # fmt: skip

_SIZE = "instant-env:installed-size-bytes"


class PackageListError(InstantEnvError):
    """The package manager's output cannot be parsed."""


@dataclass(frozen=True, order=True)
class Package:
    """One installed package; ``arch`` is the package manager's name of it."""

    name: str
    version: str
    arch: str
    size_bytes: int

    def component(self, base: Base) -> dict[str, Any]:
        """As CycloneDX has it; what names it is a package URL (purl-spec, types deb and rpm)."""
        kind = {"apt": "deb", "dnf": "rpm"}[base.family]
        version, epoch = self.version, ""
        if kind == "rpm" and ":" in version:  # there the epoch is a qualifier
            epoch, version = version.split(":", 1)
        qualifiers = f"arch={quote(self.arch)}" + (f"&epoch={epoch}" if epoch else "")
        purl = f"pkg:{kind}/{base.vendor}/{quote(self.name)}@{quote(version)}?{qualifiers}"
        return {
            "type": "library",
            "bom-ref": purl,
            "name": self.name,
            "version": self.version,
            "purl": purl,
            "properties": [{"name": _SIZE, "value": str(self.size_bytes)}],
        }


def parse(text: str) -> list[Package]:
    """The packages that a list command printed, by name. Raises PackageListError for any other line."""
    packages = []
    for line in text.splitlines():
        try:
            name, version, arch, size, unit, status = line.split("\t")
            if status == "installed" and name != "gpg-pubkey":  # rpm lists keys among the packages
                packages.append(Package(name, version, arch, int(size or 0) * int(unit)))
        except ValueError as error:
            raise PackageListError(f"no line of a package list: {line!r}") from error
    if not packages:
        raise PackageListError("the package manager lists no packages")
    return sorted(packages)


def listing(packages: Sequence[Package], base: Base) -> dict[str, Any]:
    """For the manifest: how many, how large, and each."""
    return {
        "count": len(packages),
        "bytes": sum(package.size_bytes for package in packages),
        "components": [package.component(base) for package in packages],
    }


def sizes(components: Sequence[dict[str, Any]]) -> dict[str, tuple[str, int]]:
    """Version and size in bytes by name, of a manifest's components. Where there are several of a name
    (architectures, kernels), versions are joined and sizes added."""
    by_name: dict[str, tuple[str, int]] = {}
    for component in components:
        size = sum(int(entry["value"]) for entry in component["properties"] if entry["name"] == _SIZE)
        version, before = by_name.get(component["name"], ("", 0))
        joined = ", ".join(filter(None, (version, component["version"])))
        by_name[component["name"]] = (joined, before + size)
    return by_name


def bill_of_materials(image_id: str, image_name: str, components: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A whole CycloneDX document for an image."""
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "metadata": {
            "timestamp": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            "component": {
                "type": "operating-system", "bom-ref": image_id, "name": image_name, "version": image_id,
            },
        },
        "components": list(components),
    }  # fmt: skip
