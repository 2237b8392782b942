"""Personal data replaced by marks: mail addresses, telephone numbers, IP addresses, card numbers, US SSNs.

The only step that edits a document, and only where `filters.mask_pii` asks for it. Patterns are those of formats that
can be checked (Luhn's digit of a card, the ranges of an address, the areas that were ever issued for an SSN); names and
places are not looked for.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable

LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
EMAIL = re.compile(rf"(?<![\w.+-])[A-Za-z0-9][\w.+-]{{0,63}}@(?:{LABEL}\.)+[A-Za-z]{{2,24}}\b")
IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")
IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])")
CARD = re.compile(
    r"(?<![\w./-])(?:\d{13,19}"
    r"|\d{4}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?"  # 4-4-4-4 and 4-4-4-4-3
    r"|3\d{3}([ -])\d{6}\2\d{5}"  # American Express
    r")(?![\w/-]|\.\d)"
)
ISSUERS = re.compile(r"4|5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)|3[04-68]|37|6(?:011|2|4[4-9]|5)")
SSN = re.compile(r"(?<![\d-])(\d{3})-(\d{2})-(\d{4})(?![\d-])")
PHONE = re.compile(
    r"(?<![\w.+/-])(?:"
    r"\+\d{1,3}(?:[ .-]?\(?\d{1,4}\)?){2,5}"  # international: +49 30 1234567
    r"|\(\d{3}\) ?\d{3}[ .-]\d{4}"  # North America: (212) 555-0123
    r"|(?:1[ .-])?[2-9]\d{2}([ .-])\d{3}\1\d{4}"  # 212-555-0123, 1-212-555-0123
    r")(?![\w/]|[.-]\d)"
)


def mask(text: str) -> tuple[str, Counter[str]]:
    """`text` with marks such as <EMAIL> in the place of personal data, and how many of each were put there."""
    counts: Counter[str] = Counter()
    for name, pattern, meant in RULES:

        def replace(match: re.Match[str], name: str = name, meant: Callable[[re.Match[str]], bool] = meant) -> str:
            if not meant(match):
                return match[0]
            counts[name] += 1
            return f"<{name.upper()}>"

        text = pattern.sub(replace, text)
    return text, counts


def luhn(number: str) -> bool:
    """Whether the last digit checks the others (ISO/IEC 7812-1, annex B): every second digit from the right counts
    double, the sum of all digits of these is a multiple of ten.
    """
    digits = [int(digit) for digit in reversed(number)]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _is_card(match: re.Match[str]) -> bool:
    number = re.sub(r"[ -]", "", match[0])
    return ISSUERS.match(number) is not None and luhn(number)


def _is_ssn(match: re.Match[str]) -> bool:
    """No number was ever issued with area 000, 666 or 9xx, group 00 or serial 0000."""
    area, group, serial = match.groups()
    return area not in ("000", "666") and area[0] != "9" and group != "00" and serial != "0000"


def _is_phone(match: re.Match[str]) -> bool:
    return 8 <= sum(map(str.isdigit, match[0])) <= 15  # E.164


def _is_address(match: re.Match[str]) -> bool:
    """Whether the text is a public internet address: private ones identify no person, and code such as `a[::2]` is no
    address."""
    if ":" in match[0] and sum(map(bool, match[0].split(":"))) < 3:
        return False
    try:
        return ipaddress.ip_address(match[0]).is_global
    except ValueError:
        return False


RULES: tuple[tuple[str, re.Pattern[str], Callable[[re.Match[str]], bool]], ...] = (
    ("email", EMAIL, lambda match: True),
    ("card", CARD, _is_card),
    ("ssn", SSN, _is_ssn),
    ("ip", IPV4, _is_address),
    ("ip", IPV6, _is_address),
    ("phone", PHONE, _is_phone),
)
"""In this order: what an earlier rule has replaced, a later one does not see."""
