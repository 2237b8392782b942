import pytest

from lifecycle.report.page.format import count, number, rate, share, short, span


def test_thousands_are_separated_and_nothing_is_a_dash() -> None:
    assert count(1_234_567.0) == "1,234,567"
    assert count(None) == number(None) == share(None) == span(None) == "–"


def test_nothing_is_minus_zero() -> None:
    assert (number(-0.0, 3), number(-0.0004, 3), number(-0.0006, 3)) == ("0.000", "0.000", "-0.001")
    assert (share(-0.0), share(-0.02)) == ("0.0 %", "-2.0 %")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0"),
        (950, "950"),
        (1500, "1.5 k"),
        (1_310_720, "1.311 M"),
        (2e9, "2 B"),
        (1.5e13, "15 T"),
        (-2500, "-2.5 k"),
    ],
)
def test_short_numbers_carry_their_unit(value: float, words: str) -> None:
    assert short(value) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (59.4, "59.4 s"),
        (59.9, "1 min 00 s"),
        (287.4, "4 min 47 s"),
        (3600, "1 h 00 min"),
        (86_400, "24 h 00 min"),
        (180_000, "2 d 2 h"),
    ],
)
def test_spans_read_as_a_person_says_them(seconds: float, words: str) -> None:
    assert span(seconds) == words


def test_large_numbers_lose_their_decimals() -> None:
    assert (number(12.345), number(1234.56)) == ("12.35", "1,235")


def test_rates_have_a_unit_that_fits() -> None:
    assert (rate(989.4e12), rate(2.1e11)) == ("989.4 TFLOP/s", "210 GFLOP/s")
