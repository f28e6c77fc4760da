"""One rule of a security group, as moto shows it."""

from __future__ import annotations

from typing import Any

from instant_env.localec2.state.moto_api import security_groups


class GroupRule(security_groups.SecurityGroupRule):  # type: ignore[misc]  # moto is untyped
    """moto's own turns ports to numbers, has no rules without them, and no descriptions of source groups."""

    def __init__(
        self, backend: Any, group_id: str, protocol: str, from_port: int | None, to_port: int | None, *,
        ip_range: dict[str, str] | None, source_group: dict[str, str] | None,
        prefix_list_id: str | None = None, egress: bool, tags: dict[str, str] | None,
    ) -> None:  # fmt: skip
        prefixes = {"PrefixListId": prefix_list_id} if prefix_list_id else None
        super().__init__(
            backend, "-1", group_id, None, None, ip_range, source_group, prefixes, is_egress=egress, tags=tags
        )
        self.ip_protocol, self.from_port, self.to_port = protocol, from_port, to_port

    @property
    def description(self) -> str | None:
        text: str | None = (self.source_group or self.ip_range).get("Description")
        return text
