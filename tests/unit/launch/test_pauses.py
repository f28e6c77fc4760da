"""Refused logins stay below the penalty at which sshd locks an address out."""

from __future__ import annotations

from instant_env.ssh import pauses


def worst_penalty_s(tries: int) -> float:
    """sshd's highest penalty of tries that each are a bare connection and a refused login, in no time."""
    penalty = worst = 0.0
    for refused in range(tries):
        penalty += pauses.NO_AUTH_S + pauses.AUTH_FAILED_S
        worst = max(worst, penalty)
        penalty = max(0.0, penalty - pauses.after_refusal(refused))
    return worst


def test_refused_logins_do_not_lock_an_address_out() -> None:
    assert worst_penalty_s(1000) < pauses.LOCKED_OUT_S


def test_a_machine_whose_key_is_late_is_tried_again_soon() -> None:
    assert pauses.after_refusal(0) <= 0.5
    assert pauses.after_refusal(7) == pauses.REFUSED_S[-1]
