"""What a reward model says of held-out pairs when its run is over: in place of the samples of a language model.

samples.json        a few answers, each with its score
calibration.json    by domain: accuracy with its interval, and how far the certainty can be believed
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lifecycle.batch import PairBatch
from lifecycle.data.module import DataModule
from lifecycle.model import Decoder, DocumentMask
from lifecycle.stages.calibration import reliability
from lifecycle.tokenizer.tokenizer import Tokenizer

PAIRS_A_DOMAIN = 2


@torch.no_grad()
def held_out_scores(
    model: Decoder, data: DataModule, *, step: int
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """The content of both files. model: whole, on its device, in eval mode."""
    samples, found = list[dict[str, Any]](), dict[str, dict[str, Any]]()
    for domain, held in data.held_out.items():
        differences, first = [torch.zeros(0)], list[dict[str, Any]]()
        for batch in held.batches(1, 0, 1):
            chosen_P, rejected_P = _scores(model, batch)
            differences.append(chosen_P - rejected_P)
            if len(first) < 2 * PAIRS_A_DOMAIN:
                first += _told(batch, chosen_P, rejected_P, data.tokenizer)
        samples += [{"step": step, "domain": domain, **one} for one in first[: 2 * PAIRS_A_DOMAIN]]
        found[domain] = reliability(torch.cat(differences))
    return samples, found


def _scores(model: Decoder, batch: PairBatch) -> tuple[Tensor, Tensor]:
    """(P,) each, on the CPU."""
    moved = batch.to(model.embedding.weight.device)
    tokens = moved.tokens
    documents = DocumentMask.from_ids(tokens.document_ids, kernel="sdpa")
    hidden_ND = model(tokens.input_ids, tokens.position_ids, documents).flatten(0, 1)
    chosen_P, rejected_P = (model.scores(hidden_ND[ends]).cpu() for ends in moved.ends)
    return chosen_P, rejected_P


def _told(batch: PairBatch, chosen_P: Tensor, rejected_P: Tensor, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Each side of the pairs of a row: prompt, answer and score."""
    tokens, out = batch.tokens, []
    ids, documents, trained = (part[0] for part in (tokens.input_ids, tokens.document_ids, tokens.trained))
    for pair, scores in enumerate(zip(chosen_P.tolist(), rejected_P.tolist(), strict=True)):
        for side, (name, score) in enumerate(zip(("chosen", "rejected"), scores, strict=True)):
            inside = documents == 2 * pair + side + 1
            asked = int(trained[inside].int().argmax()) + 1  # a label stands one position before its token
            prompt, answer = ids[inside][:asked].numpy(), ids[inside][asked:].numpy()
            out.append(
                {
                    "prompt": tokenizer.decode(prompt, specials=True),
                    "completion": tokenizer.decode(answer, specials=True),
                    "side": name,
                    "score": score,
                }
            )
    return out
