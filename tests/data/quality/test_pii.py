"""Personal data by format: what is masked, what is left alone, and Luhn's check by its published example."""

import random
from collections import Counter

import pytest

from lifecycle.data.quality.pii import luhn, mask


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to jane.doe+news@mail.example.org, please", "write to <EMAIL>, please"),
        ("<a@b.co>", "<<EMAIL>>"),
        ("call (212) 555-0123 or 1-212-555-0123.", "call <PHONE> or <PHONE>."),
        ("Tel.: +49 30 12345678", "Tel.: <PHONE>"),
        ("from 8.8.8.8 and 2606:4700:4700::1111.", "from <IP> and <IP>."),
        ("paid with 4111 1111 1111 1111 on", "paid with <CARD> on"),
        ("amex 3782-822463-10005", "amex <CARD>"),
        ("visa 4012888888881881", "visa <CARD>"),
        ("SSN 219-09-9999", "SSN <SSN>"),
    ],
)
def test_personal_data_becomes_a_mark(text: str, masked: str) -> None:
    assert mask(text)[0] == masked


@pytest.mark.parametrize(
    "text",
    [
        "an @mention, a@b and user@localhost",
        "temperature 98.6, BP 120/80, pulse 90-100, 2024-11-21 10:15:30",
        "4111 1111 1111 1112 fails its check digit",
        "479 487 491 499 503 509 521 523 541 547",
        "https://web.archive.org/web/20190828180344/www.example.org",
        "x[::2], a::b, std::vector, ::1 and 192.168.0.1",
        "section 1.2.3.4.5, 300.1.1.1",
        "SSNs that were never issued: 000-12-3456, 666-12-3456, 912-34-5678, 123-00-4567, 123-45-0000",
        "ISBN 978-0-13-468599-1, order 12345678901234567890123",
    ],
)
def test_what_only_looks_like_it_is_left_alone(text: str) -> None:
    assert mask(text) == (text, Counter())


def test_replacements_are_counted_by_kind() -> None:
    text, counts = mask("a@b.org c@d.org 8.8.8.8")
    assert text == "<EMAIL> <EMAIL> <IP>"
    assert counts == {"email": 2, "ip": 1}
    assert mask(text) == (text, Counter())  # and nothing is masked twice


def test_luhn_by_hand_and_every_single_wrong_digit() -> None:
    # 7992739871 and its check digit 3: 7+(9*2=18: 9)+9+(2*2: 4)+7+(3*2: 6)+9+(8*2=16: 7)+7+(1*2: 2)+3 = 70.
    assert luhn("79927398713")
    assert not any(luhn(f"7992739871{digit}") for digit in "012456789")
    rng = random.Random(0)
    for _ in range(50):
        number = "".join(rng.choices("0123456789", k=15))
        [valid] = [number + digit for digit in "0123456789" if luhn(number + digit)]
        place = rng.randrange(16)
        other = rng.choice([digit for digit in "0123456789" if digit != valid[place]])
        assert not luhn(valid[:place] + other + valid[place + 1 :])
