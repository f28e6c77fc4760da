"""How lists look: tables for people, dicts for programs, exports for shells."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from instant_env.cli.verb import reporter, say, show
from instant_env.cloud.account.findings import Finding
from instant_env.cloud.images import BakedImage
from instant_env.cloud.removal import Removal
from instant_env.errors import UsageError
from instant_env.localec2_settings import LocalEc2Settings

if TYPE_CHECKING:
    from instant_env.localec2.starter import Endpoint, Status
    from instant_env.publish.transfer import Standing


def age(since: datetime, now: datetime | None = None) -> str:
    """A short age: ``42 s``, ``17 min``, ``5 h``, ``12 d``."""
    seconds = max(0, int(((now or datetime.now(UTC)) - since).total_seconds()))
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def image_row(image: BakedImage) -> dict[str, Any]:
    """One AMI for programs."""
    return {
        "ami": image.id,
        "name": image.name,
        "state": image.state,
        "verified": image.verified,
        "recipe": image.recipe,
        "arch": image.arch.value,
        "base": image.base,
        "base_ami": image.base_ami,
        "parent_ami": image.parent_ami or None,
        "created": image.created.isoformat(),
        "size_gib": image.size_gib,
        "plan_hash": image.plan_hash,
        "login_user": image.login_user,
        "snapshots": list(image.snapshot_ids),
    }


def finding_table(findings: Sequence[Finding]) -> Table:
    """A checklist of an account: what needs attention is marked."""
    table = Table("", "what", "which", "state", "detail", box=None)
    for one in findings:
        mark = {"trouble": "!", "unknown": "?"}.get(one.state, "")
        table.add_row(mark, one.what, one.name, one.state, one.detail)
    return table


def recipe_table(recipes: Sequence[Mapping[str, Any]]) -> Table:
    """Recipes for people; a parameter that must be given is marked with *."""
    table = Table("recipe", "extends", "bases", "parameters (* needed)", "description", box=None)
    for recipe in recipes:
        parameters = [
            name + ("" if "default" in declared else "*") for name, declared in recipe["parameters"].items()
        ]
        table.add_row(
            recipe["recipe"], " < ".join(recipe["lineage"][1:]), " ".join(recipe["families"]),
            " ".join(parameters), recipe["description"],
        )  # fmt: skip
    return table


def image_table(images: Sequence[BakedImage]) -> Table:
    """AMIs for people."""
    table = Table("recipe", "arch", "base", "age", "size", "plan", "state", box=None)
    table.add_column("ami", no_wrap=True)
    for image in images:
        table.add_row(
            image.recipe, image.arch.value, image.base, age(image.created), f"{image.size_gib} GiB",
            image.plan_hash[:12], image.state, image.id,
        )  # fmt: skip
    return table


def removal_table(removals: Sequence[Removal], caption: str) -> Table:
    """What clean found, with the reasons."""
    table = Table("kind", box=None, title=caption, title_justify="left")
    table.add_column("id", no_wrap=True)
    table.add_column("name", overflow="fold")
    table.add_column("reason")
    for removal in removals:
        table.add_row(removal.kind, removal.id, removal.name, removal.reason)
    return table


def publish_line(standing: Standing) -> Text:
    """How far a publication is, in one line."""
    share = 100 * standing.done // standing.total if standing.total else 100
    text = f"{standing.done} of {standing.total} blocks ({share} %), {standing.skipped} of them zeros"
    return Text(text, "dim")


def publish_plan(plan: dict[str, Any]) -> list[str]:
    """What a publication would write."""
    lines = [f"{plan['source']} ({plan['recipe']}, {plan['arch']}) as {plan['name']}"]
    lines += [
        f"  {volume['device']}: {volume['size_gib']} GiB, {volume['blocks']} blocks with data"
        for volume in plan["volumes"]
    ]
    share = 100 - 100 * plan["blocks_with_data"] / plan["blocks"]
    return [*lines, f"  at most {plan['bytes_at_most'] / 1e6:.0f} MB; {share:.1f} % of the blocks are holes"]


def publish_summary(image: dict[str, Any]) -> str:
    """What a image did."""
    if image["reused"]:
        return f"{image['ami']} is {image['source']}, published before"
    skipped = 100 * image["blocks_skipped"] / image["blocks"]
    return (
        f"{image['ami']} ({image['recipe']}, {image['arch']}) published from {image['source']} in "
        f"{image['seconds']:.0f} s: {image['bytes_written'] / 1e6:.0f} MB, {image['mb_per_s']:.0f} MB/s, "
        f"{skipped:.1f} % of the blocks skipped"
    )


def confirmed(question: str) -> bool:
    """Ask on a terminal; anywhere else the answer is no."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    reporter().rest()
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


