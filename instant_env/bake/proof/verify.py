"""Prove an image: boot it, log in with a fresh key, run its recipe's checks, then audit its snapshot's bytes.

The audit reads a volume made from the image's snapshot, attached to the machine that just booted: what is
in the image, free space included, untouched by that boot.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from instant_env.bake.builder import Machine, Order, machine
from instant_env.bake.execute import WORK_DIR, StepLog, make_work_dir, put_bytes, run_as_root
from instant_env.bake.proof.checking import run_checks
from instant_env.bake.proof.checks import Check
from instant_env.bake.proof.verdict import Verdict, VerifyError
from instant_env.cloud import volumes
from instant_env.cloud.images import BakedImage
from instant_env.cloud.session import Cloud, cloud_error
from instant_env.progress import Doing, Progress
from instant_env.waiting import wait_until

#: The device name in the request; Nitro and localec2 show it as NVMe, found by the volume's serial.
_AUDIT_DEVICE = "/dev/sdf"
#: Of a sequential reader the kernel asks for so much ahead, in requests of its device's size: dozens are in
#: flight. EBS answers each new block of a snapshot after milliseconds, and one at a time would be slow.
_READ_AHEAD_KIB = 4096
#: What the audit may take: some time for any image, and as long as reading takes at a rate below the slowest
#: that was seen of a volume whose blocks still come out of a snapshot.
_AUDIT_LEAST_S, _AUDIT_BYTES_PER_S = 600, 5_000_000


def _device_of(machine: Machine, volume_id: str, log: StepLog, timeout_s: float = 60.0) -> str:
    """The NVMe block device whose serial is the volume's id (EBS puts it there without the dash)."""
    expected_serial = volume_id.replace("-", "")

    def device() -> str:
        serials = run_as_root(
            machine.connection, ["sh", "-c", "grep -H . /sys/class/block/nvme*n1/device/serial || true"], log
        )
        for line in serials.splitlines():
            path, _, serial = line.partition(":")
            if serial.strip() == expected_serial:
                return f"/dev/{Path(path).parent.parent.name}"
        return ""

    if path := wait_until(device, timeout_s, 0.25):
        return path
    raise VerifyError(f"volume {volume_id} did not appear in the machine within {timeout_s:.0f} s")


def _timeline(machine: Machine, log: StepLog) -> dict[str, Any]:
    text = run_as_root(machine.connection, ["cat", "/run/instant-init/timeline.json"], log)
    try:
        timeline: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise VerifyError(f"the guest's timeline is not JSON: {error}") from error
    return timeline


def _audit(
    cloud: Cloud, machine: Machine, image: BakedImage, imagetool: Path, forbidden: Sequence[str],
    allow_modes: Sequence[str], allow_accounts: Sequence[str], run_id: str, expires_at: datetime,
    log: StepLog,
) -> tuple[dict[str, Any], float]:  # fmt: skip
    """The report, and the seconds that the audit itself took."""
    with ExitStack() as stack:
        volume_id = stack.enter_context(
            volumes.temporary_volume(
                cloud, image.root_snapshot_id, machine.availability_zone, run_id=run_id, expires_at=expires_at
            )
        )
        stack.enter_context(volumes.attached(cloud, volume_id, machine.instance_id, _AUDIT_DEVICE))
        device = _device_of(machine, volume_id, log)
        make_work_dir(machine.connection, log)
        put_bytes(machine.connection, imagetool.read_bytes(), f"{WORK_DIR}/imagetool")
        run_as_root(machine.connection, ["chmod", "0755", f"{WORK_DIR}/imagetool"], log)
        command = [f"{WORK_DIR}/imagetool", "audit", "--device", device, "--json"]
        for account in (image.login_user, *allow_accounts):
            command += ["--allow-user", account]
        for path in allow_modes:
            command += ["--allow-mode", path]
        for text in forbidden:
            command += ["--forbid", text]
        # Exit 1 means findings, which are in the JSON.
        script = (
            f"echo {_READ_AHEAD_KIB} >/sys/class/block/{Path(device).name}/queue/read_ahead_kb || true; "
            f"{shlex.join(command)} >{WORK_DIR}/audit.json || [ $? -eq 1 ]"
        )
        started = time.monotonic()
        run_as_root(machine.connection, ["sh", "-c", script], log, timeout_s=audit_timeout_s(image.root_gib))
        seconds = time.monotonic() - started
        report: dict[str, Any] = json.loads(
            run_as_root(machine.connection, ["cat", f"{WORK_DIR}/audit.json"], log)
        )
        return report, seconds


def audit_timeout_s(size_gib: int) -> int:
    """How long the audit of a volume of this size may take."""
    return _AUDIT_LEAST_S + (size_gib << 30) // _AUDIT_BYTES_PER_S


def judge(audit: Mapping[str, Any], image_id: str, log_path: Path) -> None:
    """Raise VerifyError when the audit found anything; name the first few, each with its reason."""
    findings = audit["findings"]
    if not findings:
        return
    examples = "; ".join(
        f"{finding['rule']} in {finding.get('path') or 'free space at byte ' + str(finding.get('offset'))}"
        f" ({finding['reason']})"
        for finding in findings[:5]
    )
    count = len(findings) + audit.get("findings_dropped", 0)
    raise VerifyError(
        f"the audit of {image_id} has {count} finding{'s' * (count != 1)}: {examples}",
        hint=f"all of them: {log_path}",
    )


def verify(
    cloud: Cloud,
    image: BakedImage,
    *,
    order: Order,
    imagetool: Path,
    forbidden: Sequence[str],
    checks: Sequence[Check] = (),
    allow_modes: Sequence[str] = (),
    allow_accounts: Sequence[str] = (),
    log: StepLog,
    progress: Progress,
) -> Verdict:
    """Boot ``image`` as ordered, log in with a fresh key, check user and sudo, run ``checks``, audit. Raises
    VerifyError.

    ``forbidden`` are texts that must not stand anywhere in the image's bytes (the builder's key),
    ``allow_modes`` paths that may be setuid, world-writable or have file capabilities besides those that
    distributions ship so, ``allow_accounts`` system accounts that may have a shell.
    """
    with machine(cloud, order, progress) as booted:
        who = run_as_root(booted.connection, ["id", "-un"], log).strip()
        if who != "root":
            raise VerifyError(f"sudo on {image.id} runs as {who!r}, expected root")
        timeline = _timeline(booted, log)
        times = run_checks(cloud, booted, image.recipe, checks, log, progress)
        progress(Doing(f"auditing the bytes of {image.id}"))
        try:
            audit, seconds = _audit(
                cloud, booted, image, imagetool, forbidden, allow_modes, allow_accounts, order.run_id,
                order.expires_at, log,
            )  # fmt: skip
        except ClientError as error:
            raise cloud_error(error, f"attaching {image.id}'s snapshot for the audit") from error
    judge(audit, image.id, log.path)
    mib = audit["bytes_scanned"] / (1 << 20)
    progress(f"audit clean, {mib:.0f} MiB read in {seconds:.1f} s, {mib / max(seconds, 0.001):.0f} MiB/s")
    return Verdict(timeline, audit, times)
