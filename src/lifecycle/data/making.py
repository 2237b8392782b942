"""Rows that passed the filters as items of the view of a run, many at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lifecycle.batch import Example, Item
from lifecycle.data.clean.filter_row import Judged
from lifecycle.data.conversation.template_check import TEXT
from lifecycle.data.views import VIEWS
from lifecycle.tokenizer.chat import ChatTemplate
from lifecycle.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Maker:
    """Makes items of `view` under `tokenizer` and a chat template; it can be sent to other processes."""

    view: str
    tokenizer: Tokenizer
    template: ChatTemplate | None = None

    def __call__(self, rows: Sequence[Judged]) -> list[Item | str]:
        """The item of each row that has a text; in its place the reason why there is none."""
        if self.view == TEXT:  # its text is there already, masked
            texts = [row.text for row in rows if row.text is not None]
            return [Example(ids=ids) for ids in self.tokenizer.documents(texts)]
        return VIEWS[self.view]([row.record for row in rows if row.record is not None], self.tokenizer, self.template)

    @property
    def key(self) -> str:
        """What the items depend on beside the rows and the tokenizer."""
        return f"{self.view} {self.template.sha256}" if self.template else self.view
