"""How long to wait after a refused login, so that sshd does not lock this address out.

OpenSSH 9.8 and later keep a penalty per source address, which decays by a second per second (sshd_config(5),
PerSourcePenalties): 5 s for a refused authentication, 1 s for a connection that ends without one. From 15 s
on, every connection is dropped until the penalty has decayed.
"""

from __future__ import annotations

AUTH_FAILED_S = 5.0
NO_AUTH_S = 1.0
LOCKED_OUT_S = 15.0

#: Pauses after a refused login; the last one repeats. Each try is charged for the login and for the probe
#: before it. Machines write the key before or just after sshd starts, so the first pause is short.
REFUSED_S = (0.5, 3.0, 6.0)

#: After a connection that ended before authentication was decided: sshd restarts, or has MaxStartups already.
HANDSHAKE_S = 0.1


def after_refusal(refusals: int) -> float:
    """The pause after a refused login, by the number of those refused before it."""
    return REFUSED_S[min(refusals, len(REFUSED_S) - 1)]
