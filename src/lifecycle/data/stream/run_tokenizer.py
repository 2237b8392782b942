"""The tokenizer of a run: of a resumed run its own, else that of its prepared shards, the one that the config names, or
one trained on a sample of the training text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lifecycle.data.clean.source import Source
from lifecycle.data.read.begun import Begun, named_tokenizer
from lifecycle.data.stream.documents import RawDocuments
from lifecycle.data.stream.prepared import prepared_tokenizer
from lifecycle.tokenizer.tokenizer import Tokenizer, TokenizerRecipe, from_recipe, load


def run_tokenizer(
    chosen: str | TokenizerRecipe,
    prepared: str | None,
    begun: Begun | None,
    *,
    sources: Sequence[Source],
    weights: Mapping[str, float],
    seed: int,
    cache: Path,
) -> Tokenizer:
    """The tokenizer of a run over `sources`, whose shares of the tokens are `weights`.

    chosen: `data.tokenizer`, a name or a recipe; prepared: `data.prepared`, whose tokenizer is taken where it is given;
    begun: the tokenizer and data that a resumed run was started with. A recipe is trained once and kept in `cache`.
    Raises `UserError` where a resumed run would have another tokenizer than before.
    """

    def named_or_trained() -> Tokenizer:
        if isinstance(chosen, str):
            return load(chosen)
        key = "|".join(f"{s.name}:{s.fingerprint}:{weights[s.name]!r}" for s in sources)
        texts = _sample_texts(sources, weights, chosen.max_bytes, seed)
        return from_recipe(chosen, texts, cache / "tokenizers", f"{key}|{seed}")

    if begun is not None:
        named = prepared_tokenizer(prepared, chosen) if prepared else named_tokenizer(chosen)
        place = f"data.prepared={prepared}" if prepared else f"data.tokenizer={chosen}"
        if (own := begun.own_tokenizer(named, place)) is not None:
            return own
        return begun.check_trained(named_or_trained())
    return prepared_tokenizer(prepared, chosen) if prepared else named_or_trained()


def _sample_texts(sources: Sequence[Source], weights: Mapping[str, float], max_bytes: int, seed: int) -> Iterator[str]:
    """Training texts in the shares of the mixture, up to `max_bytes` or until every source was read once."""
    readers = {s.name: _texts(s, seed) for s in sources if weights[s.name] > 0}
    given = dict.fromkeys(readers, 0)
    while readers and sum(given.values()) < max_bytes:
        name = min(readers, key=lambda n: given[n] / weights[n])
        text = next(readers[name], None)
        if text is None:
            del readers[name]
            continue
        given[name] += len(text.encode("utf-8", "surrogatepass"))
        yield text


def _texts(source: Source, seed: int) -> Iterator[str]:
    once = replace(source, spec=replace(source.spec, max_epochs=1))
    return RawDocuments.alone(once, lambda texts: [], seed=seed, buffer=1000).texts()
