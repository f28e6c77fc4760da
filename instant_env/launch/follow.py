"""Follow a launch to its login check, and name the way it ended."""

from __future__ import annotations

import asyncio

from botocore.exceptions import BotoCoreError, ClientError

from instant_env.cloud.instances import Market, NoPublicAddress
from instant_env.cloud.launching.refusals import CAPACITY_ERRORS, hint, hint_of_end
from instant_env.cloud.launching.repeats import joined, words
from instant_env.cloud.rules.consistency import ACCESS_NOT_KNOWN
from instant_env.cloud.session import error_code
from instant_env.launch.launch import Launch
from instant_env.launch.login_check import LoginCheck
from instant_env.launch.timeline import MarkName, Outcome
from instant_env.launch.watch import MachineEnded
from instant_env.ssh.host_keys import HostKeyMismatch


async def follow(launch: Launch, check: LoginCheck, *, timeout_s: float) -> None:
    """Start ``launch`` and run ``check`` on it, within ``timeout_s``.

    Every failure that is foreseen ends in ``launch.outcome`` and ``launch.error``; cancellation is raised,
    and so is any other error, after it was recorded.
    """
    try:
        async with asyncio.timeout(timeout_s):
            await launch.start()
            await launch.while_it_lives(check.run(launch))
        launch.outcome = Outcome.OK
    except TimeoutError:
        launch.fail(*_after_timeout(launch, check, timeout_s))
    except MachineEnded as error:
        remedy = hint_of_end(error.code, spot=launch.market is Market.SPOT)
        launch.fail(_outcome_of_end(error), joined(str(error), remedy))
    except ClientError as error:
        launch.fail(_outcome_of_refusal(error), joined(words(error), hint(error)))
    except (BotoCoreError, HostKeyMismatch, NoPublicAddress) as error:
        launch.fail(Outcome.LAUNCH_ERROR, words(error))
    except Exception as error:
        launch.fail(Outcome.LAUNCH_ERROR, f"{type(error).__name__}: {error}")
        raise
    finally:
        await launch.close()
        if launch.outcome is not Outcome.OK:
            check.close()


def _outcome_of_refusal(error: ClientError) -> Outcome:
    """EC2 not yet knowing the run's key pair or group says nothing of the launch that was to be measured. A
    wait for it would be measured, so the attempt does not count, and a resumed run makes it again."""
    if error_code(error) in CAPACITY_ERRORS:
        return Outcome.CAPACITY
    return Outcome.INTERRUPTED if error_code(error) in ACCESS_NOT_KNOWN else Outcome.LAUNCH_ERROR


def _after_timeout(launch: Launch, check: LoginCheck, timeout_s: float) -> tuple[Outcome, str]:
    after = f"after {timeout_s:.0f} s"
    if check.keys_refused:
        return (
            Outcome.AUTH_FAILED,
            f"sshd still refused the key {after}, {check.keys_refused} times in all",
        )
    trouble = check.trouble or launch.last_poll_error
    marks = launch.timeline.marks
    reached = max(marks, key=lambda name: marks[name].ms, default="t0")
    detail = f"no login {after}; got as far as {reached}" + (f"; {trouble}" if trouble else "")
    by_guest = launch.cloud.refusals_from_guest and launch.probes.first_refused_ns is not None
    if by_guest and MarkName.T3 not in marks:
        return Outcome.SSH_REFUSED, f"{detail}; {launch.probes.refused} connects refused"
    return Outcome.TIMEOUT, detail


def _outcome_of_end(error: MachineEnded) -> Outcome:
    """EC2 gives the cause of a machine's end in its state reason (API reference, StateReason).

    Causes on EC2's side begin with Server: a machine that they end while it starts is one that EC2 had not to
    give. Those on ours begin with Client, as a key that cannot be used or a quota of volumes.
    """
    if error.code in ("Server.SpotInstanceTermination", "Server.SpotInstanceShutdown"):
        return Outcome.INTERRUPTED
    if error.code.startswith("Server."):
        return Outcome.CAPACITY
    return Outcome.LAUNCH_ERROR
