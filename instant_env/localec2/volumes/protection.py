"""Whether an image is protected from deregistration."""

from __future__ import annotations

from instant_env.localec2.records.records import ImageRecord
from instant_env.localec2.state.state import now


def protection_of(image: ImageRecord) -> str:
    """EC2's word for whether an image may be deregistered; a cooldown goes on protecting it."""
    if image.protected_until is not None:
        return image.protection if image.protected_until > now() else "disabled"
    return image.protection
