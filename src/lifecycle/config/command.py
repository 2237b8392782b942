"""The command line: composes the config with Hydra and runs a task on it, or on each config of a sweep.

    python -m lifecycle KEY=VALUE ...        python -m lifecycle -m seed=1,2

Whatever the user got wrong ends in a message on stderr and exit code 2, without a traceback.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.singleton import Singleton
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from lifecycle.config import help
from lifecycle.config.composed import command_of, literal, say_command
from lifecycle.errors import UserError

Task = Callable[[DictConfig], int | None]
"""Gives the exit code of a job: 0 or None where it is done."""

SWEEP = {"-m", "--multirun", "hydra.mode=MULTIRUN"}
"""Words that ask for several jobs."""

WRITTEN = ("stage.prompt", "stage.system")
"""Keys whose values people write as they come, with commas, quotes and brackets that mean something to Hydra."""


_ONE_AT_A_TIME = threading.Lock()
"""Hydra composes by globals of the process, which threads share."""


def conf_dir() -> Path:
    """The config folder: in the installed package, else at the top of the checkout."""
    packaged = Path(__file__).parents[1] / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "conf"


def hydra_main(task: Task, *, check: Task | None = None) -> int:
    """Compose the config from the command line and run `task` on it, or on each config of a sweep (`-m`).

    `check` raises UserError for what `task` would refuse: no job of a sweep is started before it has seen them all.
    Returns the exit code: that of the task, or 2 where the user's config or data is at fault (the message is on
    stderr). Crashes go through. Without arguments it prints the help page.
    """
    words = _flags_first([_at_home(word) for word in sys.argv[1:]])
    if not words or {"-h", "--help"} & set(words):
        print(help.page(conf_dir()), end="")
        return 0
    _register_resolvers()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing its own trace; we say it in plain words
    inside: list[bool] = []
    failed: list[int] = []
    watched = _watched(task, inside, failed)
    main = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(watched)
    folders = _user_folders(words)
    try:
        for folder in folders:
            _refuse_namesakes(folder)
        words = _named(words)
        if check:
            _check_jobs(words, folders, check)
        sys.argv[1:] = _forced(words, conf_dir(), *folders)
        main()
    except UserError as error:
        jobs = ", ".join(map(str, failed))
        print(f"lifecycle: {f'jobs that failed: {jobs}' if failed else error}", file=sys.stderr)
        return 2
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError) as error:  # it makes the run's folder
        if inside:  # our own fault, not the command line's
            raise
        print(f"lifecycle: {help.complaint(error, conf_dir(), *folders)}", file=sys.stderr)
        return 2
    return 0


def compose(overrides: Sequence[str] = (), *, config_dirs: Sequence[Path] = ()) -> DictConfig:
    """The config of a command line, for use from Python. Raises UserError where it cannot be composed."""
    return _compose(overrides, config_dirs)[0]


def _compose(overrides: Sequence[str], config_dirs: Sequence[Path]) -> tuple[DictConfig, HydraConf]:
    """The config, and Hydra's own settings of it."""
    _register_resolvers()
    forced = _forced([_at_home(word) for word in overrides], conf_dir(), *config_dirs)
    forced.append(f"hydra.searchpath={[str(folder.resolve()) for folder in config_dirs]}")
    with _hydra_apart():
        with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
            try:
                cfg = hydra.compose("config", forced, return_hydra_config=True)
            except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
                raise UserError(help.complaint(error, conf_dir(), *config_dirs)) from error
        HydraConfig.instance().set_config(cfg)
        settings = HydraConfig.get()
        cfg.run = cfg.run  # its default refers to Hydra's node, which goes
        folder = Path(cfg.hydra.run.dir).resolve()
        with open_dict(cfg):
            del cfg["hydra"]
        say_command(cfg, folder, settings)
    return cfg, settings


