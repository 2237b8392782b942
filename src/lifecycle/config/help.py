"""Texts of the command line: the help page, the comment beside a key, and Hydra's errors in plain words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml
from hydra.errors import MissingConfigException, OverrideParseException

from lifecycle.config.composed import Command
from lifecycle.config.wording import nearest
from lifecycle.errors import UserError

EXAMPLES = """\
  lifecycle experiment=demo
      train a small model on the text that Python itself carries; some three minutes, with a report at the end
  lifecycle stage=pretrain model=minimind_26m data=files 'data.sources.mine.path=texts/*.jsonl.gz' run=mine
      your own files (JSON, CSV, Parquet, Arrow, text; compressed or not)
  lifecycle experiment=a100_2day dry_run=true
      parameters, memory, hours and disk of a two-day run on one A100; starts nothing
  lifecycle stage=prepare data=files 'data.sources.mine.path=texts/*.jsonl.gz' run=shards
      tokenise once into shards; later runs read them with data.prepared=outputs/shards
  lifecycle stage=generate init_from=outputs/demo stage.prompt=Return
      let a finished run, or any Hugging Face or GGUF model, go on with a text
  lifecycle -m seed=1,2 stage.optimizer.lr=1e-3,3e-3 run=sweep
      a sweep: one folder a job, outputs/sweep/0 to outputs/sweep/3
"""

PAGE = """\
lifecycle KEY=VALUE ...   (the same as python -m lifecycle)

A run is a choice from each group and any keys of theirs; it leaves outputs/<run>/, and the same command goes on where
it was stopped.

Examples:
{examples}
Groups (GROUP=CHOICE):
{groups}
Keys of the run (KEY=VALUE):
{keys}
More:
  lifecycle --cfg job KEY=VALUE ...        show the composed config and start nothing
  lifecycle --config-dir FOLDER ...        further choices of your own: FOLDER/model/mine.yaml is model=mine
  lifecycle -m KEY=A,B ...                 run every combination
  lifecycle --hydra-help                   flags of Hydra, which composes the config
"""


def page(conf: Path) -> str:
    """The help page: worked examples, the groups with their choices, the keys of a run with their comments."""
    groups = "".join(f"  {name:<11} {' '.join(choices(name, conf))}\n" for name in group_names(conf))
    text = (conf / "config.yaml").read_text()
    keys = re.findall(r"^([a-z_]+): (.*?) +# (.*)$", text, re.MULTILINE)
    lines = "".join(f"  {key:<14} {comment}\n" for key, _, comment in keys)
    return PAGE.format(examples=EXAMPLES, groups=groups, keys=lines)


def group_names(*folders: Path) -> list[str]:
    """The groups that stand in these config folders."""
    entries = [entry for folder in folders if folder.is_dir() for entry in folder.iterdir() if entry.is_dir()]
    return sorted({entry.name for entry in entries if not entry.name.startswith("_")})


def named_choices(words: Sequence[str], *folders: Path) -> list[str]:
    """The groups that stand in these config folders. Raises UserError where a word chooses null, a truth value or a
    number in one of them: a choice is the name of a file, and Hydra would end in an error of its own."""
    groups = group_names(*folders)
    for word in words:
        group, _, value = word.lstrip("+").partition("=")
        odd = [one for one in value.split(",") if re.fullmatch(r"(?i)null|true|false|[-+]?[\d.]+", one.strip())]
        if group in groups and odd:
            known = choices(group, *folders)
            raise UserError(
                f"{group}={odd[0]}: a choice is a name. Choices of {group}: {', '.join(known)}; without {group}= it is "
                "the default"
            )
    return groups


def choices(group: str, *folders: Path) -> list[str]:
    """The choices of a group in these config folders, also those in its own folders (midtrain/default)."""
    found = {file.relative_to(folder / group) for folder in folders for file in (folder / group).rglob("*.yaml")}
    return sorted(str(file.with_suffix("")) for file in found if not file.name.startswith("_"))  # _x.yaml: shared


def files_of(place: Sequence[str], command: Command) -> list[Path]:
    """YAML files that may hold the key: the group's choice, in every config folder, then what choices share."""
    folders = [Path(folder) for folder in command.files]
    if len(place) == 1:
        files = [folder / "config.yaml" for folder in folders]
    else:
        files = [folder / place[0] / f"{command.choices.get(place[0])}.yaml" for folder in folders]
        files += [file for folder in folders for file in sorted((folder / place[0]).glob("_*.yaml"))]
    return [file for file in files if file.is_file()]


