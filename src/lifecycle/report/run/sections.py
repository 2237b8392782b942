"""A run's report, section by section, as blocks (`render` writes them).

Beyond the run folder's own names, these entries of run.json are shown where they are present: `parameters`, `choice`
(what `hardware.choose` settled: precision, compile, reasons, peak_flops, peak_source), `overrides` (the command line),
`total_steps`, `resumed` (times), `damaged` (checkpoints passed over), `error`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lifecycle.report.page.format import count, number, share, span
from lifecycle.report.page.render import Code, Element, Heading, Paragraph, Picture, Sample, Sheet
from lifecycle.report.run.answers_section import answers
from lifecycle.report.run.calibration_section import calibration
from lifecycle.report.run.commands import going_on
from lifecycle.report.run.facts import DomainResult, Headline, headline
from lifecycle.report.run.forgetting_section import measurements, table
from lifecycle.report.run.forgetting_section import verdict as verdict_of_guard
from lifecycle.report.run.provenance import convention, mfu_name, used
from lifecycle.report.run.reinforcement.outcome import outcome, outcome_table, reached
from lifecycle.report.run.reinforcement.watched_section import before_the_first_update, noticed
from lifecycle.report.run.run_data import RunData

PICTURE_WORDS = {
    "loss": "Loss over tokens: training, held-out, and what counting words reaches",
    "rewards": "Reward of the samples of each step, and of greedy answers to held-out prompts",
    "pass_at_k": "Chance that one of k samples of a held-out prompt is right, with 95 % intervals over the prompts",
    "policy": "The policy and its samples, step by step; prompts that teach are those whose samples differ in their "
    "reward",
    "perplexity": "Held-out perplexity of every domain, beside its unigram and bigram baselines",
    "forgetting": "What was gained and what was forgotten of what the parent knew, with every action of the guard",
    "ledger": "What was planned and seen of every source",
    "learning_rate": "Learning rate and gradient norm",
    "throughput": "Tokens a second, and the share of time that training waited for data",
    "curriculum": "Planned share of a source's tokens by level of difficulty, over the run",
}


def title(run: RunData) -> str:
    """The run's name and stage."""
    return f"{run.folder.resolve().name}: {run.run.get('stage', 'run')}"


def sections(run: RunData, drawn: list[str]) -> list[Element]:
    """All of the report, in the order a reader asks: what came out, how, on what data, with what, and what next."""
    facts = headline(run)
    return [
        *_result(run, facts),
        *_pictures(drawn),
        *noticed(run),
        *before_the_first_update(run),
        *_forgetting(run, "forgetting" in drawn),
        *answers(run),
        *calibration(run),
        *_samples(run),
        *_ledger(run, "ledger" in drawn),
        *used(run),
        *_incidents(run),
        *_next(run),
    ]


def _result(run: RunData, facts: Headline) -> list[Element]:
    blocks: list[Element] = [Paragraph(verdict(run, facts), "lead")]
    if run.missing:
        blocks.append(Paragraph("This folder does not (yet) hold: " + ", ".join(run.missing) + ".", "warning"))
    blocks += outcome(run) if run.learns_from_samples else []
    blocks.append(Sheet(("", ""), [list(row) for row in overview(run, facts)], numbers=False))
    if not run.is_likelihood and not run.learns_from_samples:
        blocks.append(Sheet(*measures_table(run)))
    elif facts.domains:
        columns, rows = domain_table(facts)
        blocks.append(Sheet(columns, rows))
        words = "Perplexity and bits per byte of held-out text; lower is better."
        if any(domain.bigram for domain in facts.domains):
            words += (
                " The unigram and bigram columns are the perplexities (bits per byte) that counting tokens and pairs "
                "of tokens of the same training text reaches: a model near them has learned no more than frequencies."
            )
        blocks.append(Paragraph(words, "note"))
    if facts.mfu is not None:
        name = mfu_name(run)
        blocks.append(Paragraph(f"{name[0].upper()}{name[1:]}: {convention(run)}", "note"))
    return blocks


def verdict(run: RunData, facts: Headline) -> str:
    """One sentence: how far it got, and what it reached."""
    steps, tokens = count(facts.steps), count(facts.tokens)
    begin = {
        "finished": f"Finished after {steps} steps and {tokens} tokens",
        "running": f"Still running: {steps} steps and {tokens} tokens so far",
        "stopped": f"Stopped after {steps} steps and {tokens} tokens",
        "failed": f"Failed after {steps} steps and {tokens} tokens",
    }.get(facts.status, f"{steps} steps and {tokens} tokens")
    if facts.steps is None:
        return f"No step has been logged yet (status: {facts.status})."
    if facts.seconds is not None:
        begin += f" in {span(facts.seconds)}"
    if run.learns_from_samples:
        return f"{begin}; {reached(run)}." if reached(run) else f"{begin}."
    perplexities = [_perplexity(domain) for domain in facts.domains]
    return begin + ("; held-out perplexity " + ", ".join(perplexities) if perplexities else "") + "."


