"""What the user can get wrong is found before anything is built, with the key, the nearest spelling and the cure."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from lifecycle import config
from lifecycle.config import help
from lifecycle.config.targets import TARGETS
from lifecycle.data.read.spec import SourceSpec, ValidationRatio
from lifecycle.duration import Limits
from lifecycle.errors import UserError
from lifecycle.hardware import Hardware

CONF = config.conf_dir()
TINY = CONF / "model" / "tiny.yaml"
ROOT = Path(__file__).parents[2]
GROUPS = [group for group in help.group_names(CONF) if group != "experiment"]
CHOICES = [f"{group}={choice}" for group in help.group_names(CONF) for choice in help.choices(group, CONF)]


def fault(*overrides: str) -> str:
    with pytest.raises(UserError) as raised:
        config.check(config.compose(overrides))
    return str(raised.value)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


# -- the configs that are shipped


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_of_every_group_composes_and_checks(choice: str) -> None:
    config.check(config.compose([choice]))


@pytest.mark.parametrize("stage", help.choices("stage", CONF))
def test_debug_makes_any_stage_small(stage: str) -> None:
    cfg = config.compose(["experiment=debug", f"stage={stage}"])
    config.check(cfg)
    assert cfg.run == f"debug-{stage}"
    assert cfg.model.width <= 64


EXAMINED = {
    "GBaker/MedQA-USMLE-4-options",
    "openlifescienceai/medmcqa",
    "qiaojin/PubMedQA",
    "openai/gsm8k",
    "DigitalLearningGmbH/MATH-lighteval",
}
"""Data sets with splits that models are evaluated on."""


@pytest.mark.parametrize("data", help.choices("data", CONF))
def test_a_mixture_keeps_out_the_evaluation_splits_of_what_it_trains_on(data: str) -> None:
    cfg = config.compose([f"data={data}"])
    trained = {source.get("hub") for source in cfg.data.sources.values()} & EXAMINED
    sets = cfg.data.decontaminate.sets.values() if cfg.data.decontaminate else []
    assert trained <= {one.get("hub") for one in sets}


def test_what_training_stages_share_stands_in_one_file() -> None:
    shared = yaml.safe_load((CONF / "stage/_training.yaml").read_text())
    for name in ("pretrain", "midtrain"):
        own = yaml.safe_load((CONF / f"stage/{name}.yaml").read_text())
        assert own["defaults"] == ["_training", "_self_"]
        composed = config.resolved(config.compose([f"stage={name}"]))["stage"]
        again = {key for key in shared if key in own and key != "schedule"}
        assert not again and set(composed) == set(shared) | set(own) - {"defaults"} | {"optimizer"}


@pytest.mark.parametrize("data", ["reasoning", "midtrain/reasoning_heavy"])
def test_traces_of_reasoning_are_mid_trained_in_long_rows(data: str) -> None:
    assert config.compose(["stage=midtrain", f"data={data}"]).stage.sequence_length == 4096
    typed = config.compose(["stage=midtrain", f"data={data}", "stage.sequence_length=2048"])
    assert typed.stage.sequence_length == 2048


def test_defaults_are_those_that_the_interfaces_name() -> None:
    cfg = config.compose()
    choices = {"stage", "model", "data"}
    assert cfg.run == "pretrain-tiny-python_stdlib"
    assert choices <= set(cfg)
    assert cfg.hardware.accelerator == "cpu"
    assert cfg.resume == "auto"
    assert cfg.init_from is None


def test_two_days_on_an_a100_are_what_the_recipe_says() -> None:
    cfg = config.compose(["experiment=a100_2day"])
    config.check(cfg)
    stage = cfg.stage
    assert (stage.max_tokens, stage.global_batch_tokens, stage.sequence_length) == (2_000_000_000, 524_288, 2048)
    assert cfg.hardware.micro_batch_tokens == 16 * 2048
    assert (stage.optimizer.lr, stage.schedule.name, stage.schedule.warmup_tokens) == (3e-4, "cosine", 100_000_000)
    assert stage.optimizer.lr * stage.schedule.min_ratio == pytest.approx(3e-5)
    assert (list(stage.optimizer.betas), stage.optimizer.weight_decay, stage.optimizer.grad_clip) == (
        [0.9, 0.95],
        0.1,
        1.0,
    )
    assert (cfg.logging.every_steps, cfg.validation.tokens) == (10, 1_000_000)
    assert (cfg.checkpoint.every_steps, cfg.checkpoint.keep_last) == (30, 3)


@pytest.mark.parametrize("file", sorted(CONF.rglob("*.yaml")), ids=lambda file: str(file.relative_to(CONF)))
def test_every_key_has_a_comment_beside_it(file: Path) -> None:
    text = file.read_text()
    lines = text.splitlines()

    def uncommented(node: yaml.Node | None) -> list[str]:
        missing = []
        for key, value in node.value if isinstance(node, yaml.MappingNode) and not node.flow_style else []:
            if key.value in ("defaults", "_target_", "hydra"):
                continue
            nested = isinstance(value, yaml.MappingNode) and not value.flow_style
            if "#" not in lines[key.start_mark.line] and not nested:
                missing.append(key.value)
            missing += uncommented(value)
        return missing

    assert uncommented(yaml.compose(text)) == []


def test_a_choice_of_muon_keeps_the_rate_of_the_stage() -> None:
    cfg = config.compose(["optimizer=muon"])
    config.check(cfg)
    assert cfg.stage.optimizer._target_.endswith("Muon")
    assert cfg.stage.optimizer.lr == config.compose().stage.optimizer.lr


def test_every_target_of_every_config_may_stand_where_it_stands() -> None:
    for file in CONF.rglob("*.yaml"):
        node = yaml.safe_load(file.read_text()) or {}
        group = file.relative_to(CONF).parts[0]
        if isinstance(node, dict) and "_target_" in node:
            assert node["_target_"] in TARGETS["stage.optimizer" if group == "optimizer" else group]


def test_the_toy_experiment_takes_files_of_ones_own() -> None:
    cfg = config.compose(["experiment=debug", "data=files", "data.sources.mine.path=texts"])
    assert list(cfg.data.sources) == ["mine"] and cfg.data.tokenizer.vocab_size == 512
    cfg = config.compose(["experiment=debug"])
    assert [source.max_rows for source in cfg.data.sources.values()] == [200, 100]


# -- faults


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("+sede=3", "sede=3: there is no such key; did you mean seed? Type seed=3"),
        ("sede=3", "did you mean seed? Type seed=3"),
        ("+stag=grpo", "did you mean stage? Type stage=grpo"),
        ("modle=small", "did you mean model? Type model=small"),
        ("max_steps=3", "did you mean stage.max_steps? Type stage.max_steps=3"),
        ("optimizer.lr=3", "optimizer: there is no such key; did you mean stage.optimizer?"),
        ("stage.max_stepz=3", "did you mean stage.max_steps? Type stage.max_steps=3"),
        ("stage.max_steps=abc", "stage.max_steps is 'abc'; wanted a whole number from 1 on or null"),
        ("stage.max_steps=1.5", "stage.max_steps is 1.5; wanted a whole number from 1 on or null"),
        ("stage.group_size=abc", "stage.group_size=abc: there is no such key"),
        ("stage.optimizer.lr=fast", "stage.optimizer.lr is 'fast'; wanted a number"),
        ("stage.optimizer.betas=[0.9]", "stage.optimizer.betas is [0.9]; wanted a list of 2"),
        ("stage.schedule.name=cosin", "cosine"),
        ("seed=true", "seed is true; wanted a whole number"),
        ("dry_run=1", "dry_run is 1; wanted true or false: type dry_run=true"),
        ("export.dtype=fp8", "wanted fp32 or bf16 or fp16"),
        ("checkpoint.evry_steps=3", "did you mean checkpoint.every_steps?"),
        ("hardware.precision=bf32", "hardware.precision is 'bf32'; wanted auto or fp32 or bf16"),
        ("hardware.fp8=e4m3", "hardware.fp8 is 'e4m3'; wanted tensorwise or rowwise or rowwise_with_gw_hp or null"),
        ("hardware.devices=0", "hardware.devices is 0; wanted"),
        ("model.layers=-1", "model.layers is -1; it must be above 0"),
        ("data.sources.prose.wieght=3", "did you mean data.sources.prose.weight? Type data.sources.prose.weight=3"),
        ("data.sources.prose.validation.ratio=x", "data.sources.prose.validation.ratio is 'x'; wanted a number"),
        ("data.tokenizer.vocab_size=big", "data.tokenizer.vocab_size is 'big'"),
        ("data.seed=3", "did you mean seed? Type seed=3"),
        ("callbacks.folder=x", "callbacks.folder is set by the run itself"),
        ("stage._target_=os.system", "stage._target_ is 'os.system'; wanted lifecycle."),
        ("stage.optimizer._target_=torch.optim.SGD", "wanted lifecycle.optim"),
        ("~seed", "seed is missing; wanted a whole number"),
        ("model.width='${nowhere}'", "model.width cannot be resolved"),
        (
            "adapter.rank=8",
            "adapter.rank is set, but no choice is made that has it: type adapter=CHOICE too, of lora, none",
        ),
        ("logger.projct=x", "there is no such key"),
        ("stage.learning_rate=3e-4", "did you mean stage.optimizer.lr? Type stage.optimizer.lr=0.0003"),
        ("num_train_epochs=3", "did you mean stage.max_epochs? Type stage.max_epochs=3"),
        ("stage.batch_size=32", "here it is stage.global_batch_tokens, in tokens"),
        ("checkpoint.mode=offline", "there is no such key; here are "),
        ("lora=true", "here it is a choice: adapter=lora"),
    ],
)
def test_a_fault_names_the_key_and_what_to_type(override: str, said: str) -> None:
    assert said in fault(override)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stage.num_generations=8", "Type stage.samples_per_prompt=8"),
        ("stage.beta=0.04", "Type stage.kl.coefficient=0.04"),
        ("stage.temperature=0.9", "Type stage.sampling.temperature=0.9"),
        ("stage.epsilon_high=0.28", "Type stage.clip_high=0.28"),
        ("stage.max_prompt_length=512", "here it is stage.sequence_length less"),
    ],
)
def test_a_name_of_another_library_for_reinforcement_learning_is_told_in_ours(override: str, said: str) -> None:
    assert said in fault("stage=grpo", override)


def test_all_faults_come_at_once() -> None:
    text = fault("sede=3", "stage.max_steps=abc", "hardware.precision=bf32", "model.width=-3", "stage.optimizer.lr=x")
    assert text.startswith("5 faults in the configuration; nothing was started:")
    for key in ("sede", "stage.max_steps", "hardware.precision", "model.width", "stage.optimizer.lr"):
        assert key in text


def test_typos_in_the_users_own_files_are_found(tmp_path: Path) -> None:
    tiny = yaml.safe_load(TINY.read_text())
    tiny["witdh"] = tiny.pop("width")
    write(tmp_path / "model" / "mine.yaml", yaml.safe_dump(tiny))
    with pytest.raises(UserError, match=r"model\.witdh=\d+: there is no such key; did you mean model\.width\?"):
        config.check(config.compose(["model=mine"], config_dirs=[tmp_path]))


def test_a_value_that_is_still_missing_is_named_with_its_comment(tmp_path: Path) -> None:
    tiny = re.sub("^layers: .*$", "layers: ??? # blocks, one after the other", TINY.read_text(), flags=re.MULTILINE)
    write(tmp_path / "model" / "mine.yaml", tiny)
    with pytest.raises(UserError) as raised:
        config.check(config.compose(["model=mine"], config_dirs=[tmp_path]))
    assert "model.layers has no value yet (blocks, one after the other): type model.layers=..." in str(raised.value)
    assert str(raised.value).startswith("1 fault ")


def test_a_value_that_stages_share_is_named_with_its_comment_too() -> None:
    with pytest.raises(UserError, match=r"stage\.sequence_length has no value yet \(positions of the longest rows"):
        config.check(config.compose(["stage.sequence_length=???"]))


def test_keys_that_no_file_names_need_no_plus() -> None:
    cfg = config.compose(["data.sources.prose.max_rows=10", "data.sources.more={path: notes, weight: 0.5}"])
    config.check(cfg)
    assert cfg.data.sources.prose.max_rows == 10


def test_whole_numbers_may_be_written_as_floats_and_names_as_numbers() -> None:
    cfg = config.compose(["stage.max_tokens=20e6", "seed=1e3", "run=7", "checkpoint.milestones=[1e3]"])
    config.check(cfg)
    assert (cfg.stage.max_tokens, cfg.seed, cfg.run, cfg.checkpoint.milestones) == (20_000_000, 1000, "7", [1000])
    assert isinstance(cfg.stage.max_tokens, int)
    assert isinstance(cfg.seed, int)


# -- building


def test_build_gives_dataclasses_and_plain_containers() -> None:
    cfg = config.compose(["hardware=a100x8_fsdp"])
    hardware = config.build(cfg.hardware)
    assert isinstance(hardware, Hardware)
    assert (hardware.devices, hardware.strategy) == (8, "fsdp")
    sources: dict[str, Any] = config.build(cfg.data).sources
    assert isinstance(sources["prose"], SourceSpec)
    assert sources["prose"].validation == ValidationRatio(ratio=0.05, seed=42)


def test_build_passes_what_the_run_supplies(tmp_path: Path) -> None:
    cfg = config.compose(["callbacks=profile"])
    observers = config.build(cfg.callbacks, folder=tmp_path)
    assert {type(observer).__name__ for observer in observers} == {"ProgressDisplay", "Profile"}


def test_limits_are_read_from_the_stage() -> None:
    limits = config.build_limits(config.compose(["stage.max_steps=3", "stage.max_tokens=1e6"]).stage)
    assert isinstance(limits, Limits)
    assert (limits.max_steps, limits.max_tokens) == (3, 1_000_000)


@pytest.mark.parametrize(
    ("stage", "job"), [("pretrain", False), ("prepare", True), ("analyze", True), ("tokenizer", True), ("traces", True)]
)
def test_a_job_is_a_function(stage: str, job: bool) -> None:
    assert config.is_job(config.compose([f"stage={stage}"]).stage) is job


@pytest.mark.parametrize("group", ["model", "hardware", "data", "stage", "logger", "callbacks"])
def test_nothing_but_the_kinds_of_a_group_is_ever_called(group: str, tmp_path: Path) -> None:
    node = {"_target_": "lifecycle.system.atomic.write", "path": str(tmp_path / "written"), "content": "x"}
    cfg = OmegaConf.create({group: node})
    with pytest.raises(UserError, match=f"{group}._target_ is 'lifecycle.system.atomic.write'"):
        config.build(cfg[group])
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize(
    "text", ["a", "${seed}", "a ${oc.env:HOME} b", "\\${x}", "\\\\${x}", "${", "$x \\", "${a}${b}"]
)
def test_text_from_elsewhere_stays_as_it_is(text: str) -> None:
    cfg = OmegaConf.create({"seed": 1, "k": config.literal({"a": [text], "n": 3})})
    assert OmegaConf.to_container(cfg.k, resolve=True) == {"a": [text], "n": 3}


# -- comparing


def test_resolved_is_plain_yaml_without_interpolations() -> None:
    plain = config.resolved(config.compose())
    assert yaml.safe_load(yaml.safe_dump(plain)) == plain
    assert "${" not in yaml.safe_dump(plain)


def test_limits_logging_and_hardware_may_change_on_resume_and_nothing_else() -> None:
    old = config.resolved(config.compose())
    free = ["stage.max_steps=9", "logging.every_steps=2", "hardware=gpu", "logger=csv", "resume=never", "run=other"]
    assert config.changed_keys(old, config.resolved(config.compose([*free, "checkpoint.every_steps=7"]))) == []
    bound = ["seed=7", "stage.sequence_length=256", "data.sources.prose.weight=1", "validation.tokens=5"]
    changed = config.changed_keys(old, config.resolved(config.compose(bound)))
    assert sorted(changed) == sorted(word.partition("=")[0] for word in bound)


def test_what_is_looked_at_and_kept_of_samples_may_change_on_resume() -> None:
    old, new = ({"stage": {"keep_rollouts": n, "preflight": {"prompts": n, "samples": 8}}} for n in (0, 32))
    assert config.changed_keys(old, new) == []


def test_a_run_of_an_older_version_goes_on() -> None:
    new = config.resolved(config.compose(["stage=prepare"]))
    old = config.resolved(config.compose(["stage=prepare"]))
    old["stage"]["_target_"], old["data"]["_target_"] = "lifecycle.data.prepare.prepare", "lifecycle.data.DataModule"
    del old["data"]["chat_template"], old["data"]["long_examples"]
    for source in old["data"]["sources"].values():
        source.pop("tie_margin", None)
    assert config.changed_keys(old, new) == []
    new["data"]["long_examples"] = "shorten"
    new["data"]["sources"]["prose"]["tie_margin"] = 0.5
    assert config.changed_keys(old, new) == ["data.long_examples", "data.sources.prose.tie_margin"]
    new["stage"]["_target_"] = "lifecycle.jobs.analyze.analyze"
    assert "stage._target_" in config.changed_keys(old, new)


def test_a_run_whose_format_was_the_default_of_before_goes_on_under_that_of_now() -> None:
    def of(name: str) -> dict[str, Any]:
        return {"data": {"sources": {"mine": {"format": name, "weight": 1.0}}}}

    assert config.changed_keys(of("text"), of("auto")) == []
    for before, now in (("auto", "text"), ("messages", "auto"), ("text", "messages")):
        assert config.changed_keys(of(before), of(now)) == ["data.sources.mine.format"]


def test_keys_that_come_or_go_are_changes() -> None:
    assert config.changed_keys({"a": {"b": 1}, "c": []}, {"a": {"d": 1}, "c": []}) == ["a.b", "a.d"]
    assert config.changed_keys({"a": 1.0}, {"a": 1}) == []
    earlier: dict[str, Any] = {"data": {"root": None}}  # before examples could be too long
    assert config.changed_keys(earlier, {"data": {"long_examples": "drop", "chat_template": "auto"}}) == []
    assert config.changed_keys(earlier, {"data": {"long_examples": "shorten"}}) == ["data.long_examples"]
    assert config.changed_keys({"a": {}, "ab": 1}, {"a": {"b": 1}}) == ["ab", "a.b"]
    assert OmegaConf.to_container(OmegaConf.create({"a": [1]})) == {"a": [1]}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("adapter.rank=0", "adapter.rank is 0; wanted a whole number from 1 on"),
        ("adapter.rank=-3", "adapter.rank is -3; wanted a whole number from 1 on"),
        ("adapter.alpha=0", "adapter.alpha is 0; wanted a number above 0"),
        ("adapter.dropout=1.0", "adapter.dropout is 1.0; wanted a number from 0 to below 1"),
        ("adapter.targets=q_proj", "adapter.targets is 'q_proj'; wanted all or a list of"),
        ("adapter.bits=8", "adapter.bits is 8; wanted 4 or null"),
    ],
)
def test_an_adapter_that_cannot_be_is_refused(override: str, said: str) -> None:
    assert said in fault("stage=sft", "init_from=x", "adapter=lora", override)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stage=grpo", "this stage trains in bf16"),
        ("stage=dpo", "this stage trains in bf16"),
        ("stage=reward", "this stage trains in bf16"),
        ("stage=generate", "this stage is a job, which trains nothing: type hardware.fp8=null"),
        ("adapter=lora", "layers with an adapter multiply in bf16: type hardware.fp8=null, or adapter=none"),
        ("hardware=cpu", "a CPU has no units for it: type hardware.fp8=null, or choose hardware=h100"),
        ("hardware.precision=fp32", "hardware.precision is fp32: type hardware.fp8=null, or hardware.precision=bf16"),
        ("hardware.compile=false", "which without compilation is slower than bf16"),
        ("stage.sequence_length=1000", "rows are of 1000: round stage.sequence_length to 1008"),
        ("stage.phases=[{at_steps: 0, sequence_length: 40}]", "40: round stage.phases[0].sequence_length to 48"),
    ],
)
def test_what_cannot_be_in_fp8_is_refused(override: str, said: str) -> None:
    assert said in fault("stage=sft", "init_from=x", "hardware=h100", "hardware.fp8=tensorwise", override)


@pytest.mark.parametrize("value", ["false", "none"])
def test_what_switches_nothing_on_is_told_of_null_and_compared_with_nothing(value: str) -> None:
    said = fault("stage=grpo", "init_from=x", "hardware=cpu", f"hardware.fp8={value}")
    assert said.startswith("1 fault ") and said.endswith("or null: type hardware.fp8=null")


def test_samples_of_a_student_are_not_compared_in_fp8() -> None:
    words = ["stage=distill", "stage.teacher=x", "hardware=h100", "hardware.fp8=tensorwise", "stage.view=chat"]
    written = "stage.on_policy={share: 0.5, form: supervised, temperature: 1.0, max_new_tokens: 8}"
    assert "stage.on_policy compares with samples" in fault(*words, written)


@pytest.mark.parametrize("stage", ["pretrain", "midtrain", "sft", "distill_reason"])
def test_what_learns_from_text_may_be_in_fp8(stage: str) -> None:
    config.check(config.compose([f"stage={stage}", "init_from=x", "hardware=h100", "hardware.fp8=rowwise"]))
