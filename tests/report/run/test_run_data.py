import shutil
from pathlib import Path

import pytest

from lifecycle.report.run.facts import headline
from lifecycle.report.run.run_data import read_run


def test_a_finished_run_misses_nothing(finished: Path) -> None:
    run = read_run(finished)
    assert run.missing == ()
    assert run.domains == ["prose", "code"]
    assert run.domain_weights == pytest.approx({"prose": 0.6, "code": 0.4})
    assert run.quarantined == {"stdlib_code": 2}


@pytest.mark.parametrize(
    ("view", "likelihood"),
    [("text", True), ("chat", True), ("preference", False), ("comparison", False), ("unpaired", False)],
)
def test_without_held_out_data_the_view_says_whether_the_loss_is_a_likelihood(
    view: str, likelihood: bool, tmp_path: Path
) -> None:
    (tmp_path / "metrics.csv").write_text("step,train/loss\n1,0.693\n")
    (tmp_path / "config.yaml").write_text(f"stage:\n  view: {view}\n")
    assert read_run(tmp_path).is_likelihood == likelihood


@pytest.mark.parametrize("beside", ["train/nll", "train/cross_entropy"])
def test_the_training_loss_is_the_kind_of_number_that_the_held_out_one_is(beside: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(
        f"step,train/loss,{beside},valid/a/perplexity,valid/loss\n1,0.112,3.9,50,3.864\n"
    )
    assert headline(read_run(tmp_path)).train_loss == 3.9


def test_every_absent_file_is_named(tmp_path: Path) -> None:
    missing = " ".join(read_run(tmp_path).missing)
    for name in ("config.yaml", "run.json", "metrics.csv", "ledger.json", "samples.json", "baselines.json"):
        assert name in missing


@pytest.mark.parametrize("name", ["run.json", "ledger.json", "samples.json", "baselines.json", "config.yaml"])
@pytest.mark.parametrize("content", ["", '{"a": [1, 2', "a: [1, 2", "17", "\x00\xff"])
def test_a_damaged_file_is_named_and_stops_nothing(finished: Path, tmp_path: Path, name: str, content: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / name).write_bytes(content.encode("latin-1"))
    run = read_run(folder)
    assert any(name in line for line in run.missing)


def test_speeds_leave_out_the_first_reading(finished: Path) -> None:
    run = read_run(finished)
    values = sorted(v for v in run.metrics["perf/tokens_per_second"][5:] if v is not None)
    found = headline(run).tokens_per_second
    assert found == pytest.approx((values[39] + values[39]) / 2)


def test_baselines_have_bits_per_byte_of_their_own(finished: Path) -> None:
    prose = headline(read_run(finished)).domains[0]
    # log2(141.9) / 3.31 bytes a token
    assert prose.bigram_bits == pytest.approx(7.148731 / 3.31, rel=1e-5)
    assert prose.bits_per_byte is not None and prose.bits_per_byte < prose.bigram_bits  # type: ignore[operator]
