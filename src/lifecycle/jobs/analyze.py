"""`stage=analyze`: measures a mixture (tokens, lengths, duplicates, samples) before it is trained on.

    python -m lifecycle stage=analyze stage.view=chat data=files 'data.sources.mine.path=chats.jsonl'
    python -m lifecycle stage=analyze data=fineweb_medqa data.sources.web.max_rows=10000 stage.budget_tokens=2e9

Writes analysis.json, analysis.md and analysis.html (pictures inside) into the run's folder. Every row is read once.
What is counted and shown are items of `stage.view`; a terminal shows one of each source, its trained tokens marked.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from lifecycle.bounds import Count, FromZero
from lifecycle.data.corpus import Corpus
from lifecycle.data.survey.mixture import measure
from lifecycle.errors import UserError
from lifecycle.report.analysis import examples, write_analysis
from lifecycle.report.page.marked import show
from lifecycle.system import atomic


def analyze(
    data: Corpus, folder: Path, budget_tokens: Count | None, processes: Count, samples: FromZero
) -> dict[str, Any]:
    """Measure the mixture of `data`, for a run of `budget_tokens` where one is planned, and write the analysis into
    `folder`.

    Returns documents, tokens and (of a planned run) epochs by source. Raises UserError for a budget or a
    number that cannot be meant.
    """
    if (budget_tokens is not None and budget_tokens < 1) or samples < 0:
        raise UserError(f"stage.budget_tokens is {budget_tokens} and stage.samples {samples}; wanted at least 1 and 0")
    found = measure(data, budget_tokens=budget_tokens, processes=processes, samples=samples)
    atomic.write(folder / "analysis.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(write_analysis(folder, found))
    shown = examples(found)
    firsts = {block.caption.partition(",")[0]: block for block in reversed(shown)}
    show(list(firsts.values())[::-1], Console())
    told = ("documents", "tokens", *(() if budget_tokens is None else ("epochs",)))
    return {name: {key: source[key] for key in told} for name, source in found["sources"].items()}
