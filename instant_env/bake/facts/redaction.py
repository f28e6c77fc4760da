"""Facts without what identifies an account, a network or a machine: a file of them can be sent to anybody."""

from __future__ import annotations

import re

_FOUR_NUMBERS = r"\d{1,3}(?:\.\d{1,3}){3}"
_RULES = (
    # Public keys are public, and still somebody's. Private ones are never asked for.
    (
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
        "KEY",
    ),
    (re.compile(r"\b(ssh-(rsa|ed25519|dss)|ecdsa-sha2-\S+|sk-\S+@openssh\.com) AAAA\S+( \S+)?"), "KEY"),
    (re.compile(r"\bA[KS]IA[A-Z0-9]{16}\b"), "ACCESS-KEY-ID"),
    (re.compile(r"(?<![\w.-])\d{12}(?![\w.])"), "ACCOUNT"),
    (re.compile(r"\b(i|eni|vol|subnet|vpc|sg|snap|rtb|igw|eipalloc)-[0-9a-f]{8,17}\b"), r"\1-ID"),
    (re.compile(r"\b(vol)([0-9a-f]{17})\b"), r"\1-ID"),  # an NVMe disk's serial
    (re.compile(r"\bip-\d+-\d+-\d+-\d+\b"), "ip-ADDRESS"),
    # Not 169.254.0.0/16, which is everybody's, nor loopback, nor a version, which has a release behind it.
    (re.compile(rf"(?<![\w.:-])(?!169\.254\.|127\.|0\.0\.0\.0){_FOUR_NUMBERS}(?![\w.-])"), "ADDRESS"),
    (re.compile(r"\b([0-9a-f]{2}:){5}[0-9a-f]{2}\b", re.IGNORECASE), "MAC"),
)


def redacted(text: str) -> str:
    """The text with such things replaced by words that say what was there."""
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text
