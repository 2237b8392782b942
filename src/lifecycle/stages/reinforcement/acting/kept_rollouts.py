"""Samples of a step as a file to look at: outputs/RUN/rollouts/step-00000010.parquet, a row a sample.

    step, source, id, prompt, answer        the prompt: its record, its text, and what is known to be right
    sample, seed, completion, stop_reason   the sample: which of its prompt, the seed of its draws, its text
    reward, advantage, rewards              its worth: the weighted sum, and each reward by name
    prompt_ids, token_ids, trained          its tokens, and which of them are trained
    logprobs, full_logprobs, entropy        of each token: under the truncated and the whole distribution
    turns, calls, calls_failed              with an environment: who said what in turn, its calls, those that failed
    kept_counts, kept_ids                   the tokens that each was drawn from, 0 for the whole vocabulary

A step that is taken again writes the same file. Each rank writes its own, with its number behind the step.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from lifecycle.batch import Dialogue
from lifecycle.batch.prompts import PLACES
from lifecycle.stages.reinforcement.acting.scoring import SampleScores
from lifecycle.stages.reinforcement.learning.experience import Experience, prompt_of
from lifecycle.stages.run.setup import Setup
from lifecycle.system import atomic

FOLDER = "rollouts"


def keep(experience: Experience, scores: SampleScores, setup: Setup, *, step: int, rank: int, world: int) -> None:
    """Write the samples of step `step`, counted from 1."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    assert setup.folder is not None
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows(experience, scores, setup, step=step)), out, compression="zstd")
    folder = setup.folder / FOLDER
    folder.mkdir(exist_ok=True)
    name = f"step-{step:08d}"
    mine = [f"{name}-{one}.parquet" for one in range(world)] if world > 1 else [f"{name}.parquet"]
    atomic.write(folder / mine[rank], out.getvalue())
    for other in folder.glob(f"{name}*.parquet") if rank == 0 else ():
        if other.name not in mine:  # the run went on with another number of ranks
            other.unlink()


def rows(experience: Experience, scores: SampleScores, setup: Setup, *, step: int) -> list[dict[str, Any]]:
    """A row for each sample."""
    rollout, prompts, decode = experience.rollout, experience.prompts, setup.tokenizer
    assert decode is not None
    worth, out = scores.worth.tolist(), list[dict[str, Any]]()
    counts, ends = rollout.kept.counts, rollout.kept.offsets
    for n, i in enumerate(prompt_of(rollout, prompts)):
        length, T = int(rollout.length[n]), rollout.token_ids.shape[1]
        draws = slice(n * T, n * T + length)
        named = zip(scores.names, scores.rewards[n].tolist(), strict=True)
        dialogue = {} if rollout.dialogues is None else _told(rollout.dialogues[n])
        out.append(
            {
                "step": step,
                "place": int(rollout.prompt_id[n] % PLACES),
                "source": setup.source_names[int(prompts.source_ids[i])],
                "id": prompts.id[i],
                "prompt": decode.decode(prompts.ids[i], specials=True),
                "answer": prompts.answer[i],
                "sample": int(rollout.sample[n]),
                "seed": int(rollout.seed[n]),
                "completion": rollout.text[n],
                "stop_reason": rollout.stop_reason[n],
                "reward": worth[n],
                "advantage": float(experience.advantage[n]),
                "rewards": dict(named),
                "prompt_ids": prompts.ids[i],
                "token_ids": rollout.completion(n),
                "trained": experience.trained[n, :length].tolist(),
                "logprobs": rollout.logprobs[n, :length].tolist(),
                "full_logprobs": rollout.full_logprobs[n, :length].tolist(),
                "entropy": rollout.entropy[n, :length].tolist(),
                "kept_counts": counts[draws].tolist(),
                "kept_ids": rollout.kept.ids[int(ends[n * T]) : int(ends[n * T + length])].tolist(),
                **dialogue,
            }
        )
    return out


def _told(dialogue: Dialogue) -> dict[str, Any]:
    turns = [{"by": "policy" if own else "environment", "text": text} for own, text in dialogue.turns]
    return {"turns": turns, "calls": dialogue.calls, "calls_failed": dialogue.failed}


def read(folder: Path) -> Any:
    """The kept samples of a run as one table (`pyarrow.Table`), in the order of steps."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = [pq.read_table(file) for file in sorted((folder / FOLDER).glob("*.parquet"))]
    return pa.concat_tables(tables, promote_options="default")  # a run may go on with an environment, or without
