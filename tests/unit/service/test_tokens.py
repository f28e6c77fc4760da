"""The form of the service's secrets."""

from __future__ import annotations

import hashlib
import re
import string

import pytest

from instant_env.service import tokens
from instant_env.settings import ROOT


def test_a_secret_has_its_form_and_no_two_are_alike() -> None:
    made = [tokens.new_secret() for _ in range(500)]
    assert len(set(made)) == len(made)
    for secret in made:
        assert re.fullmatch(r"ie_[0-9A-Za-z]{49}", secret)
        assert tokens.looks_like(secret)
    # Every digit of base 62 is used, in the random part.
    assert set("".join(secret[4:46] for secret in made)) == set(string.ascii_letters + string.digits)


@pytest.mark.parametrize(
    ("number", "length", "text"), [(0, 2, "00"), (61, 1, "z"), (62, 2, "10"), (2**256 - 1, 43, None)]
)
def test_numbers_in_base_62(number: int, length: int, text: str | None) -> None:
    digits = tokens._base62(number, length)
    assert text is None or digits == text
    value = 0
    for digit in digits:
        value = value * 62 + (string.digits + string.ascii_uppercase + string.ascii_lowercase).index(digit)
    assert value == number


def test_any_one_wrong_character_is_seen() -> None:
    secret = tokens.new_secret()
    for place in range(len(secret)):
        wrong = "A" if secret[place] != "A" else "B"
        assert not tokens.looks_like(secret[:place] + wrong + secret[place + 1 :]), place


@pytest.mark.parametrize("change", ["", "ie_", "é", "\n", "x" * 10_000])
def test_other_text_is_no_secret(change: str) -> None:
    assert not tokens.looks_like(change)
    assert not tokens.looks_like(tokens.new_secret() + (change or " "))
    assert not tokens.looks_like((change or " ") + tokens.new_secret())
    assert not tokens.looks_like(tokens.new_secret()[:-1])
    assert not tokens.looks_like(tokens.new_secret()[:-1] + "é")


def test_the_hash_is_of_the_whole_secret_and_of_any_text() -> None:
    secret = tokens.new_secret()
    assert tokens.hash_of(secret) == hashlib.sha256(secret.encode()).hexdigest()
    assert len(tokens.hash_of("\ud800")) == 64


def test_the_audit_of_images_knows_the_form() -> None:
    """internal/secrets is in Go: its form must be this one."""
    rules = (ROOT / "internal/secrets/tokens.go").read_text()
    form = re.search(r'prefix: "ie_", form: alnum \+ `\{(\d+)\}`', rules)
    assert form is not None
    assert len(tokens.new_secret()) == len("ie_") + int(form[1])
