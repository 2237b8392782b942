"""A pre-flight as lines for the terminal."""

from __future__ import annotations

from lifecycle.stages.reinforcement.watching.preflight import Preflight, Shown

CHARACTERS = 300
"""Of a prompt, and of a completion, of which the terminal shows the end and the beginning."""


def rows(found: Preflight) -> list[tuple[str, str]]:
    """(what, value)."""
    out = [
        ("came to their own end", f"{found.stopped:.1%}"),
        *((f"answers that '{name}' can read", f"{share:.1%}") for name, share in found.stated.items()),
    ]
    if found.right is not None:
        first, any_of = found.right
        more = f", pass@{found.samples} {any_of:.1%}" if found.samples > 1 else ""
        out.append(("right", f"pass@1 {first:.1%}{more}"))
    if found.reward is not None:
        out.append(("mean reward", f"{found.reward:.3f}"))
    if found.varying is not None:
        out.append(("prompts whose samples differ", f"{found.varying:.1%}"))
    out.append(("tokens of a completion", f"{found.length:.1f} in the mean, {found.longest:,} at most"))
    out += [(f"'{name}' failed", f"{count} times") for name, count in found.failed.items()]
    out += [(f"'{name}' took too long", f"{count} times") for name, count in found.timed_out.items()]
    out += [(f"rows of {name} that are too long", f"{share:.1%}") for name, share in found.too_long.items()]
    out.append(("sampling and marking of a step", f"about {found.step_seconds:.1f} s"))
    return out


def lines(found: Preflight) -> list[str]:
    """The table, and the samples."""
    told = rows(found)
    width = max(len(name) for name, _ in told)
    head = f"before the first update: {found.prompts} prompts, {found.samples} samples of each ({found.seconds:.1f} s)"
    return [head, *(f"  {name:<{width}}  {value}" for name, value in told), *map(_sample, found.shown)]


def _sample(one: Shown) -> str:
    known = "" if one.answer is None else f", answer {_short(one.answer)}"
    reward = "no reward" if one.reward is None else f"reward {one.reward:g}"
    prompt = one.prompt if len(one.prompt) <= CHARACTERS else f"...{one.prompt[-CHARACTERS:]}"
    return f"  {one.why} ({reward}, {one.ending}{known}): {prompt!r} -> {_short(one.completion)}"


def _short(text: str) -> str:
    return repr(text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]}...")
