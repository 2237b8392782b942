"""The command line: help, examples, exit codes, sweeps, and where it works from."""

import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError

from lifecycle import config
from lifecycle.config import help
from lifecycle.errors import UserError

CONF = config.conf_dir()
ROOT = Path(__file__).parents[2]
GROUPS = [group for group in help.group_names(CONF) if group != "experiment"]

Command = Callable[..., tuple[int, str]]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command line in an empty folder with a task that checks, and writes its config into the run's folder."""
    monkeypatch.chdir(tmp_path)

    def checked(cfg: DictConfig) -> None:
        config.check(cfg)
        folder = Path(HydraConfig.get().runtime.output_dir)
        if not cfg.dry_run:
            write(folder / "config.yaml", yaml.safe_dump(config.resolved(cfg)))

    def call(
        *words: str, task: Callable[[DictConfig], None] = checked, check: Callable[[DictConfig], None] | None = None
    ) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["lifecycle", *words])
        try:
            code = config.hydra_main(task, check=check)
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return call


def runs() -> list[str]:
    return sorted(str(file.parent) for file in Path("outputs").rglob("config.yaml"))


def test_without_arguments_there_is_help_with_six_examples(command: Command) -> None:
    code, text = command()
    assert code == 0
    examples = text.partition("Examples:")[2].partition("Groups")[0]
    assert examples.count("  lifecycle ") == 6
    assert all(group in text for group in GROUPS)
    assert "seed" in text
    assert command("--help") == (0, text)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("Hello, world: (a) {b} = 'c' \"d\" \\n?", "Hello, world: (a) {b} = 'c' \"d\" \\n?"),
        ("[INST] what, now", "[INST] what, now"),
        ("'quoted, twice'", "quoted, twice"),
        ("[one,'two, three']", ["one", "two, three"]),
        ("Explain ${seed} and ${HOME} in bash, \\${x}", "Explain ${seed} and ${HOME} in bash, \\${x}"),
        ("'Explain ${seed}, A'", "Explain ${seed}, A"),
        ("[one ${seed},'two, ${HOME}',3]", ["one ${seed}", "two, ${HOME}", 3]),
        ("~/a", "~/a"),
        ("{a: b}", "{a: b}"),
        ("3", "3"),
        ("null", None),
    ],
)
def test_a_prompt_is_taken_as_it_is_typed(written: str, read: object) -> None:
    cfg = config.compose(["stage=generate", f"stage.prompt={written}"])
    assert config.resolved(cfg)["stage"]["prompt"] == read


@pytest.mark.parametrize("home", ["/home/me", "/home/my, own (1)"])
@pytest.mark.parametrize(
    ("word", "key", "read"),
    [
        ("init_from=~/model", "init_from", "HOME/model"),
        ("resume=~/a b", "resume", "HOME/a b"),
        ("+data.root=~/x", "data.root", "HOME/x"),
        ("data.sources.prose.path=[~/a,b,~/c]", "data.sources.prose.path", ["HOME/a", "b", "HOME/c"]),
    ],
)
def test_a_path_at_home_needs_no_shell_that_knows_it(
    monkeypatch: pytest.MonkeyPatch, home: str, word: str, key: str, read: str | list[str]
) -> None:
    monkeypatch.setenv("HOME", home)
    wanted = [item.replace("HOME", home) for item in read] if isinstance(read, list) else read.replace("HOME", home)
    assert OmegaConf.select(config.compose([word]), key) == wanted


@pytest.mark.parametrize(
    "path", ["texts/数据.jsonl", "données/été 2.txt", "a=b (1).jsonl", "plain/*.jsonl.gz", "a b.txt"]
)
def test_a_path_is_taken_as_it_is_named(path: str) -> None:
    assert config.compose(["data=files", f"data.sources.mine.path={path}"]).data.sources.mine.path == path


@pytest.mark.parametrize("words", [["--config-dir", "~/mine"], ["--config-dir=~/mine"]])
def test_the_users_folder_may_be_at_home(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "mine" / "model" / "mine.yaml", "defaults: [tiny, _self_]\nlayers: 3 # blocks\n")
    assert command(*words, "model=mine")[0] == 0


