"""How large the sources of a mixture are, as far as that can be known without training a tokenizer or downloading."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from lifecycle.data.clean.source import BadRows, HeldOut, Source
from lifecycle.data.read.bytes.damage import OnDamage
from lifecycle.data.read.files.listing import is_remote, listing
from lifecycle.data.read.recognise import recognised
from lifecycle.data.read.rows.first_look import look
from lifecycle.data.read.spec import SourceSpec
from lifecycle.data.stream.documents import RawDocuments
from lifecycle.errors import UserError
from lifecycle.system.say_once import say_read
from lifecycle.tokenizer.tokenizer import Tokenizer, TokenizerRecipe, load, place_of

READ_AT_MOST = 32 * 2**20  # bytes of text: a source beyond this is extrapolated from its beginning
MEASURED_ON = 200_000  # bytes of text that the tokenizer is tried on
BYTES_PER_TOKEN = 4.0  # where there is no tokenizer to measure with yet


@dataclass(frozen=True, kw_only=True)
class SourceSize:
    """`tokens` of one pass over the training side, None where the rows are far away; `how` says how it was found."""

    name: str
    domain: str
    tokens: float | None
    max_epochs: float | None
    how: str


def survey(
    specs: Mapping[str, SourceSpec],
    *,
    tokenizer: Tokenizer | None,
    root: str | None,
    cache: Path,
    on_damage: OnDamage = "error",
    shards: Mapping[str, int] | None = None,
    view: str = "text",
) -> list[SourceSize]:
    """The size of every source: of its prepared shards (`shards`: their tokens), else from its rows where they are on
    this machine, as documents, else from `tokens` in its config. view: that a format to be recognised should give."""
    given = shards or {}
    return [
        _size(name, spec, tokenizer, root, cache, on_damage, view)
        if name not in given
        else _of_shards(name, spec, given[name])
        for name, spec in specs.items()
    ]


def known_tokenizer(wanted: str | TokenizerRecipe) -> Tokenizer | None:
    """The tokenizer if it can be had now; None for a recipe still to be trained and for a hub that is not reached."""
    if isinstance(wanted, TokenizerRecipe):
        return None
    try:
        return load(wanted)
    except UserError:
        if place_of(wanted).exists():
            raise
        return None


def _of_shards(name: str, spec: SourceSpec, tokens: int) -> SourceSize:
    spec.check(name, placed=False)
    return SourceSize(
        name=name,
        domain=spec.domain or name,
        tokens=tokens,
        max_epochs=spec.max_epochs,
        how=f"its shards hold {tokens:,} tokens",
    )


def _size(
    name: str,
    spec: SourceSpec,
    tokenizer: Tokenizer | None,
    root: str | None,
    cache: Path,
    on_damage: OnDamage,
    view: str,
) -> SourceSize:
    spec.check(name)
    tokens, how = spec.tokens, "stated in the config" if spec.tokens else "unknown: on the hub"
    if spec.hub is None or Path(spec.hub).exists():
        tokens, how = _measured(name, spec, tokenizer, root, cache, on_damage, view)
    return SourceSize(
        name=name,
        domain=spec.domain or name,
        tokens=tokens,
        max_epochs=spec.max_epochs,
        how=how,
    )


def _measured(
    name: str,
    spec: SourceSpec,
    tokenizer: Tokenizer | None,
    root: str | None,
    cache: Path,
    on_damage: OnDamage,
    view: str,
) -> tuple[float | None, str]:
    found = listing(spec, name=name, root=root, cache=cache)
    say_read(f"data.sources.{name}", found)
    look(found.files, on_damage)
    if any(is_remote(file.url) for file in found.files):
        return spec.tokens, "stated in the config" if spec.tokens else "unknown: read over the network"
    spec, found = recognised(spec, found, where=f"data.sources.{name}", view=view)
    source = Source(
        name=name,
        index=0,
        spec=replace(spec, max_epochs=1),
        files=found.files,
        bad_rows=BadRows(max_share=1.0, min_rows=1, damaged_files=on_damage),
        held_out=HeldOut.of(spec),
    )
    documents = RawDocuments.alone(source, lambda texts: [], seed=0, buffer=1000, shuffle=False)
    size, sample = 0, list[str]()
    for text in documents.texts():
        if size < MEASURED_ON:
            sample.append(text)
        size += len(text.encode("utf-8", "surrogatepass"))
        if size > READ_AT_MOST:
            break
    whole = size <= READ_AT_MOST
    share = 1.0 if whole else max(documents.totals()["epochs"], 1e-9)
    ratio = _bytes_per_token(sample, tokenizer)
    how = f"{'its' if whole else 'its first'} {size / 1e6:,.1f} MB of text at {ratio:.2f} bytes a token"
    return size / share / ratio, how + ("" if tokenizer else " (a guess: the tokenizer is not there yet)")


def _bytes_per_token(sample: list[str], tokenizer: Tokenizer | None) -> float:
    if tokenizer is None or not sample:
        return BYTES_PER_TOKEN
    tokens = sum(len(ids) for ids in tokenizer.documents(sample))
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in sample) / max(tokens, 1)
