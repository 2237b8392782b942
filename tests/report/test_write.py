import errno
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from lifecycle.errors import UserError
from lifecycle.report.__main__ import main
from lifecycle.report.run.plots import PICTURES
from lifecycle.report.write import terminal_summary, write_report
from lifecycle.system import atomic


@pytest.fixture(scope="module")
def folder(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its report."""
    copy = tmp_path_factory.mktemp("written") / "demo"
    shutil.copytree(finished, copy)
    assert write_report(copy) == copy / "report.md"
    return copy


def shown(folder: Path, width: int = 100) -> str:
    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(terminal_summary(folder))
    return capture.get()


def test_the_report_says_what_came_out_beside_the_baselines(folder: Path) -> None:
    text = (folder / "report.md").read_text()
    assert "Finished after 400 steps and 6,553,600 tokens in 4 min 47 s" in text
    assert re.search(r"\| prose \| [\d.]+ \| [\d.]+ \| 141\.90 \(2\.160\) \| 812\.40 \(2\.92\d\) \|", text)


def test_every_picture_that_the_report_names_is_there(folder: Path) -> None:
    links = re.findall(r"!\[.*?\]\((.*?)\)", (folder / "report.md").read_text())
    assert len(links) == len(PICTURES) - 3  # all but those of a run that samples
    assert all((folder / link).is_file() for link in links)


def test_the_report_holds_ledger_samples_incidents_and_what_was_used(folder: Path) -> None:
    text = (folder / "report.md").read_text()
    assert "| stdlib_code | code | 40.0 % | 2,621,440 | 2,621,403 | 0.31 | 4,211 | 204 | 143 | 2 |" in text
    assert "duplicate 112, too short 31, bad: not UTF-8 2" in text
    assert "The for statement⟦ is used to iterate over the elements of a sequence.⟧" in text
    assert "early, unready" not in text  # samples of an earlier step
    assert "| resumed from a checkpoint | 2 x |" in text
    assert "step-00000200" in text and "quarantine/stdlib_code.jsonl" in text
    assert "torch 2.13.0" in text and "`0123456789ab`" in text
    assert "precision bf16: measured 210 GFLOP/s" in text


def test_examples_that_did_not_fit_into_a_row_are_said(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "demo"
    shutil.copytree(finished, copy)
    ledger = json.loads((copy / "ledger.json").read_text())
    ledger["sources"]["stdlib_code"]["too_long"] = {"dropped": 1809, "shortened": 3}
    (copy / "ledger.json").write_text(json.dumps(ledger))
    said = "1,809 x dropped, 3 x shortened (data.long_examples)"
    assert "examples of stdlib_code longer than a row" in shown(copy) and said in shown(copy, width=120)
    assert "longer than a row" in write_report(copy).read_text()
    assert "longer than a row" not in shown(finished)


def test_a_loss_that_is_no_likelihood_has_no_perplexity(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "pairs"
    copy.mkdir()
    for name in ("config.yaml", "run.json", "ledger.json", "samples.json"):
        shutil.copy(finished / name, copy)
    (copy / "baselines.json").write_text("{}")
    (copy / "metrics.csv").write_text(
        "step,tokens,train/loss,valid/mine/loss,valid/mine/accuracy,valid/loss\n9,99,0.7,0.6912,0.625,0.6912\n"
    )
    for said in (shown(copy), write_report(copy).read_text()):
        assert "0.691" in said and "accuracy" in said and "0.625" in said
        assert "nats" not in said and "erplexity" not in said.replace("forgetting", "") and "hold: base" not in said


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            "0,0,,1.5\n9,99,0.7,2.5\n18,198,0.6,2.0",
            "no step was better than the model it began with (1.500), the best of them was 18",
        ),
        ("0,0,,3.5\n9,99,0.7,2.0\n18,198,0.6,2.5", "best at step 9"),
        ("0,0,,3.5\n9,99,0.7,2.5\n18,198,0.6,2.0", None),
    ],
)
def test_the_best_step_is_one_that_has_a_checkpoint(rows: str, said: str | None, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(f"step,tokens,train/loss,valid/loss\n{rows}\n")
    words = " ".join(shown(tmp_path, 200).split())
    assert "best at step 0" not in words
    assert said in words if said else "best at" not in words


def test_the_page_holds_every_picture_and_fetches_nothing(folder: Path) -> None:
    html = (folder / "report.html").read_text()
    assert html.count("<picture>") == len(PICTURES) - 3
    assert "http" not in re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", html)


def test_nothing_is_left_beside_the_report(folder: Path) -> None:
    assert not [path for path in folder.rglob(".*")]


def test_the_commands_carry_the_runs_own_choices(folder: Path) -> None:
    text = (folder / "report.md").read_text()
    assert "python -m lifecycle experiment=demo stage.max_steps=800\n" in text
    assert "python -m lifecycle experiment=demo run=demo-minimind_26m model=minimind_26m dry_run=true\n" in text
    assert f"model='{folder}/model'" in text


@pytest.mark.parametrize(
    ("status", "begin"), [("running", "Still running: "), ("stopped", "Stopped after "), ("failed", "Failed after ")]
)
def test_an_unfinished_run_says_so_and_how_to_go_on(finished: Path, tmp_path: Path, status: str, begin: str) -> None:
    half = tmp_path / "half"
    shutil.copytree(finished, half)
    for name in ("ledger.json", "samples.json", "baselines.json", "model/config.json"):
        (half / name).unlink()
    facts = json.loads((half / "run.json").read_text())
    error = {"error": "OSError: No space left"} if status == "failed" else {}
    (half / "run.json").write_text(json.dumps(facts | {"status": status, "overrides": ["run=half", "seed=3"], **error}))
    text = write_report(half).read_text()
    assert begin in text
    assert "does not (yet) hold: ledger.json, samples.json, baselines.json" in text
    assert "python -m lifecycle run=half seed=3\n" in text
    assert ("No space left" in text) == (status == "failed")
    assert status in shown(half)


def test_an_empty_run_has_a_report_and_a_table(tmp_path: Path) -> None:
    text = write_report(tmp_path).read_text()
    assert "No step has been logged yet" in text
    assert (tmp_path / "report.html").exists()
    assert "report.md" in shown(tmp_path)


def test_no_folder_is_a_users_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="no run at"):
        write_report(tmp_path / "none")
    assert main([str(tmp_path / "none")]) == 2
    assert "no run at" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.EROFS, r"\(Read-only file system\)$"), (errno.EFBIG, r"\(File too large\): .*`ulimit -f`")],
)
def test_a_file_that_may_not_be_written_is_said_in_words(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def refused(path: Path, content: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(atomic, "write", refused)
    assert main([str(folder)]) == 2
    assert re.search(f"cannot be written or read {words}", capsys.readouterr().err)


def test_a_report_can_be_written_anew_from_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (folder / "report.md").read_bytes()
    assert main([str(folder)]) == 0
    assert (folder / "report.md").read_bytes() == before
    assert "report.html" in capsys.readouterr().out


def test_the_terminal_ends_with_the_result_and_the_reports_path(folder: Path) -> None:
    text = shown(folder, width=90)
    assert "6,553,600" in text and "share of measured peak" in text
    assert "141.90 (2.160)" in text
    assert text.rstrip().splitlines()[-2:] == [str(folder / "report.md"), str(folder / "report.html")]
