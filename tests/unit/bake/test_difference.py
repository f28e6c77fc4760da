"""The manifest, its packages, and what differs between two of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.pretend_bakery import Bakery

from instant_env.bake import difference, packages
from instant_env.bake.recipe import load_base
from instant_env.errors import UsageError
from instant_env.settings import ROOT

pytest_plugins = ("support.pretend_bakery",)
RECIPES = ROOT / "recipes"


def test_lists_of_both_package_managers_become_components() -> None:
    """The purls are those of purl-spec's examples: an epoch is a part of a deb's version, a qualifier of an
    rpm's."""
    debian, amazon = load_base(RECIPES, "debian-12"), load_base(RECIPES, "al2023")
    (attr, curl) = packages.parse(
        "curl\t7.50.3-1\ti386\t10\t1024\tinstalled\ngone\t1\tall\t\t1024\tconfig-files\n"
        "attr\t1:2.4.47-2\tamd64\t81\t1024\tinstalled\n"
    )
    assert curl.component(debian)["purl"] == "pkg:deb/debian/curl@7.50.3-1?arch=i386"
    assert attr.component(debian)["purl"] == "pkg:deb/debian/attr@1%3A2.4.47-2?arch=amd64"
    assert attr.size_bytes == 81 * 1024
    (openssl,) = packages.parse(
        "openssl\t1:3.0.8-1.amzn2023\tx86_64\t1917\t1\tinstalled\ngpg-pubkey\tx-y\t(none)\t0\t1\tinstalled\n"
    )
    assert openssl.component(amazon)["purl"] == "pkg:rpm/amzn/openssl@3.0.8-1.amzn2023?arch=x86_64&epoch=1"
    assert packages.sizes([openssl.component(amazon)]) == {"openssl": ("1:3.0.8-1.amzn2023", 1917)}
    for text in ("", "half a line\n", "a\t1\tall\tmany\t1024\tinstalled\n"):
        with pytest.raises(packages.PackageListError):
            packages.parse(text)


@pytest.mark.slow
def test_an_images_manifest_is_named_by_its_tag_and_two_are_compared(bakery: Bakery) -> None:
    a = bakery.bake()
    assert a.manifest_path is not None
    manifest = json.loads(a.manifest_path.read_text())
    assert a.image.manifest == a.manifest_path.name == f"{a.image.name}.json"
    assert manifest["base_image"]["name"] == "first-base"
    before, after = manifest["packages"]["before"], manifest["packages"]["after"]
    assert (before["count"], after["count"]) == (2, 1)
    assert before["bytes"] - after["bytes"] == 2600 * 1024
    bom = json.loads(a.manifest_path.with_suffix(".cdx.json").read_text())
    assert bom["bomFormat"] == "CycloneDX"
    assert bom["components"] == after["components"]
    assert bom["metadata"]["component"]["version"] == a.image.id

    bakery.new_base("second-base")
    script = bakery.settings.recipes_dir / "pretend" / "first.sh.j2"
    script.write_text("true really\n")
    bakery.guest.listed += 1  # the image keeps what it removed before
    b = bakery.bake()

    def load(name: str) -> dict[str, object]:
        return difference.load(lambda: bakery.cloud, bakery.settings, name)

    found = difference.compare(load(a.image.id), load(b.image.id))
    assert found["facts"]["base name"] == {"a": "first-base", "b": "second-base"}
    assert {"plan", "base AMI", "created"} <= set(found["facts"])
    assert "recipe" not in found["facts"]
    assert list(found["steps"]) == ["first"]
    assert found["packages"] == {"cloud-init": {"a": None, "b": ["22.4.2-1+deb12u3", 2600 * 1024]}}
    assert {"first", "seal", "verify"} <= set(found["seconds"])
    text = "\n".join(difference.as_text(found))
    assert "package cloud-init: 22.4.2-1+deb12u3 added, +2.5 MiB" in text
    assert "step first: another content" in text
    assert difference.compare(load(str(a.manifest_path)), load(a.image.id))["facts"] == {}

    with pytest.raises(UsageError, match="is neither an AMI baked by instant-env nor a manifest file"):
        load("ami-00000000000000000")
    a.manifest_path.unlink()
    with pytest.raises(UsageError, match=r"the manifest of ami-\w+ is not here"):
        load(a.image.id)


def test_a_file_that_is_no_manifest_says_so(bakery: Bakery, tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text('{"schema_version": 1}')
    with pytest.raises(UsageError, match="is not a manifest of this version"):
        difference.load(lambda: bakery.cloud, bakery.settings, str(path))