#: What would lead a client elsewhere, or tell it of another account.
_OTHER_ACCOUNTS = (
    "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_EC2", "AWS_ENDPOINT_URL_SSM",
    "AWS_ENDPOINT_URL_STS", "AWS_ENDPOINT_URL_IAM", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
)  # fmt: skip


def shell_exports(endpoint: Endpoint) -> str:
    """Exports that any AWS client understands (AWS SDKs reference: service-specific endpoints)."""
    values = {
        "AWS_ENDPOINT_URL": endpoint.url,
        "AWS_ACCESS_KEY_ID": endpoint.access_key_id,
        "AWS_SECRET_ACCESS_KEY": endpoint.secret_access_key,
        "AWS_DEFAULT_REGION": endpoint.region,
        "AWS_REGION": endpoint.region,
    }
    lines = [f"export {name}={shlex.quote(value)}" for name, value in values.items()]
    # Whatever proxy there is, it is for the world outside; what was excepted before stays so.
    lines += [
        f'export {name}="127.0.0.1,localhost${{{name}:+,${name}}}"' for name in ("no_proxy", "NO_PROXY")
    ]
    return "\n".join([*lines, f"unset {' '.join(_OTHER_ACCOUNTS)}"])


def status_dict(status: Status) -> dict[str, Any]:
    """Status for programs; no secrets."""
    fields: dict[str, Any] = status.model_dump(
        mode="json", exclude={"endpoint": {"secret_access_key", "admin_token"}}
    )
    return fields


def fault_line(fault: dict[str, Any]) -> str:
    """One fault for people: its id, its kind, and what it is about."""
    rest = ", ".join(f"{name} {value}" for name, value in fault.items() if name not in ("id", "kind"))
    return f"{fault['id']}  {fault['kind']}: {rest}"


def switch_values(text: str) -> dict[str, Any]:
    """``late_ms=300,spot_role=false`` as a mapping. Raises UsageError for what has no value."""
    values: dict[str, Any] = {}
    for part in filter(None, (item.strip() for item in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"--set has {part!r} without a value", hint="for example: late_ms=300")
        values[name] = value
    return values


def switches(strictness: LocalEc2Settings) -> Table:
    """The switches of localec2 with their values; * marks those that are not a user's defaults."""
    table = Table("switch", "value", "what it is about", box=None)
    for name, field in LocalEc2Settings.model_fields.items():
        value = getattr(strictness, name)
        text = str(value).lower() if isinstance(value, bool) else str(value)
        table.add_row(name, text + "*" * (value != field.default), field.description)
    return table


def print_status(status: Status) -> None:
    """Status for people."""
    if status.endpoint is None:
        say("localec2 is not running; start it: invoke local.up")
        return
    endpoint = status.endpoint
    say(f"localec2 at {endpoint.url}, pid {endpoint.pid}, accelerator {endpoint.accelerator}")
    say(f"state in {endpoint.state_dir}; SSH of machines on port {endpoint.ssh_port}; {status.images} AMIs")
    if status.low_disk_space:
        say("the disk is full: machines are paused until there is space")
    for fault in status.faults:
        say(f"fault on purpose: {fault_line(fault)}")
    if not status.instances:
        say("no machines")
        return
    table = Table("instance", "state", "type", "address", box=None)
    for instance in status.instances:
        table.add_row(instance.id, instance.state, instance.type, instance.address or "-")
    show(table)
