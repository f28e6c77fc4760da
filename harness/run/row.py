"""Rows and progress lines from attempts."""

from __future__ import annotations

from harness.plan.experiment import Experiment
from harness.results_file import Row
from harness.run.attempt import Attempt
from instant_env.launch.timeline import MarkName, Outcome

#: The guest's marks that have a column: instant-init's name for it, and the column.
GUEST_MARKS = {
    "kernel_handoff": "kernel_handoff_ms",
    "init_start": "init_start_ms",
    "resumed": "resumed_ms",
    "network_up": "network_up_ms",
    "key_received": "key_received_ms",
    "key_written": "key_written_ms",
    "sshd_started": "sshd_started_ms",
    "sshd_listening": "sshd_listening_ms",
    "first_login": "first_login_ms",
}


def row_of(attempt: Attempt, experiment: Experiment, run_id: str, in_flight: int) -> Row:
    """Everything known of an attempt, as a row."""
    launch, timeline, guest, slot = attempt.launch, attempt.timeline, attempt.guest, attempt.slot
    planned, prepared, cloud, stats = attempt.planned, attempt.prepared, attempt.cloud, launch.probes
    filled = attempt.fill_s > 0

    def ms(name: MarkName) -> float | None:
        mark = timeline.marks.get(name)
        return mark.ms if mark else None

    def resolution_ms(name: MarkName) -> float | None:
        mark = timeline.marks.get(name)
        return mark.resolution_ms if mark else None

    reads = guest.root_reads if guest is not None and guest.boot_at_ns > timeline.t0_ns else None
    # Of a machine that ran before t0 it has the reads of its filling, too.
    volume = None if slot.runs else attempt.root_reads
    marks = {
        column: round(guest.marks_ms[name], 3)
        for name, column in GUEST_MARKS.items()
        # Of a machine that ran before t0 only what it did since.
        if guest is not None and name in guest.marks_ms
        and guest.boot_at_ns + guest.marks_ms[name] * 1e6 > timeline.t0_ns
    }  # fmt: skip
    return Row(
        run_id=run_id,
        attempt=planned.attempt,
        block=planned.block,
        technique=planned.technique,
        variant=planned.cell.variant or None,
        arch=planned.cell.arch.value,
        cloud=cloud.name.value,
        accelerator=cloud.accelerator_for(planned.cell.arch),
        region=cloud.region,
        zone=launch.zone or None,
        instance_type=planned.cell.instance_type,
        market=launch.market.value if launch.market else None,
        in_flight=in_flight,
        fill_ms=round(attempt.fill_s * 1000, 3) if filled else None,
        pool_age_ms=round((timeline.t0_ns - slot.filled_ns) / 1e6, 3) if filled else None,
        resumed=None if attempt.resumed is None else "yes" if attempt.resumed else "no",
        ami=prepared.image_id,
        instance_id=launch.instance_id or None,
        outcome=launch.outcome.value,
        error=launch.error or None,
        note="; ".join(launch.notes) or None,
        timeout_s=experiment.timeout_s,
        t0_utc=timeline.t0_utc.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        t1_ms=ms(MarkName.T1),
        t2_ms=ms(MarkName.T2),
        t3_tcp_ms=ms(MarkName.T3_TCP),
        t3_ms=ms(MarkName.T3),
        t4_ms=ms(MarkName.T4),
        t2_t4_ms=timeline.between(MarkName.T2, MarkName.T4),
        t2_resolution_ms=resolution_ms(MarkName.T2),
        t3_resolution_ms=resolution_ms(MarkName.T3),
        t4_resolution_ms=resolution_ms(MarkName.T4),
        probes=stats.opened,
        probes_refused=stats.refused,
        probes_silent=stats.silent,
        probes_garbage=stats.garbage,
        first_refused_ms=(
            timeline.ms(stats.first_refused_ns)
            if stats.first_refused_ns and cloud.refusals_from_guest
            else None
        ),
        keys_refused=attempt.login.keys_refused,
        guest_boot_ms=timeline.ms(guest.boot_at_ns) if guest else None,
        guest_clock_error_ms=guest.clock_error_ms if guest else None,
        **marks,
        disk_requests=reads[0] if reads else None,
        disk_bytes=reads[1] if reads else None,
        volume_requests=volume[0] if volume else None,
        volume_bytes=volume[1] if volume else None,
        boot_id=guest.boot_id if guest else None,
        kernel=guest.kernel if guest else None,
        ssh_version=launch.banner or None,
        host_key=attempt.login.host_key_fingerprint or None,
        harness_lag_ms=attempt.lag_ms,
    )


def progress_line(row: Row, total: int) -> str:
    """One attempt in one line: ``[2/9] custom-init  ok  t1 0.21 s  t2 0.38 s  t3 7.02 s  t4 8.11 s``."""
    head = f"[{row.attempt}/{total}] {row.label:<15} {row.outcome}"
    figures = {"t1": row.t1_ms, "t2": row.t2_ms, "t3": row.t3_ms, "t4": row.t4_ms, "t2→t4": row.t2_t4_ms}
    times = "".join(f"  {name} {ms / 1000:.2f} s" for name, ms in figures.items() if ms is not None)
    return head + times + ("" if row.outcome == Outcome.OK else f"  ({row.error or 'no reason known'})")
