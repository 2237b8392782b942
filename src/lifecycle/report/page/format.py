"""Numbers as text for readers: thousands separated, few digits, a unit; none is minus zero."""

from __future__ import annotations


def count(value: float | None) -> str:
    """1,234,567; a dash for None."""
    return "–" if value is None else f"{value:,.0f}"


def short(value: float, digits: int = 4) -> str:
    """1.2 M, 850 k: for axes and bars, with so many significant digits at most."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:,.{digits}g} {unit}"
    return f"{value:,.{digits}g}"


def number(value: float | None, digits: int = 2) -> str:
    """1,234.50; large values lose their decimals; a dash for None."""
    if value is None:
        return "–"
    return f"{value:z,.0f}" if abs(value) >= 1000 else f"{value:z,.{digits}f}"


def share(value: float | None, digits: int = 1) -> str:
    """12.3 %."""
    return "–" if value is None else f"{value * 100:z,.{digits}f} %"


def span(seconds: float | None) -> str:
    """4 min 12 s; 3 h 05 min; 2 d 4 h."""
    if seconds is None:
        return "–"
    whole = int(round(seconds))
    if whole >= 2 * 86400:
        return f"{whole // 86400} d {whole % 86400 // 3600} h"
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{seconds:.1f} s"


def rate(flops: float) -> str:
    """989 TFLOP/s, 210 GFLOP/s."""
    return f"{flops / 1e12:,.1f} TFLOP/s" if flops >= 1e12 else f"{flops / 1e9:,.0f} GFLOP/s"