def comment_beside(files: Iterable[Path], keys: Sequence[str]) -> str | None:
    """The comment on the line of a key, from the first file that has the key."""
    for file in files:
        text = file.read_text()
        node = yaml.compose(text)
        line = None
        for key in keys:
            pairs = node.value if isinstance(node, yaml.MappingNode) else []
            found = next(((k, v) for k, v in pairs if k.value == key), None)
            line, node = (found[0].start_mark.line, found[1]) if found else (None, None)
        if line is not None:
            comment = re.search(r"#\s*(.*)$", text.splitlines()[line])
            return comment[1] if comment else None
    return None


def complaint(error: Exception, *folders: Path) -> str:
    """An error of Hydra, OmegaConf or the YAML reader in plain words, with what to type instead. folders: of config."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _no_such_choice(error.missing_cfg_file, folders, error.options or ())
    if isinstance(error, OverrideParseException):
        word = str(error.override).removeprefix("++")
        return (
            f"'{word}' cannot be read; wanted KEY=VALUE without spaces around '='. A value with spaces, "
            f"commas, braces or quotes is quoted twice: KEY='\"a value\"'\n({error.message.splitlines()[0]})"
        )
    if isinstance(error, yaml.YAMLError):
        return f"a config file is not valid YAML: {error}"
    if isinstance(error, OSError):
        return (
            f"{error.filename or 'the run folder'} cannot be made or read ({error.strerror or error}): mend that "
            "(permissions? mounted? a file of that name?), or start in another folder"
        )
    cause = f": {error.__cause__}" if error.__cause__ else ""
    lines = [line for line in f"{error}{cause}".replace("++", "").splitlines() if "Set the environment" not in line]
    twice = re.match(r"(\S+) appears more than once in the final defaults list", lines[0]) if lines else None
    if twice:
        return f"{twice[1]} is chosen twice; a choice takes no '+': type {twice[1]}=CHOICE"
    return "\n".join(lines)


def _no_such_choice(file: str, folders: Sequence[Path], options: Iterable[str]) -> str:
    """options: what Hydra found beside the file, which is all that is known of its own groups (hydra/launcher)."""
    group, _, choice = file.removesuffix(".yaml").partition("/")
    if not choice:
        return f"there is no config '{group}'"
    known = choices(group, *folders)
    if not known:
        (group, _, choice), known = file.removesuffix(".yaml").rpartition("/"), sorted(options)
    if group == "data" and re.search(r"[*.]", choice):  # no choice has either: files
        mine = f"data=files data.sources.mine.path={choice}"
        return f"data={choice}: no data config has such a name. For files of yours type {mine}"
    near = _nearest_choice(choice, known)
    hint = f"; did you mean {group}={near}?" if near else "."
    return f"{group}={choice}: there is no such choice{hint} Choices of {group}: {', '.join(_beside(choice, known))}"


def _nearest_choice(choice: str, known: Sequence[str]) -> str | None:
    """By the last part, as folders alone look alike: sft/general for general and for sft/genral."""
    ends = [one.rpartition("/")[2] for one in known]
    end = nearest(choice.rpartition("/")[2], ends)
    return nearest(choice, [one for one, its in zip(known, ends, strict=True) if its == end], likeness=0)


def _beside(choice: str, known: Sequence[str]) -> list[str]:
    """The choices in the folder of this one; without such a folder those in none, and the folders (sft/...)."""
    folder = choice.rpartition("/")[0]
    inside = [one for one in known if folder and one.rpartition("/")[0] == folder]
    return inside or list(dict.fromkeys(re.sub("/.*", "/...", one) for one in known))
