"""Every YAML under conf/ composes and passes the check; what trains takes two steps and resumes bit for bit."""

import json
import shutil
from functools import cache
from pathlib import Path

import pytest
from omegaconf import DictConfig, open_dict
from tests.run.cli import assert_same_weights, cut_back, facts

from lifecycle import config
from lifecycle.run import run
from lifecycle.stages.run.inheritance import TeacherName

CONF = config.conf_dir()
WORDS = ["a patient with a fever asks what the cause of it may be and the answer depends on more than one thing"]
ROW = {
    "text": " ".join(WORDS * 6),  # long enough for every filter
    "title": "Fever",
    "question": "What is the cause?",
    "options": {"A": "cold", "B": "heat", "C": "rain", "D": "snow"},
    "answer_idx": "A",
    "answer": "A.\n#### 7",
    "opa": "cold",
    "opb": "heat",
    "opc": "rain",
    "opd": "snow",
    "cop": 0,
    "exp": "Because.",
    "content": " ".join(WORDS * 3),
    "problem": "What is the sum of two and two?",
    "solution": "It is four.",
    "level": "Level 2",
    "choices": {"label": ["A", "B"], "text": ["cold", "heat"]},
    "answerKey": "A",
    "test_list": ["assert True"],
    "code": "x = 1",
    "long_answer": "It is the fever.",
    "messages": [{"role": "user", "content": "And why?"}, {"role": "assistant", "content": "<think>So.</think> Thus."}],
}
SMALL = [
    "model.layers=2",
    "model.width=32",
    "model.heads=2",
    "model.kv_heads=1",
    "model.head_dim=16",
    "model.ffn_width=64",
    "model.vocab_size=null",
    "data.tokenizer={vocab_size: 320, digits: 1, max_bytes: 50000}",
    "stage.global_batch_tokens=256",
    "stage.sequence_length=64",
    "stage.schedule={name: constant, min_ratio: 1.0, warmup_steps: 0, warmup_fraction: null}",
    "checkpoint.every_steps=1",
    "validation.every_steps=1",
    "validation.tokens=200",
    "logger=csv",
]
ON_CPU = ["hardware.accelerator=cpu", "hardware.devices=1", "hardware.strategy=auto", "hardware.precision=fp32"]
QUICK = ["hardware.compile=false", "hardware.workers=0"]


def choices(group: str) -> list[str]:
    return sorted(p.stem for p in (CONF / group).glob("*.yaml") if not p.stem.startswith("_"))


def two_steps(overrides: list[str], folder: Path) -> None:
    """Two steps in one go equal one step, a stop after it, and another one."""
    words = [*SMALL, *ON_CPU, *QUICK, *overrides, "run=parts", "stage.max_steps=2", "checkpoint.keep_last=9"]
    whole, parts = (folder / "outputs" / name for name in ("whole", "parts"))
    run(config.compose(words))
    parts.rename(whole)
    cut_back(whole, parts, 1)
    run(config.compose(words))
    assert_same_weights(whole, parts)
    assert facts(parts)["resumed"] == 1