@pytest.mark.parametrize("line", [line for line in help.EXAMPLES.splitlines() if line.startswith("  lifecycle ")])
def test_every_worked_example_passes_the_check(line: str) -> None:
    words = [word.strip("'") for word in line.split()[1:] if word != "-m"]
    config.check(config.compose([word.split(",")[0] for word in words]))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model=tinny"], "model=tinny: there is no such choice; did you mean model=tiny? Choices of model: "),
        (["data=genral"], "did you mean data=sft/general? Choices of data: code, "),
        (
            ["data=dpo/genral"],
            "did you mean data=sft/general? Choices of data: dpo/helpfulness, dpo/safety, dpo/test\n",
        ),
        (["data=dpo/teest"], "did you mean data=dpo/test? Choices of data: dpo/helpfulness, "),
        (["data=sft/foo"], "data=sft/foo: there is no such choice. Choices of data: sft/code, sft/general, "),
        (["data=foo"], "commonsenseqa, dpo/..., files, "),
        (["hydra/launcher=foo"], "hydra/launcher=foo: there is no such choice. Choices of hydra/launcher: basic"),
        (["adapter=null"], "adapter=null: a choice is a name. Choices of adapter: lora, none, qlora"),
        (["-m", "adapter=false,none"], "adapter=false: a choice is a name."),
        (["data=my/rows.jsonl"], "For files of yours type data=files data.sources.mine.path=my/rows.jsonl"),
        (["+model=tiny"], "model is chosen twice; a choice takes no '+': type model=CHOICE"),
        (["foo"], "'foo' cannot be read; wanted KEY=VALUE"),
        (["seed=1,2"], "add --multirun"),
        (["--config-dir", "nowhere"], "nowhere' not found"),
        (["stage.max_steps=abc"], "stage.max_steps is 'abc'"),
        (["-m", "seed=1,2", "hardware.devices=2"], "hardware.devices=1, or one command a job"),
        (["-m", "model=tiny,tinny"], "did you mean model=tiny?"),
    ],
)
def test_the_users_faults_end_with_2_and_no_traceback(command: Command, words: list[str], said: str) -> None:
    code, text = command(*words)
    assert code == 2
    assert said in text
    assert "Traceback" not in text
    assert runs() == [] or "-m" in words


def test_broken_yaml_is_the_users_fault_and_names_the_file(command: Command, tmp_path: Path) -> None:
    write(tmp_path / "mine" / "model" / "bad.yaml", "layers: [1\nwidth: 3\n")
    code, text = command("--config-dir", "mine", "model=bad")
    assert code == 2
    assert "bad.yaml" in text


def test_a_choice_in_the_users_own_folder_is_found(command: Command, tmp_path: Path) -> None:
    write(tmp_path / "mine" / "model" / "mine.yaml", "defaults: [tiny, _self_]\nlayers: 3 # blocks\n")
    assert command("--config-dir", "mine", "model=mine")[0] == 0
    saved = yaml.safe_load(Path("outputs/pretrain-mine-python_stdlib/config.yaml").read_text())
    assert saved["model"]["layers"] == 3


def test_a_config_with_the_name_of_a_shipped_one_is_refused(command: Command, tmp_path: Path) -> None:
    write(tmp_path / "mine" / "data" / "midtrain" / "medical.yaml", "defaults: [/data/python_stdlib@_here_]\n")
    code, text = command("--config-dir", "mine", "data=midtrain/medical")
    assert code == 2 and "mine/data/midtrain/medical.yaml has the name of a config of lifecycle's own" in text
    assert "such as my_medical.yaml" in text and runs() == []


def test_a_choice_in_a_folder_gives_a_flat_run_name(command: Command, tmp_path: Path) -> None:
    write(tmp_path / "mine" / "data" / "own" / "set.yaml", "defaults: [/data/python_stdlib@_here_]\n")
    assert command("--config-dir", "mine", "data=own/set")[0] == 0
    assert runs() == ["outputs/pretrain-tiny-own_set"]


def test_a_sweep_leaves_one_folder_a_job_under_one_name(command: Command) -> None:
    code, _ = command("-m", "seed=1,2", "optimizer=adamw,muon", "model=tiny")
    assert code == 0
    assert runs() == [f"outputs/pretrain-tiny-python_stdlib/{n}" for n in range(4)]
    seeds = [yaml.safe_load(Path(run, "config.yaml").read_text())["seed"] for run in runs()]
    assert sorted(seeds) == [1, 1, 2, 2]


def test_a_sweep_over_choices_still_has_one_name(command: Command) -> None:
    assert command("-m", "stage=prepare,tokenizer")[0] == 0
    assert [Path(run).parent.name for run in runs()] == ["pretrain-tiny-python_stdlib"] * 2


