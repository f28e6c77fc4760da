"""Whether what a run compares is alike in what it is not about: market, zone, root volume.

An experiment that varies one of these says so in the names of its cells, and that is no difference here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.figures.reading import Kind, Record

#: Columns of a row, and what they are called for people.
_OF_ROWS = {"market": "market", "zone": "availability zone"}
_OF_VOLUMES = {"encrypted": "encryption of the root volume", "type": "type of the root volume"}


def differences(records: Sequence[Record], root_volumes: Mapping[str, Any]) -> list[str]:
    """A sentence for each thing in which cells that are compared differ, for each kind of machine.

    ``root_volumes`` are the metadata's, by a cell's label. What is not on record differs from nothing.
    """
    kinds = dict.fromkeys(record.kind for record in records)
    return [line for kind in kinds for line in _of_kind(kind, records, root_volumes)]


def _of_kind(kind: Kind, records: Iterable[Record], root_volumes: Mapping[str, Any]) -> Iterable[str]:
    own = [record for record in records if record.kind == kind and record.outcome == "ok"]
    labels = list(dict.fromkeys(record.technique for record in own))
    for column, name in _OF_ROWS.items():
        values = {
            label: {
                record.texts[column] for record in own if record.technique == label and column in record.texts
            }
            for label in labels
        }
        yield from _sentence(kind, column, name, values)
    for member, name in _OF_VOLUMES.items():
        volumes = {label: root_volumes.get(label) or {} for label in labels}
        values = {label: {_word(volume[member])} for label, volume in volumes.items() if member in volume}
        yield from _sentence(kind, member, name, values)


def _word(value: object) -> str:
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def _sentence(kind: Kind, key: str, name: str, values: Mapping[str, set[str]]) -> Iterable[str]:
    if any(f"{key}=" in label for label in values) or len(set().union(*values.values())) < 2:
        return
    each = "; ".join(f"{label}: {', '.join(sorted(words))}" for label, words in values.items() if words)
    yield f"What is compared on {kind} differs in {name}: {each}."