def _perplexity(domain: DomainResult) -> str:
    beside = f" (bigram model: {number(domain.bigram, 0)})" if domain.bigram else ""
    return f"{number(domain.perplexity, 1)} on {domain.name}{beside}"


def overview(run: RunData, facts: Headline) -> list[tuple[str, str]]:
    """(name, value) of what was logged."""
    of = f" of {count(facts.planned_steps)}" if facts.planned_steps and facts.status != "finished" else ""
    losses = [
        f"{number(value, 3)} {name}"
        for name, value in ((_trained(run), facts.train_loss), ("held out", facts.held_out_loss))
        if value is not None
    ]
    best = _best(facts, -1 if run.learns_from_samples else 1)
    result = ("loss, nats a token" if run.is_likelihood else "loss", ", ".join(losses) + best if losses else None)
    if run.learns_from_samples:  # whose loss is no measure: held out it is minus the reward
        of_held_out = None if facts.held_out_loss is None else number(-facts.held_out_loss, 3) + best
        result = ("reward, held out", of_held_out)
    rows = [
        ("status", facts.status),
        ("steps", count(facts.steps) + of if facts.steps is not None else None),
        ("tokens", count(facts.tokens) if facts.tokens is not None else None),
        ("training time", span(facts.seconds) if facts.seconds is not None else None),
        ("tokens per second", count(facts.tokens_per_second) if facts.tokens_per_second is not None else None),
        (mfu_name(run), share(facts.mfu) if facts.mfu is not None else None),
        result,
    ]
    return [(name, value) for name, value in rows if value is not None]


def _trained(run: RunData) -> str:
    """What the loss of training is, where that is no cross-entropy."""
    apart = run.training_loss == "train/loss" and "train/divergence" in run.metrics
    return "training (divergence from the teacher)" if apart else "training"


def _best(facts: Headline, sign: int) -> str:
    """Which step was the best, unless it was the last; sign: of what is shown, as a multiple of the loss."""
    if facts.best_loss is None:
        return ""
    if facts.begun_loss is not None and facts.begun_loss <= facts.best_loss:
        begun = number(sign * facts.begun_loss, 3)
        step = count(facts.best_step)
        return f"; no step was better than the model it began with ({begun}), the best of them was {step}"
    return f", best at step {count(facts.best_step)}" if facts.best_step != facts.steps else ""


def results_table(run: RunData, facts: Headline) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of what came out, whatever the run measured; no rows where it measured nothing."""
    if run.learns_from_samples:
        return outcome_table(run)
    return domain_table(facts) if run.is_likelihood else measures_table(run)


def measures_table(run: RunData) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of what was measured on held-out data, of a run whose loss is no likelihood."""
    measured = run.measures
    names = list(dict.fromkeys(name for found in measured.values() for name in found))
    rows = [
        [domain, *(_with_interval(found.get(name), run.interval(domain, name)) for name in names)]
        for domain, found in measured.items()
    ]
    return ["held-out data", *(name.replace("pass_at_", "pass@").replace("_", " ") for name in names)], rows


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    return number(value, 3) + (f" ({number(interval[0], 3)} to {number(interval[1], 3)})" if interval else "")


def domain_table(facts: Headline) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the held-out results; baselines only where they were counted."""
    counted = any(domain.unigram or domain.bigram for domain in facts.domains)
    columns = ["held-out text", "perplexity", "bits/byte", *(["bigram model", "unigram model"] if counted else [])]
    rows = []
    for domain in facts.domains:
        row = [domain.name, number(domain.perplexity), number(domain.bits_per_byte, 3)]
        if counted:
            row += [_with_bits(domain.bigram, domain.bigram_bits), _with_bits(domain.unigram, domain.unigram_bits)]
        rows.append(row)
    return columns, rows


def _with_bits(perplexity: float | None, bits: float | None) -> str:
    return number(perplexity) + (f" ({number(bits, 3)})" if bits is not None else "")


def _pictures(drawn: list[str]) -> list[Element]:
    shown = [name for name in drawn if name not in ("ledger", "forgetting")]
    if not shown:
        return []
    return [Heading("How it went"), *(Picture(name, PICTURE_WORDS.get(name, name)) for name in shown)]


def _forgetting(run: RunData, drawn: bool) -> list[Element]:
    """How well the run still does on the parent's domains, where it measured that."""
    if not measurements(run):
        return []
    columns, rows = table(run)
    picture = [Picture("forgetting", PICTURE_WORDS["forgetting"])] if drawn else []
    words = [Paragraph(verdict_of_guard(run))] if verdict_of_guard(run) else []
    note = Paragraph("Forgetting is the perplexity above the one that the parent had before the first step.", "note")
    return [Heading("What was kept of the parent"), *words, *picture, Sheet(columns, rows), note]


