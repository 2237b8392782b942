"""What a source is: the typed form of `data.sources.<name>` in a data config. Default values live here only.

A source is a hub data set or a set of files; a *format* says how its rows become records (`formats.py`), filters say
which are left out (`rules.py`), `validation` says what is held out.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from lifecycle.batch import KEPT
from lifecycle.bounds import Count, FromZero, NotNegative, Part, Positive
from lifecycle.data.mixture.weight import Weight
from lifecycle.data.quality.rules import FilterSpec
from lifecycle.data.read.formats import AUTO, COLUMNS, FORMATS
from lifecycle.errors import UserError

SampleBy = Literal["document", "line", "paragraph"]


@dataclass(frozen=True, kw_only=True)
class ValidationRatio:
    """Hold out the documents whose text hashes (with `seed`) into the first `ratio` of the hash's range."""

    ratio: Part = 0.05
    seed: int = 42


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """One source of a mixture; exactly one of `hub` and `path` is given.

    hub: a data set of the Hugging Face hub (or a local folder laid out like one); config: its configuration;
        data_dir: the folder in it, where its parts are folders (starcoderdata: python); revision: a branch, tag or
        commit of it, None: its main branch as it is when a run begins.
    path: a file, folder, glob or URL, a list of them, or one of these per split; `python://prose` and `python://code`
        are the texts of the running Python installation, `python://arithmetic` and `python://reasoning` exercises,
        `python://questions`, `python://few_questions` and `python://preferences` questions that Python answers,
        `python://demonstrations`, `python://expressions` and `python://expressions_held_out` small expressions that it
        evaluates, `python://calculator_calls`, `python://calculations` and `python://calculations_held_out` questions
        for a calculator.
    split: which split is trained on.
    format, fields: the form of a row (one of `formats.FORMATS`, or auto: recognised by the columns of the first rows),
        and our field name -> the row's (a dotted path, or a list of columns for `options`).
    answer_base: the number of the first option, where a row gives its answer as a number.
    step_tags: write the lines of a worked answer in <step> tags, and GSM8K's calculator marks in <calculation> tags.
    tie_margin: two answers whose scores differ by no more are a near tie, which is left out.
    sample_by: what a row of a plain text file is.
    encoding: of text files, JSON and CSV among them, by Python's name for it (utf-16, cp1252, latin-1, gb18030, ...).
    view: `text` makes its rows documents in a run on conversations; None: what the stage trains on.
    domain: what validation is reported by; None: the source's name.
    weight: share of the trained tokens, relative to the other weights: a number, or one that moves with progress,
        {start, end, shape} or {table: {PROGRESS: WEIGHT}} (see `weight.py`); 0: measured only, never trained on.
    max_epochs: passes over the source at most, and parts of one (1.5); None: no limit.
    max_rows: rows of the source that are read at most, from the start.
    validation: a split's name, a file, `{ratio, seed}`, or None to hold nothing out.
    validation_tokens: its held-out tokens that are measured; None: its share, by weight, of `validation.tokens` for its
        domain. What is replayed has the number that the run measured which it comes from.
    tokens: published size of the source, for the dry run of rows that are not on this machine.
    prompts: the same in rows, for stages that count prompts.
    rewards: names of the rewards of its samples with their weights, in place of the stage's (`stage.rewards`).
    shuffle_options: options of a question stand in another order in each pass of training (see `forms/options.py`).
    """

    hub: str | None = None
    config: str | None = None
    data_dir: str | None = None
    revision: str | None = None
    path: str | list[str] | dict[str, str | list[str]] | None = None
    split: str = "train"
    format: str = "text"
    fields: dict[str, str | list[str]] = field(default_factory=dict)
    answer_base: FromZero = 0
    step_tags: bool = False
    tie_margin: NotNegative = 0.0
    sample_by: SampleBy = "document"
    encoding: str = "utf-8"
    view: Literal["text"] | None = None
    domain: str | None = None
    weight: NotNegative | dict[str, Any] = 1.0
    filters: FilterSpec = field(default_factory=FilterSpec)
    max_epochs: Positive | None = None
    max_rows: Count | None = None
    validation: str | ValidationRatio | dict[str, Any] | None = ValidationRatio()
    validation_tokens: Count | None = None
    tokens: NotNegative | None = None
    prompts: NotNegative | None = None
    rewards: dict[str, float] | None = None
    shuffle_options: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.validation, dict) and set(self.validation) <= {"ratio", "seed"}:  # else `check` says why not
            object.__setattr__(self, "validation", ValidationRatio(**self.validation))

    def view_in(self, view: str) -> str:
        """What the source gives in a run on `view`."""
        return self.view or view

    @property
    def columns(self) -> tuple[str, ...]:
        """Top-level columns of a row that the format reads; a Parquet reader leaves the others on the disk."""
        if self.format == AUTO:
            return COLUMNS
        form = FORMATS[self.format]
        read = [key for key in form.fields if key in self.fields or key in (*form.needs, *form.takes)]
        named = [self.fields.get(key, key) for key in read]
        flat = [name for value in named for name in (value if isinstance(value, list) else [value])]
        return tuple(dict.fromkeys(part for name in flat for part in (name, name.split(".")[0])))

    @property
    def validation_file(self) -> str | None:
        """The file that is held out; None where `validation` is a share, a split, or nothing."""
        value = self.validation
        if not isinstance(value, str) or self.hub is not None:
            return None
        return None if isinstance(self.path, dict) and value in self.path else value

    def check(self, name: str, where: str | None = None, *, placed: bool = True) -> None:
        """Raise UserError for the first value that cannot be meant, naming its dotted key (below `where`). placed:
        whether it has to say where its files are, which who has its shards need not."""
        where = where or f"data.sources.{name}"
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            raise UserError(f"{where}: a source's name is made of letters, digits, '_', '-' and '.' (it names files)")
        if placed or self.hub is not None or self.path is not None:
            self._check_place(where)
        self._check_form(where)
        self._check_amounts(where)
        self._check_validation(where)
        self.filters.check(f"{where}.filters")

    def _check_place(self, where: str) -> None:
        if (self.hub is None) == (self.path is None):
            came = "both" if self.hub is not None else "neither"
            none = f" (or take the source out: '~{where}')" if self.hub is None else ""
            raise UserError(
                f"{where}: {came} of hub and path given; give exactly one, such as {where}.path=texts/*.jsonl{none}"
            )
        for key, what in (
            ("config", "configurations"),
            ("data_dir", "folders of its own"),
            ("revision", "revisions"),
        ):
            if (value := getattr(self, key)) is not None and self.hub is None:
                raise UserError(f"{where}.{key} is {value!r}, but only a hub data set has {what}: remove it")
        if isinstance(self.path, dict) and self.split not in self.path:
            raise UserError(f"{where}.split is {self.split!r}; path has the splits {', '.join(self.path) or 'none'}")
        if self.path is not None and not self.path:
            raise UserError(f"{where}.path is empty; give a file, a glob, a list of them, or one per split")

    def _check_form(self, where: str) -> None:
        if self.format not in (AUTO, *FORMATS):
            raise UserError(f"{where}.format is {self.format!r}; {_choices(str(self.format), (AUTO, *FORMATS))}")
        if self.format == AUTO and self.fields:
            raise UserError(
                f"{where}.fields is given, but {where}.format=auto finds the fields of a row itself: name the format"
            )
        if self.sample_by not in get_args(SampleBy):
            raise UserError(f"{where}.sample_by is {self.sample_by!r}; {_choices(self.sample_by, get_args(SampleBy))}")
        if not _is_encoding(self.encoding):
            raise UserError(
                f"{where}.encoding is {self.encoding!r}; wanted a text encoding that Python knows, as utf-16"
            )
        if self.shuffle_options and self.format not in ("multiple_choice", AUTO):
            raise UserError(f"{where}.shuffle_options is for multiple_choice; this is {self.format}: remove it")
        if self.step_tags and self.format not in ("word_problem", AUTO):
            raise UserError(f"{where}.step_tags is for format word_problem; this is {self.format}: remove it")
        for key, value in self.fields.items():
            if key not in FORMATS[self.format].fields:
                raise UserError(f"{where}.fields.{key}: no such field; {_choices(key, FORMATS[self.format].fields)}")
            if isinstance(value, list) and key not in ("options", KEPT):
                raise UserError(
                    f"{where}.fields.{key} is a list; only options and {KEPT} can be several columns: name one"
                )

    def _check_amounts(self, where: str) -> None:
        weight = Weight.of(self.weight, f"{where}.weight")
        if not weight.trained and self.validation is None:
            raise UserError(
                f"{where}.weight is 0, so the source would be measured only, and it has no {where}.validation: give it "
                "one, or remove the source"
            )

    def _check_validation(self, where: str) -> None:
        value = self.validation
        if isinstance(value, dict) and (unknown := sorted(set(value) - {"ratio", "seed"})):
            raise UserError(f"{where}.validation.{unknown[0]}: no such key; wanted ratio and seed, a split, or a file")
        if isinstance(value, str) and value == self.split and not isinstance(self.path, str | list):
            raise UserError(f"{where}.validation is {value!r}, the split that is trained on: name another, or a ratio")


def _is_encoding(name: str) -> bool:
    try:
        "".encode(name)
    except (LookupError, ValueError):  # unknown, or none of text (base64)
        return False
    return True


def _choices(came: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(came, known, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"wanted one of {', '.join(known)}{hint}"