def test_every_fault_of_a_sweep_is_said_beside_its_job_before_one_is_started(command: Command) -> None:
    words = ("-m", "stage.optimizer.lr=1e-3,fast,1e-4,slow", "seed=1")
    code, text = command(*words, check=config.check)
    lines = text.splitlines()
    for number, rate in ((1, "fast"), (3, "slow")):
        at = lines.index(f"job {number}: stage.optimizer.lr={rate} seed=1 run=pretrain-tiny-python_stdlib")
        assert lines[at + 2].startswith(f"  - stage.optimizer.lr is '{rate}'")
    assert lines[-1] == "lifecycle: 2 of 4 jobs are at fault (1, 3); none was started"
    assert code == 2 and runs() == []
    assert command("-m", "seed=1,2", check=config.check)[0] == 0 and len(runs()) == 2


def test_a_fault_that_a_job_of_a_sweep_meets_is_said_at_once_and_the_others_go_on(command: Command) -> None:
    def failing(cfg: DictConfig) -> None:
        if cfg.seed != 2:
            raise UserError(f"no file for seed {cfg.seed}")
        Path("done").touch()

    code, text = command("-m", "seed=1,2,3", "run=r", task=failing)
    assert code == 2 and Path("done").exists()
    assert [line for line in text.splitlines() if not line.startswith("Error executing job")] == [
        "job 0: seed=1 run=r -> outputs/r/0",
        "lifecycle: no file for seed 1",
        "job 1: seed=2 run=r -> outputs/r/1",
        "job 2: seed=3 run=r -> outputs/r/2",
        "lifecycle: no file for seed 3",
        "lifecycle: jobs that failed: 0, 2",
    ]


@pytest.mark.parametrize("words", [["sede=3"], ["dry_run=true"]])
def test_what_starts_nothing_leaves_no_folder(command: Command, words: list[str]) -> None:
    command(*words)
    assert not Path("outputs").exists()


def test_a_fault_inside_the_run_ends_with_2_and_its_message(command: Command) -> None:
    def failing(cfg: DictConfig) -> None:
        raise UserError("data.sources.mine.path: no file there")

    assert command("seed=3", task=failing) == (2, "lifecycle: data.sources.mine.path: no file there\n")


@pytest.mark.parametrize("place", range(4))
def test_a_flag_may_stand_anywhere(command: Command, place: int) -> None:
    words = ["stage=pretrain", "~stage.z_loss", "++seed=3,4"]
    words.insert(place, "-m")
    seen: list[int] = []
    code, said = command(*words, task=lambda cfg: seen.append(cfg.seed))
    assert (code, seen) == (0, [3, 4]), said


@pytest.mark.parametrize("words", [["seed=3"], ["-m", "seed=3,4"]])
def test_a_folder_that_cannot_be_made_is_said_without_a_traceback(command: Command, words: list[str]) -> None:
    Path("outputs").write_text("a file")
    code, said = command(*words, task=lambda cfg: None)
    assert code == 2 and re.match(r"lifecycle: outputs/\S+ cannot be made or read \(.*\): mend that", said)


def test_our_own_faults_keep_their_traceback(command: Command) -> None:
    def crashing(cfg: DictConfig) -> None:
        cfg.no_such_key  # noqa: B018

    with pytest.raises(ConfigAttributeError):
        command("seed=3", task=crashing)


def test_overrides_are_told_as_they_were_typed(command: Command) -> None:
    seen: list[str] = []
    command("seed=3", "optimizer=muon", task=lambda cfg: seen.extend(config.command_of(cfg).typed))
    assert sorted(seen) == ["optimizer=muon", "seed=3"]


@pytest.mark.slow
def test_the_command_works_from_any_folder(tmp_path: Path) -> None:
    def call(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lifecycle", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    assert call().returncode == 0
    failed = call("sede=3")
    assert failed.returncode == 2
    assert "did you mean seed?" in failed.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_wheel_carries_the_configs_and_the_kernels(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True, timeout=300)
    packed = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    for file in CONF.rglob("*.yaml"):
        assert f"lifecycle/conf/{file.relative_to(CONF)}" in packed
    source = ROOT / "src"
    kernels = {str(path.relative_to(source)) for path in source.rglob("*.[ch]")}
    assert len(kernels) > 3 and kernels <= packed