@contextlib.contextmanager
def _hydra_apart() -> Iterator[None]:
    """One thread at a time composes; what Hydra keeps in globals of the process, of a program that is one of Hydra's
    itself too, is afterwards what it was."""
    with _ONE_AT_A_TIME:
        program, settings, version = GlobalHydra.instance(), HydraConfig.instance(), VersionBase.instance()
        before = program.hydra, settings.cfg, version.version_base
        program.hydra = settings.cfg = None
        try:
            yield
        finally:
            for one in (program, settings, version):
                Singleton._instances[type(one)] = one  # type: ignore[assignment]
            program.hydra, settings.cfg, version.version_base = before


def _register_resolvers() -> None:
    OmegaConf.register_new_resolver("flat", lambda *parts: "-".join(parts).replace("/", "_"), replace=True)


def _flags_first(words: Sequence[str]) -> list[str]:
    """The words with every KEY=VALUE, +KEY=VALUE and ~KEY at the end: Hydra reads no flag between two of them."""
    return sorted(words, key=lambda word: re.match(r"\+{0,2}\w[\w./@-]*=|~", word) is not None)


def _named(words: list[str]) -> list[str]:
    """The words with a name for a sweep: its jobs are composed one by one, and would each derive another name."""
    if not SWEEP & set(words) or any(re.match(r"\+*run=", word) for word in words):
        return words
    typed = [word for word in words if "=" in word and not word.startswith(("-", "hydra."))]
    try:
        single = [o.input_line for o in OverridesParser.create().parse_overrides(typed) if not o.is_sweep_override()]
    except OverrideParseException as error:
        raise UserError(help.complaint(error)) from error
    return [*words, f"run={compose([line for line in single if line], config_dirs=_user_folders(words)).run}"]


def _check_jobs(words: Sequence[str], folders: Sequence[Path], check: Task) -> None:
    """Check every job of a sweep before the first is started. Raises UserError that lists all faults by job.

    Jobs that depend on earlier ones (hydra/sweeper=optuna), or come from a config file, are checked as they start.
    """
    if not SWEEP & set(words) or any(re.match(r"\+*hydra[/.]sweep(er)?\b", word) for word in words):
        return
    typed = [word for word in words if re.match(r"[+~]*[\w./@-]+=", word) and not word.startswith("hydra.")]
    removed = [word for word in words if re.match(r"~[\w./@-]+$", word)]
    try:
        parsed = OverridesParser.create().parse_overrides([_taken_literally(word) for word in [*typed, *removed]])
        jobs = BasicSweeper.split_arguments(parsed, None)[0]
    except (HydraException, OverrideParseException):  # the words as a whole are wrong: Hydra says so
        return
    bad = []
    for number, job in enumerate(jobs):
        try:
            cfg, settings = _compose(job, folders)
            if settings.sweeper.get("params"):
                return
            check(cfg)
        except UserError as error:
            bad.append(number)
            print(f"job {number}: {' '.join(job)}\nlifecycle: {error}", file=sys.stderr)
    if bad:
        raise UserError(f"{len(bad)} of {len(jobs)} jobs are at fault ({', '.join(map(str, bad))}); none was started")


def _user_folders(words: Sequence[str]) -> list[Path]:
    """Folders of the user's own groups (`--config-dir F`, `--config-dir=F`, `-cd F`)."""
    flags = [i for i, word in enumerate(words[:-1]) if word in ("--config-dir", "-cd")]
    return [Path(words[i + 1]) for i in flags] + [
        Path(word.partition("=")[2]) for word in words if word.startswith("--config-dir=")
    ]


def _refuse_namesakes(folder: Path) -> None:
    """Refuse a config of the user with the name of a shipped one: Hydra would silently read the shipped one."""
    for path in sorted(folder.glob("*/**/*.yaml")):
        if (conf_dir() / path.relative_to(folder)).is_file():
            group, name = path.relative_to(folder).parts[0], path.stem
            raise UserError(
                f"{path} has the name of a config of lifecycle's own, and {group}={name} would read that one: give "
                f"yours another name, such as my_{path.name}"
            )


