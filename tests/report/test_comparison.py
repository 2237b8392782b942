import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from lifecycle.loggers.csv_logger import CsvLogger
from lifecycle.report.__main__ import main
from lifecycle.report.comparison import compare, table, write_comparison


def made(
    folder: Path,
    seed: int,
    share: float,
    *measured: tuple[int, dict[str, float]],
    bits: Mapping[str, float] | None = None,
    **facts: object,
) -> Path:
    """A run of a recipe: `measured` holds steps and perplexities, `bits` the bits per byte."""
    folder.mkdir(parents=True)
    watched = {"callbacks": {"progress": seed == 1}}  # which makes no other recipe
    config = {"run": folder.name, "seed": seed, "stage": {"replay": {"share": share}}, **watched}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "run.json").write_text(json.dumps({"status": "finished", "seconds": 60.0, **facts}))
    logger = CsvLogger(folder=folder)
    for step, perplexities in measured:
        values = {f"valid/{domain}/perplexity": value for domain, value in perplexities.items()}
        values |= {f"valid/{domain}/bits_per_byte": value for domain, value in (bits or {}).items()}
        logger.log_metrics({"tokens": 1000 * step, **values}, step=step)
    logger.finalize("success")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    start = (0, {"general": 50.0, "medicine": 100.0})
    return [
        made(tmp_path / "none_s1", 1, 0.0, start, (10, {"general": 60.0, "medicine": 40.0})),
        made(tmp_path / "none_s2", 2, 0.0, start, (10, {"general": 64.0, "medicine": 40.0})),
        made(tmp_path / "tenth", 1, 0.1, start, (10, {"general": 51.0, "medicine": 42.0})),
    ]


def test_seeds_are_one_row_and_changes_are_against_the_start(runs: list[Path]) -> None:
    columns, rows = table(compare([*runs, runs[0]]))  # one is given twice, and counts once
    assert columns == ["run", "general", "medicine", "tokens", "time"]
    assert rows == [
        ["before", "50.00", "100.00", "–", "–"],
        ["none (2 seeds)", "62.00 ± 2.83 (+24.0%)", "40.00 ± 0.00 (-60.0%)", "10,000", "1 min 00 s"],
        ["tenth", "51.00 (+2.0%)", "42.00 (-58.0%)", "10,000", "1 min 00 s"],
    ]


def test_stages_that_know_more_and_more_are_against_the_first_that_knew(tmp_path: Path) -> None:
    first = made(tmp_path / "first", 1, 0.0, (5, {"prose": 20.0}))
    second = made(tmp_path / "second", 1, 0.1, (0, {"prose": 21.0, "code": 80.0}), (5, {"prose": 22.0, "code": 8.0}))
    _, rows = table(compare([first, second]))
    assert [row[1:3] for row in rows] == [["20.00", ""], ["22.00 (+10.0%)", "8.00"]]


def test_a_run_that_was_taken_back_counts_as_the_checkpoint_it_ended_with(tmp_path: Path) -> None:
    measured = [(0, {"general": 50.0}), (4, {"general": 52.0}), (8, {"general": 70.0})]
    (row,) = compare([made(tmp_path / "back", 1, 0.0, *measured, restored=5)])[1:]
    assert row.held_out == {"general": [52.0]}


def test_runs_of_different_tokenizers_are_compared_by_bits_per_byte(tmp_path: Path) -> None:
    runs = [
        made(tmp_path / "words", 1, 0.0, (5, {"prose": 300.0}), bits={"prose": 2.8}, tokenizer={"sha256": "a"}),
        made(tmp_path / "bytes", 1, 0.1, (5, {"prose": 200.0}), bits={"prose": 4.2}, tokenizer={"sha256": "b"}),
    ]
    columns, rows = table(compare(runs))
    assert columns[1] == "prose, bits per byte" and [row[1] for row in rows] == ["2.800", "4.200 (+50.0%)"]
    page = write_comparison(runs, tmp_path / "out").read_text()
    assert "Bits per byte of held-out text" in page and "different tokenizers" in page
    assert table(compare(runs[:1]))[1][0][1] == "300.00"


def test_the_page_and_its_picture_are_written(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "together"
    assert main(["--compare", str(out), *map(str, runs)]) == 0
    told = capsys.readouterr().out
    assert "none" in told and "…" not in told  # on 80 columns, too, nothing is cut
    assert "| tenth | 51.00 (+2.0%) |" in (out / "comparison.md").read_text()
    assert (out / "perplexity.png").read_bytes().startswith(b"\x89PNG")
    assert write_comparison(runs[:1], out) == out / "comparison.md"


def test_what_was_not_measured_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["--compare", str(tmp_path / "out"), str(tmp_path / "empty")]) == 2
    assert "holds no measured run" in capsys.readouterr().err


# -- runs whose loss is no likelihood