def _samples(run: RunData) -> list[Element]:
    answered = {answer.get("domain") for answer in run.answers}
    samples = [sample for sample in run.samples if sample.get("domain") not in answered]
    if not samples:
        return []
    newest = max(sample.get("step") or 0 for sample in samples)
    shown = [sample for sample in samples if (sample.get("step") or 0) == newest]
    held = "the answer that was scored" if run.calibration else "what the model went on with"
    words = f"After {count(newest)} steps. The prompt comes first; ⟦ and ⟧ hold {held}."
    texts = [
        Sample(str(s.get("prompt", "")).rstrip("\n"), str(s.get("completion", "")).rstrip("\n"), _caption(s))
        for s in shown
    ]
    return [Heading("Samples"), Paragraph(words), *texts]


def _caption(sample: Mapping[str, Any]) -> str:
    domain = str(sample.get("domain", ""))
    return f"{domain}, {sample.get('side')}: {number(sample['score'], 3)}" if "score" in sample else domain


def _ledger(run: RunData, drawn: bool) -> list[Element]:
    sources: Mapping[str, Mapping[str, Any]] = run.ledger.get("sources", {})
    if not sources:
        return []
    whole = sum(source.get("weight") or 0 for source in sources.values()) or 1
    rows = [_source_row(name, source, whole) for name, source in sources.items()]
    columns = ("source", "domain", "weight", "planned", "seen", "epochs", "rows read", "held out", "dropped", "bad")
    blocks: list[Element] = [Heading("Data ledger")]
    if drawn:
        blocks.append(Picture("ledger", PICTURE_WORDS["ledger"]))
    blocks.append(Sheet(columns, rows))
    reasons = [[name, why] for name, source in sources.items() if (why := _reasons(source))]
    if reasons:
        blocks.append(Sheet(("source", "rows left out"), reasons, numbers=False))
    padding = run.ledger.get("padding_share")
    if padding is not None and not run.learns_from_samples:  # prompts are in no rows
        blocks.append(Paragraph(f"Padding: {share(padding, 2)} of all positions.", "note"))
    return blocks


def _source_row(name: str, source: Mapping[str, Any], whole: float) -> list[str]:
    lost = [count(sum((source.get(kind) or {}).values())) for kind in ("dropped", "bad")]
    tokens = [count(source.get("planned_tokens")), count(source.get("seen_tokens"))]
    rows = [count(source.get("rows")), count(source.get("held_out"))]
    weight = share((source.get("weight") or 0) / whole)
    return [name, str(source.get("domain", "–")), weight, *tokens, number(source.get("epochs")), *rows, *lost]


def _reasons(source: Mapping[str, Any]) -> str:
    """`duplicate 112, too short 31, bad: not UTF-8 2`: the most frequent first."""
    found = [(n, reason) for reason, n in (source.get("dropped") or {}).items()]
    found += [(n, f"bad: {reason}") for reason, n in (source.get("bad") or {}).items()]
    return ", ".join(f"{reason} {count(n)}" for n, reason in sorted(found, reverse=True))


def _incidents(run: RunData) -> list[Element]:
    lines = incidents(run)
    if not lines:
        return [Heading("Incidents"), Paragraph("None: no step was skipped, no row set aside, no checkpoint damaged.")]
    return [Heading("Incidents"), Sheet(("what", "how often or which"), [list(line) for line in lines], numbers=False)]


def incidents(run: RunData) -> list[tuple[str, str]]:
    """(what, how often or which) of everything irregular: skipped steps, resumptions, damaged checkpoints, bad rows,
    and examples that did not fit into a row (in every pass)."""
    skipped, resumed = run.last("train/skipped"), run.run.get("resumed")
    found = []
    if skipped:
        found.append(("steps skipped (loss or gradient not finite)", count(skipped)))
    if resumed:
        found.append(("resumed from a checkpoint", f"{count(resumed)} x"))
    found += [("damaged checkpoint passed over", str(path)) for path in run.run.get("damaged") or ()]
    for name, rows in run.quarantined.items():
        found += [(f"rows set aside from {name}", f"{count(rows)} (`quarantine/{name}.jsonl`)")] if rows else []
    for name, source in run.ledger.get("sources", {}).items():
        long = [f"{count(n)} x {what}" for what, n in sorted((source.get("too_long") or {}).items())]
        found += (
            [(f"examples of {name} longer than a row", f"{', '.join(long)} (`data.long_examples`)")] if long else []
        )
    if run.run.get("error"):
        found.append(("ended by", str(run.run["error"])))
    return found


def _next(run: RunData) -> list[Element]:
    blocks: list[Element] = [Heading("How to go on")]
    for words, command, language in going_on(run):
        blocks += [Paragraph(words), Code(command, language)]
    return blocks