def _forced(words: Sequence[str], *folders: Path) -> list[str]:
    """Write every `key=value` as `++key=value`, so that `check` reports wrong keys, with the nearest spelling.

    Hydra by itself stops at the first key that no YAML file names. `++` sets a key whether or not it is there.
    """
    groups = help.named_choices(words, *folders)
    plain = re.compile(r"[A-Za-z_][\w.-]*=")
    words = [_taken_literally(word) for word in words]
    return [
        f"++{word}" if plain.match(word) and not word.startswith((*(f"{g}=" for g in groups), "hydra.")) else word
        for word in words
    ]


def _taken_literally(word: str) -> str:
    """The word with the texts of a `WRITTEN` key in quotes, and nothing in them that refers to another key.

    A value that is quoted already, or a list in brackets, is read as Hydra reads it; null stays. What Hydra cannot read
    as it was typed is quoted for any key, such as a path with blanks, an `=`, or other letters than a to z in it; but
    not with a comma, which may be meant to separate.
    """
    key, _, value = word.partition("=")
    plain = re.fullmatch(r"\+*[A-Za-z_][\w./@-]*=[^\[{'\",][^,]*", word)
    if plain and key.lstrip("+") not in WRITTEN and not _is_readable(word):
        return f"{key}={QuotedString(text=value, quote=Quote.double).with_quotes()}"
    listed = value.startswith("[") and value.endswith("]")
    quoted = len(value) > 1 and value[0] in "'\"" and value[0] == value[-1]
    if key.lstrip("+") not in WRITTEN or value in ("null", ""):
        return word
    if not listed and not quoted:
        return f"{key}={_quoted(value)}"
    try:
        read = OverridesParser.create().parse_override(word).value()
    except OverrideParseException:  # it is read again with all others, and refused there
        return word
    return f"{key}=[{','.join(map(_quoted, read))}]" if isinstance(read, list) else f"{key}={_quoted(read)}"


def _is_readable(word: str) -> bool:
    try:
        OverridesParser.create().parse_override(word)
    except (HydraException, OverrideParseException):
        return False
    return True


def _quoted(value: Any) -> str:
    """Text as Hydra reads it back to the letter; numbers and the like as they are typed."""
    if isinstance(value, str):
        return str(QuotedString(text=literal(value), quote=Quote.double).with_quotes())
    return "null" if value is None else str(value).lower()


def _at_home(word: str) -> str:
    """The word with `~/` or `~name/` where a path begins as bash would leave it; zsh, dash and fish do not, and Hydra
    reads no bare `~`."""
    key = word.partition("=")[0].lstrip("+")
    if key in WRITTEN or ("=" in word and not re.fullmatch(r"-{0,2}[\w./@-]+", key)):
        return word

    def place(found: re.Match[str]) -> str:
        home = os.path.expanduser(found[0])
        return home if key.startswith("-") else re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", home)

    return re.sub(r"(?:(?<=[=,\[])|^)~[\w.-]*(?=/)", place, word)


def _watched(task: Task, inside: list[bool], failed: list[int]) -> Task:
    """`task`, leaving no empty run folder behind; `inside` fills while the task runs and stays so if it fails, `failed`
    has the jobs of a sweep whose fault was said."""

    def run(cfg: DictConfig) -> None:
        settings = HydraConfig.get()
        folder = Path(settings.runtime.output_dir)
        say_command(cfg, folder, settings)
        if settings.mode == RunMode.MULTIRUN:
            typed = " ".join(command_of(cfg).typed)
            print(f"job {settings.job.num}: {typed} -> {os.path.relpath(folder)}", file=sys.stderr)
        inside.append(True)
        try:
            code = task(cfg)
            inside.pop()
        except UserError as error:
            print(f"lifecycle: {error}", file=sys.stderr)  # of a sweep too: its other jobs may take days
            if settings.mode == RunMode.MULTIRUN:
                failed.append(int(settings.job.num))
                raise  # also from another process; the launcher hands it on
            raise SystemExit(2) from error
        finally:
            while folder.is_dir() and folder != Path.cwd() and not any(folder.iterdir()):
                folder.rmdir()
                folder = folder.parent
        if code:
            raise SystemExit(code)

    return run
