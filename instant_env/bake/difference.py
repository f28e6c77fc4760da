"""The differences between two images, by their manifests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from instant_env.bake import packages
from instant_env.cloud.images import list_baked
from instant_env.cloud.session import Cloud
from instant_env.errors import UsageError
from instant_env.settings import Settings

#: What two manifests are compared by, apart from steps and packages, and where that stands.
_FACTS = {
    "recipe": ("plan", "recipe"), "arch": ("plan", "arch"), "base": ("plan", "base"),
    "base AMI": ("base_image", "id"), "base name": ("base_image", "name"),
    "base date": ("base_image", "created"), "parameters": ("plan", "parameters"),
    "plan": ("plan", "hash"), "git revision": ("git_revision",), "method": ("method",),
    "cloud": ("cloud",), "created": ("created",),
}  # fmt: skip


def load(connect: Callable[[], Cloud], settings: Settings, name: str) -> dict[str, Any]:
    """The manifest of an AMI of ours, found by its tag, or of a file, for which nothing is connected to.

    Raises UsageError when there is none on this machine, or it is of another version.
    """
    path = Path(name)
    is_ami = not path.is_file()
    if is_ami:
        manifests = [image.manifest for image in list_baked(connect()) if image.id == name]
        if not manifests:
            raise UsageError(
                f"{name} is neither an AMI baked by instant-env nor a manifest file",
                hint="invoke amis lists them",
            )
        path = settings.state_dir / "manifests" / (manifests[0] or f"{name}.json")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        _ = manifest["packages"]["after"]["components"], manifest["plan"]["steps"], manifest["steps"]
    except OSError as error:
        raise UsageError(
            f"the manifest of {name} is not here: {error.strerror}: {path}",
            hint="it lies where the image was baked; copy it, and name the file",
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is not a manifest of this version", hint="bake the image again: --force"
        ) from error
    if is_ami:
        manifest["ami"] = name  # a published AMI has the manifest of the one it was made from
    return manifest


def _fact(manifest: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = manifest
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What is in one alone, or has another value, by name."""
    return {
        name: {"a": a.get(name), "b": b.get(name)}
        for name in dict.fromkeys([*a, *b])
        if a.get(name) != b.get(name)
    }


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """Facts, steps and packages that differ, and the times of all steps (seconds), as JSON-able data.

    In ``packages``, a value is [versions, bytes], null where there is none.
    """

    def facts(manifest: Mapping[str, Any]) -> dict[str, Any]:
        return {name: _fact(manifest, path) for name, path in _FACTS.items()}

    def steps(manifest: Mapping[str, Any]) -> dict[str, Any]:
        return {step["name"]: step["sha256"] for step in manifest["plan"]["steps"]}

    def times(manifest: Mapping[str, Any]) -> dict[str, float]:
        return {step["name"]: step["seconds"] for step in manifest["steps"]}

    def installed(manifest: Mapping[str, Any]) -> dict[str, Any]:
        versions = packages.sizes(manifest["packages"]["after"]["components"])
        return {name: list(one) for name, one in sorted(versions.items())}

    seconds_a, seconds_b = times(a), times(b)
    return {
        "a": a["ami"],
        "b": b["ami"],
        "facts": _changes(facts(a), facts(b)),
        "steps": _changes(steps(a), steps(b)),
        "packages": _changes(installed(a), installed(b)),
        "bytes": {"a": a["packages"]["after"]["bytes"], "b": b["packages"]["after"]["bytes"]},
        "seconds": {
            name: {"a": seconds_a.get(name), "b": seconds_b.get(name)}
            for name in dict.fromkeys([*seconds_a, *seconds_b])
        },
    }


def as_text(differences: Mapping[str, Any]) -> Iterator[str]:
    """`compare`'s result for people, line by line."""
    yield f"a: {differences['a']}   b: {differences['b']}"
    for name, change in differences["facts"].items():
        yield f"  {name}: {_as_word(change['a'])} -> {_as_word(change['b'])}"
    for name, change in differences["steps"].items():
        yield f"  step {name}: {_verdict(change)}"
    for name, change in differences["packages"].items():
        yield f"  package {name}: {_package(change)}"
    total = differences["bytes"]
    yield (
        f"packages: {len(differences['packages'])} differ, {_mib(total['a'])} -> {_mib(total['b'])} "
        f"({_mib(total['b'] - total['a'], sign=True)})"
    )
    for name, seconds in differences["seconds"].items():
        columns = ["     -  " if seconds[side] is None else f"{seconds[side]:6.1f} s" for side in ("a", "b")]
        yield f"  {name:16} {columns[0]} {columns[1]}"


def _as_word(value: Any) -> str:
    return "-" if value in (None, "", {}) else str(value)


def _verdict(change: Mapping[str, Any]) -> str:
    if change["a"] is None:
        return "added"
    return "gone" if change["b"] is None else "another content"


def _package(change: Mapping[str, Any]) -> str:
    a, b = change["a"], change["b"]
    if a is None:
        return f"{b[0]} added, {_mib(b[1], sign=True)}"
    if b is None:
        return f"{a[0]} gone, {_mib(-a[1], sign=True)}"
    return f"{a[0]} -> {b[0]}, {_mib(b[1] - a[1], sign=True)}"


def _mib(size_bytes: int, *, sign: bool = False) -> str:
    return f"{size_bytes / (1 << 20):{'+' if sign else ''}.1f} MiB"
