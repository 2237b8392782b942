"""The plan of two days on one A100: what its halves are, what each takes, and that the page says the same."""

import re
from pathlib import Path

import pytest

from lifecycle import config
from lifecycle.runs.dry_run import dry_run
from lifecycle.runs.plan import make_plan

ROOT = Path(__file__).parents[2]
HALVES = {
    "pretrain": [r"steps +3,814\b", r"tokens +1,999,634,432", r"40% .* 14\.5 h", r"total +41\.57 of 80"],
    "grpo": [
        *(r"steps +2,288\b", r"tokens at most +599,785,472", r"40% .* 5\.3 h", r"total +18\.84 of 80"),
        *(r"samples a step +256 = 16 x 16", r"samples +585,728", r"time at 10% of 1\.935 TB/s +11\.7 h"),
    ],
}


@pytest.mark.parametrize("half", HALVES)
def test_each_half_is_planned_from_its_files(
    half: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    dry_run(make_plan(config.compose([f"experiment=usmle_2day/{half}", "init_from=null", "dry_run=true"])))
    said = capsys.readouterr().out
    assert re.search(r"parameters +447\.28 M", said) and "would be read" not in said and not any(tmp_path.iterdir())
    for line in HALVES[half]:
        assert re.search(line, said), line


def test_the_second_half_goes_on_with_the_first_and_asks_as_it_has_read() -> None:
    first, second = (config.compose([f"experiment=usmle_2day/{half}"]) for half in HALVES)
    config.check(first)
    config.check(second)
    assert second.init_from == first.run and second.model == first.model
    assert second.data.plain_prompt == "Question: {prompt}\nAnswer:" and second.data.chat_template == "none"
    assert {"medqa", "medmcqa"} <= {*first.data.sources} and all(
        source.shuffle_options for source in second.data.sources.values()
    )
    kept = {**config.compose(["stage=grpo_usmle"]).stage, "max_epochs": None, "max_tokens": 600_000_000}
    assert second.stage == {**kept, "slots": 256, "keep_rollouts": 50}
    recipe = config.compose(["experiment=a100_2day"])
    assert (first.stage, first.data) == (recipe.stage, recipe.data)


def test_the_page_says_what_the_plan_says() -> None:
    page = (ROOT / "docs/usmle_2day.md").read_text()
    for number in ("3,814", "2,288", "585,728", "447M", "41.6", "18.8", "14.5", "11.7"):
        assert number in page, number
