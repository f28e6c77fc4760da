"""EC2 is eventually consistent: what it has just made, some of its servers do not know for a moment.

It asks callers to describe a new resource, with pauses, before they use it ("Eventual consistency in the EC2
API", EC2 Developer Guide). It was seen with groups (hashicorp/packer#1322: one in ten), key pairs
(hashicorp/terraform-provider-aws#44835), images (ansible/ansible#4368) and instance profiles.

None of this belongs between t0 and t1: there a wait would be measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from botocore.exceptions import ClientError

from instant_env.cloud.session import CloudError, error_code
from instant_env.waiting import wait_until

#: How long what was just made may stay unknown. EC2 gives no bound; what was seen in public is seconds.
PATIENCE_S = 60.0
_PAUSE_S = 0.5
#: Between two looks that both have to see a new thing: what one server knows, the next may not, and a look
#: that follows at once is likely to meet the same one.
_SECOND_LOOK_S = 0.1

#: What RunInstances answers when it does not know yet what every run makes for its machines.
ACCESS_NOT_KNOWN = frozenset({
    "InvalidGroup.NotFound", "InvalidKeyPair.NotFound", "InvalidNetworkInterfaceID.NotFound",
})  # fmt: skip
_NOT_KNOWN_TO_LAUNCHES = ACCESS_NOT_KNOWN | {"InvalidAMIID.NotFound", "InvalidAMIID.Unavailable"}

#: States of images and snapshots that they do not leave (API reference: Image, Snapshot).
_FAILED = frozenset({"failed", "error", "invalid", "deregistered"})
#: What one of EC2's servers says, the next may not know yet.
_IN_A_ROW = 3

T = TypeVar("T")


def is_not_found(error: ClientError) -> bool:
    """Whether a call was refused because the resource that it names does not exist, or is not known yet."""
    code = error_code(error)
    return code.endswith(".NotFound") or code == "NoSuchEntity"


def is_not_known_to_launches(error: ClientError) -> bool:
    """Whether a launch was refused for a group, key pair, interface, image or profile that is not known.

    Of an instance profile EC2 says InvalidParameterValue, with the parameter's name (Packer repeats that).
    """
    if error_code(error) == "InvalidParameterValue":
        message = str(error.response["Error"].get("Message", "")).lower().replace(" ", "")
        return "iaminstanceprofile" in message
    return error_code(error) in _NOT_KNOWN_TO_LAUNCHES


def wait_until_known(find: Callable[[], Any], what: str, *, timeout_s: float = PATIENCE_S) -> None:
    """Ask until EC2 shows a new thing twice in a row, a moment apart.

    ``find`` describes it, by its id: an empty answer and an error that says NotFound are "not yet". Raises
    CloudError after ``timeout_s``; other errors of botocore's are passed on.
    """

    def is_known() -> bool:
        try:
            return bool(find())
        except ClientError as error:
            if not is_not_found(error):
                raise
            return False

    def is_still_known() -> bool:
        time.sleep(_SECOND_LOOK_S)
        return is_known()

    if not wait_until(lambda: is_known() and is_still_known(), timeout_s, _PAUSE_S):
        raise CloudError(
            f"{what} was made, and EC2 does not know it after {timeout_s:.0f} s",
            hint="is EC2 well? https://health.aws.amazon.com; then run it again",
        )


def repeat_while_unknown(
    call: Callable[[], T],
    is_unknown: Callable[[ClientError], bool] = is_not_found,
    *,
    timeout_s: float = PATIENCE_S,
    on_refusal: Callable[[ClientError], None] = lambda _: None,
) -> T:
    """Make a call that uses a new thing, again while EC2 does not know that. The last refusal is passed on.

    ``on_refusal`` gets the first one.
    """
    deadline, is_first = time.monotonic() + timeout_s, True
    while True:
        try:
            return call()
        except ClientError as error:
            if not is_unknown(error) or time.monotonic() >= deadline:
                raise
            if is_first:
                on_refusal(error)
                is_first = False
        time.sleep(_PAUSE_S)


def made_once(
    make: Callable[[], str],
    same_name: Callable[[], Iterable[tuple[str, Mapping[str, str]]]],
    *,
    code: str,
    tags: Mapping[str, str],
) -> str:
    """The id of what ``make`` makes under a name that nothing else has.

    CreateSecurityGroup, ImportKeyPair, CreateImage and RegisterImage take no client token. When an answer is
    lost, the client's repeat is refused with ``code`` although the first was carried out: then it is what
    ``same_name`` describes, ids with their tags, once that has ``tags``. The tags are compared here, because
    filters by tag know new ones late. The refusal is passed on when the name is somebody else's, and other
    errors of botocore's are.
    """
    try:
        return make()
    except ClientError as error:
        if error_code(error) != code:
            raise
        deadline = time.monotonic() + PATIENCE_S
        while not (there := described(same_name)) and time.monotonic() < deadline:
            time.sleep(_PAUSE_S)
        for name, its_tags in there:
            if tags.items() <= its_tags.items():
                return name
        raise


def described(find: Callable[[], Iterable[T]]) -> list[T]:
    """What is found; nothing where EC2 says that it is not."""
    try:
        return list(find())
    except ClientError as error:
        if not is_not_found(error):
            raise
        return []


def growing_pauses(most_s: float = 2.0) -> Iterator[float]:
    """Pauses in seconds between looks at what takes EC2 minutes: short at first, then ``most_s``."""
    pause_s = 0.1
    while True:
        yield pause_s
        pause_s = min(most_s, pause_s * 1.5)


def wait_for_state(
    find: Callable[[], str], target: str, what: str, *, timeout_s: float, patience_s: float = PATIENCE_S
) -> None:
    """Ask for the state of a new image or snapshot until it was ``target`` several times in a row.

    ``find`` describes it: an empty text and an error that says NotFound are "pending", for ``patience_s``.
    Raises CloudError for a state that it does not leave, for one that is unknown for longer, and when the
    time is up; other errors of botocore's are passed on.
    """
    started, in_a_row, pauses = time.monotonic(), 0, growing_pauses()
    state, is_known = "unknown", False
    while (waited_s := time.monotonic() - started) < timeout_s:
        try:
            state = find()
        except ClientError as error:
            if not is_not_found(error):
                raise
            state = ""
        is_known = is_known or bool(state)
        if state in _FAILED:
            raise CloudError(f"{what} is {state}", hint="is the disk of the machine full?")
        if not is_known and waited_s > patience_s:
            raise CloudError(f"{what} was made, and EC2 does not know it after {waited_s:.0f} s")
        in_a_row = in_a_row + 1 if state == target else 0
        if in_a_row == _IN_A_ROW:
            return
        if not in_a_row:
            time.sleep(next(pauses))
    raise CloudError(f"{what} is {state or 'unknown'} after {timeout_s:.0f} s, wanted {target}")
