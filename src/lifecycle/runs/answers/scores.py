"""What a reward model says of held-out pairs when its run is over, in place of answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lifecycle.batch import PairBatch
from lifecycle.model import Decoder, DocumentMask
from lifecycle.stages.preference.answers import pair_scores
from lifecycle.stages.preference.calibration import reliability
from lifecycle.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from lifecycle.data.module import DataModule

PAIRS_A_DOMAIN = 2


@torch.no_grad()
def held_out_scores(
    model: Decoder, data: DataModule, *, step: int
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """What a reward model says of held-out pairs when its run is over, in place of answers: samples.json, a few answers
    with their scores, and calibration.json, by domain how often it is right, and how sure. model: whole, on its device,
    in eval mode."""
    samples, found = list[dict[str, Any]](), dict[str, dict[str, Any]]()
    for domain, held in data.held_out.items():
        differences, first = [torch.zeros(0, dtype=torch.float32, device="cpu")], list[dict[str, Any]]()
        for batch in held.batches(1, 0, 1):
            moved = batch.to(model.embedding.weight.device)
            documents = DocumentMask.from_ids(moved.tokens.document_ids, kernel="sdpa")
            chosen_P, rejected_P = (scores.cpu() for scores in pair_scores(model, moved, documents))
            differences.append(chosen_P - rejected_P)
            if len(first) < 2 * PAIRS_A_DOMAIN:
                first += _told(batch, chosen_P, rejected_P, data.tokenizer)
        samples += [{"step": step, "domain": domain, **one} for one in first[: 2 * PAIRS_A_DOMAIN]]
        found[domain] = reliability(torch.cat(differences))
    return samples, found


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