@pytest.fixture(autouse=True)
def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than two steps do; tests/report holds the report's own tests."""
    monkeypatch.setattr("lifecycle.runs.results.write_report", lambda folder: None)


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in, with a file whose rows serve every format, and one evaluation item."""
    monkeypatch.chdir(tmp_path)
    numbered = ("text", "content", "question", "problem")
    lines = [json.dumps(ROW | {key: f"{number} {ROW[key]}" for key in numbered}) for number in range(200)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    item = "Which of these eight words is in no row of the other file?"
    (tmp_path / "items.jsonl").write_text(json.dumps({**ROW, "text": item, "question": item, "problem": item}))
    return tmp_path


def local(data: str) -> list[str]:
    """Overrides that read the sources of a data config from rows.jsonl."""
    cfg = config.compose([f"data={data}"])
    out = [f"data={data}", "data.shuffle_buffer=100"]
    for name in (cfg.data.decontaminate or {}).get("sets", {}):
        out += [f"data.decontaminate.sets.{name}.{key}" for key in ("hub=null", "config=null", "path=items.jsonl")]
    for name, source in cfg.data.sources.items():
        at = f"data.sources.{name}"
        if str(source.get("path") or "").startswith("python://"):
            out += [f"{at}.max_rows=60"]
            continue
        out += [f"{at}.hub=null", f"{at}.config=null", f"{at}.data_dir=null", f"{at}.path=rows.jsonl"]
        out += [f"{at}.max_epochs=null", f"{at}.validation={{ratio: 0.1, seed: 42}}"]
    return out


def shrunk(model: str) -> list[str]:
    """Overrides that make experts and latent attention as small as the rest."""
    node = config.compose([f"model={model}"]).model
    out = []
    if node.get("moe"):
        groups = {"groups": 4, "active_groups": 2} if node.moe.get("groups", 1) > 1 else {}
        out += [
            f"model.moe.{key}={value}" for key, value in {"experts": 8, "active": 2, "ffn_width": 16, **groups}.items()
        ]
    if node.get("latent"):
        sizes = {"kv_rank": 16, "nope_dim": 8, "rope_dim": 8, "v_dim": 8}
        out += ["model.kv_heads=2", *(f"model.latent.{key}={value}" for key, value in sizes.items())]
    return out


@pytest.mark.parametrize("model", choices("model"))
def test_every_model(rows: Path, model: str) -> None:
    two_steps([f"model={model}", *local("files"), *shrunk(model)], rows)


@pytest.mark.parametrize("data", choices("data"))
def test_every_data_set(rows: Path, data: str) -> None:
    two_steps(local(data), rows)


@pytest.mark.parametrize("optimizer", choices("optimizer"))
def test_every_optimizer(rows: Path, optimizer: str) -> None:
    two_steps([f"optimizer={optimizer}", *local("files")], rows)


@pytest.mark.parametrize("hardware", choices("hardware"))
def test_every_hardware_on_a_cpu(rows: Path, hardware: str) -> None:
    two_steps([f"hardware={hardware}", *local("files")], rows)


@pytest.mark.parametrize("callbacks", choices("callbacks"))
def test_every_set_of_callbacks(rows: Path, callbacks: str) -> None:
    two_steps([f"callbacks={callbacks}", *local("files")], rows)


@pytest.mark.parametrize("logger", [name for name in choices("logger") if name != "wandb"])
def test_every_logger(rows: Path, logger: str) -> None:
    two_steps([*local("files"), f"logger={logger}"], rows)


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_every_experiment(rows: Path, experiment: str) -> None:
    given = config.compose([f"experiment={experiment}"])
    data = "python_stdlib" if "prose" in given.data.sources else "fineweb_medqa"
    sources = [word for word in local(data) if not word.startswith("data=")]
    lengths = [f"stage.schedule.{part}_{unit}=null" for part in ("warmup", "decay") for unit in ("tokens", "fraction")]
    halves = "stage.phases=[{at_fraction: 0.0, sequence_length: 32}, {at_fraction: 0.5, sequence_length: 64}]"
    grows = [halves] if given.stage.get("phases") else []  # its own rows are longer than those of two steps
    two_steps([f"experiment={experiment}", *sources, *lengths, *grows], rows)


DATA_OF = {
    "dpo": "offline/preferences",
    "reward": "offline/preferences",
    "sft": "offline/questions",
    "distill": "offline/questions",
    **dict.fromkeys(
        ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "grpo_usmle", "ppo", "spo", "rlaif"), "offline/questions"
    ),
    "distill_reason": "offline/reasoning",
    "traces": "offline/questions data.sources.questions.max_rows=8",
}
"""Of stages that cannot work with the text of experiment=debug."""


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the toy runs that stages begin from: a parent, a teacher and a judge."""
    folder = tmp_path_factory.mktemp("before")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("lifecycle.runs.results.write_report", lambda folder: None)
        for name in ("parent", "teacher"):
            run(config.compose(["experiment=debug", f"run={name}", "logger=csv"]))
        judge = ["stage=reward", "init_from=parent", "data=offline/preferences", "run=judge", "logger=csv"]
        run(config.compose(["experiment=debug", *judge]))
    return folder / "outputs"


@pytest.mark.parametrize("stage", choices("stage"))
def test_every_stage_runs_at_toy_size(rows: Path, before: Path, stage: str) -> None:
    words = ["experiment=debug", f"stage={stage}", "run=toy", "logger=csv"]
    words += f"data={DATA_OF[stage]}".split() if stage in DATA_OF else []
    cfg = config.compose(words)
    made = config.stage_class(cfg.stage)
    if made.starts_from_parent if made else "model" in config.asked_of_run(cfg.stage):
        shutil.copytree(before / "parent", rows / "outputs/parent")
        words.append("init_from=parent")
    if made and TeacherName in made.takes_over:
        shutil.copytree(before / "teacher", rows / "outputs/teacher")
        words.append("stage.teacher=teacher")
    if stage == "rlaif":
        shutil.copytree(before / "judge", rows / "outputs/judge")
        words.append("stage.reward_model.path=judge")
    run(config.compose(words))
    assert facts(rows / "outputs/toy")["status"] == "finished"


@cache
def composed(*choices: str) -> DictConfig:
    """The config with these choices; files of the user's own are texts.jsonl."""
    return config.compose([*choices, *(["data.sources.mine.path=texts.jsonl"] if "data=files" in choices else [])])


def put_together(model: str, data: str) -> DictConfig:
    """A model and a data set that were composed apart: Hydra takes ten times as long as the check."""
    cfg = composed(f"model={model}").copy()
    with open_dict(cfg):
        cfg.data = composed(f"data={data}").data
    return cfg


@pytest.mark.parametrize("data", choices("data"))
def test_every_model_passes_the_check_with_every_data_set(data: str) -> None:
    for model in choices("model"):
        config.check(put_together(model, data))


@pytest.mark.parametrize(("number", "data"), list(enumerate(choices("data"))))
def test_a_model_and_a_data_set_say_together_what_each_says_alone(number: int, data: str) -> None:
    model = choices("model")[number % len(choices("model"))]
    together, apart = (
        config.resolved(composed(f"model={model}", f"data={data}")),
        config.resolved(put_together(model, data)),
    )
    assert {**together, "run": ""} == {**apart, "run": ""}  # named for both