def judged(folder: Path, seed: int, accuracy: float, *told: str, pairs: int = 100, kl: float | None = 0.5) -> Path:
    """A run on pairs: `told` are words of its command line."""
    folder.mkdir(parents=True)
    config = {"run": "sweep", "seed": seed, "stage": {"told": [word for word in told if not word.startswith("seed")]}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    facts = {"overrides": ["stage=dpo", *told], "data": {"validation": {"manners": {"documents": pairs}}}}
    (folder / "run.json").write_text(json.dumps({"status": "finished", "seconds": 60.0, **facts}))
    logger = CsvLogger(folder=folder)
    for step, share in ((0, 0.0), (10, accuracy)):
        values = {"loss": 0.69, "accuracy": share, "margin": share / 10, **({} if kl is None else {"kl": kl})}
        logger.log_metrics({f"valid/manners/{name}": value for name, value in values.items()}, step=step)
    logger.finalize("success")
    return folder


def answered(folder: Path, *said: tuple[int, int, int]) -> Path:
    """answers.jsonl of a run: by step how many of how many are well-formed."""
    lines = [
        {"step": step, "prompt": str(number), "well_formed": number < formed, "right": False}
        for step, formed, of in said
        for number in range(of)
    ]
    (folder / "answers.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_runs_on_pairs_are_compared_by_what_they_measured_with_intervals(tmp_path: Path) -> None:
    first = judged(tmp_path / "sweep" / "0", 42, 0.8, "stage.loss=sigmoid")
    judged(tmp_path / "sweep" / "1", 42, 0.7, "++stage.loss=simpo", kl=None)
    columns, rows = table(compare([tmp_path / "sweep", first]))  # the folder of a sweep stands for its runs
    assert columns == ["run", "manners, accuracy", "manners, margin", "manners, kl", "tokens", "time"]
    assert [row[:4] for row in rows] == [
        ["stage.loss=sigmoid", "80.0 % (71.1 to 86.7)", "0.080", "0.500"],
        ["stage.loss=simpo", "70.0 % (60.4 to 78.1)", "0.070", ""],
    ]


def test_the_losses_of_two_functions_are_not_compared_unless_nothing_else_was_measured(tmp_path: Path) -> None:
    folder = judged(tmp_path / "bare", 1, 0.8)
    head, *lines = (folder / "metrics.csv").read_text().splitlines()
    kept = [head.split(",").index(name) for name in ("step", "valid/manners/loss")]
    text = [",".join(line.split(",")[at] for at in kept) for line in (head, *lines)]
    (folder / "metrics.csv").write_text("\n".join(text) + "\n")
    assert table(compare([folder]))[0][1] == "manners, loss"


def test_seeds_of_a_sweep_are_one_row_named_by_what_they_have_in_common(tmp_path: Path) -> None:
    for number, (seed, loss, share) in enumerate([(1, "ipo", 0.6), (2, "ipo", 0.8), (1, "nca", 0.5)]):
        judged(tmp_path / "sweep" / str(number), seed, share, f"stage.loss={loss}", f"seed={seed}")
    rows = table(compare([tmp_path / "sweep"]))[1]
    assert [row[:2] for row in rows] == [
        ["stage.loss=ipo (2 seeds)", "70.0 % ± 14.1 %"],
        ["stage.loss=nca", "50.0 % (40.4 to 59.6)"],
    ]


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    folders = [tmp_path / above / "out" / "dpo" for above in ("mine", "yours")]
    for number, folder in enumerate(folders):
        judged(folder, 1, 0.5, f"stage.beta={number}")
    other = judged(tmp_path / "dpo2", 1, 0.5, "stage.beta=2")
    assert [row.name for row in compare([*folders, other])] == ["mine/out/dpo", "yours/out/dpo", "dpo2"]


def test_a_run_of_a_sweep_that_differs_in_nothing_short_has_its_number_before_it(tmp_path: Path) -> None:
    long = [f"data.sources.a_source_with_a_long_name.path=folder_{number}" for number in range(2)]
    sweep = [judged(tmp_path / "sweep" / str(number), 1, 0.5, long[number]) for number in range(2)]
    assert [row.name for row in compare(sweep)] == [f"sweep/{number}: {long[number]}" for number in range(2)]


def test_answers_to_held_out_prompts_stand_beside_text(runs: list[Path], tmp_path: Path) -> None:
    answered(runs[0], (0, 0, 50), (10, 48, 50))
    columns, rows = table(compare([runs[0], runs[2]]))
    assert columns[:4] == ["run", "general", "medicine", "well-formed answers"]  # of right ones there was none
    assert [row[3] for row in rows] == ["", "96.0 % (86.5 to 98.9)", ""]


def test_measures_of_a_run_that_was_taken_back_end_where_it_went_back_to(tmp_path: Path) -> None:
    folder = answered(judged(tmp_path / "back", 1, 0.9), (0, 1, 4), (10, 4, 4))
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(facts | {"restored": 5}))
    (row,) = compare([folder])
    assert row.measured["manners, accuracy"][0].values == (0.0,)
    assert row.measured["well-formed answers"][0].last == 0.25


def test_the_page_of_measures_has_one_picture_and_no_words_on_perplexity(tmp_path: Path) -> None:
    for number in range(3):
        judged(tmp_path / "sweep" / str(number), 1, number / 2, f"stage.beta={number}")
    path = write_comparison([tmp_path / "sweep"], tmp_path / "out")
    assert {file.name for file in path.parent.iterdir()} == {"comparison.md", "comparison.html", "measures.png"}
    assert "erplexity" not in path.read_text() and "95 % interval (Wilson)" in path.read_text()
    assert "data:image/png" in (tmp_path / "out" / "comparison.html").read_text()
