"""Commands to type after a run, with the choices of this run in them."""

from __future__ import annotations

import json
import shlex

from lifecycle.report.run.run_data import RunData

LADDER = {"minimind_26m": 26e6, "minimind_104m": 104e6, "medium": 350e6, "medium_large": 400e6}
"""Shipped models by rough size in parameters: the next one up is worth a dry run."""

LIMITS = ("stage.max_steps", "stage.max_tokens", "stage.max_epochs")
STRETCH = "stage.schedule.stretch"


def going_on(run: RunData) -> list[tuple[str, str, str]]:
    """(why, what to type, its language), in the order in which a reader would want them."""
    steps = []
    if (run.folder / "model" / "config.json").exists():
        words = f"Let the model {'judge' if run.calibration else 'write'}, with nothing but `transformers`:"
        steps.append((words, _scoring(run) if run.calibration else _sampling(run), "python"))
    elif (run.folder / "adapter" / "adapter_config.json").exists():
        steps += _with_adapter(run)
    overrides = run.run.get("overrides")
    if overrides is None:
        return [*steps, ("See what can be run:", "python -m lifecycle", "bash")]
    own = _with_name(run, [str(word).removeprefix("++") for word in overrides])
    if run.status == "finished":
        longer = [f"{key}={value * 2}" for key, value in _limits(run)]
        if longer:
            words = (
                "Train twice as long; it goes on from the last checkpoint, at no higher rate than it had reached "
                "(stage.schedule.stretch=true: at that of the longer run):"
            )
            if run.last("train/lr") == 0:  # at which it would learn nothing
                words = "Train twice as long, from the last checkpoint, at the rate that the longer run has there:"
                longer.append(f"{STRETCH}=true")
            steps.append((words, _command([*_without(own, (*LIMITS, STRETCH)), *longer]), "bash"))
    else:
        steps.append(("Go on from the last checkpoint:", _command(own), "bash"))
    bigger = _bigger(run)
    if bigger:
        words = f"See what a larger model ({bigger}) would cost on the same data, without starting it:"
        name = f"{_name(run)}-{bigger}"
        sized = [*_without(own, ("run", "model")), f"run={name}", f"model={bigger}", "dry_run=true"]
        steps.append((words, _command(sized), "bash"))
    steps.append(("Profile a few steps of it, with TensorBoard beside metrics.csv:", _watching(run, own), "bash"))
    return steps


def _with_adapter(run: RunData) -> list[tuple[str, str, str]]:
    """What to do with an adapter that was not merged, whose parent has the other weights."""
    if run.calibration:
        words = "Let the adapter judge, beside the weights of its parent (with `transformers` and `peft`):"
        return [(words, _scoring(run), "python")]
    writing = f"python -m lifecycle stage=generate init_from={shlex.quote(str(run.folder))} stage.prompt=Hello"
    return [
        ("Let it write, the adapter merged into the weights of its parent as they are read:", writing, "bash"),
        (
            "The same with `transformers` and `peft`; behind merge_and_unload() it is a plain model, which "
            "save_pretrained(FOLDER) writes (adapter.merge=true lets a run leave such a model/ itself):",
            _merging(run),
            "python",
        ),
    ]


def _merging(run: RunData) -> str:
    return (
        "from peft import AutoPeftModelForCausalLM\n"
        "from transformers import AutoTokenizer, pipeline\n"
        f"folder = {str(run.folder / 'adapter')!r}\n"
        "model = AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload()\n"
        "write = pipeline('text-generation', model=model, tokenizer=AutoTokenizer.from_pretrained(folder))\n"
        f"print(write({json.dumps(_prompt(run))}, max_new_tokens=100)[0]['generated_text'])"
    )


def _prompt(run: RunData) -> str:
    return str(run.samples[0].get("prompt", "")) if run.samples else "The"


def _sampling(run: RunData) -> str:
    return (
        "from transformers import pipeline\n"
        f"write = pipeline('text-generation', model={str(run.folder / 'model')!r})\n"
        f"print(write({json.dumps(_prompt(run))}, max_new_tokens=100)[0]['generated_text'])"
    )


def _scoring(run: RunData) -> str:
    """A whole model's score of a text, or that of an adapter, whose class reads its parent too."""
    adapted = not (run.folder / "model" / "config.json").exists()
    automatic = "AutoPeftModelForSequenceClassification" if adapted else "AutoModelForSequenceClassification"
    imports = (
        f"from peft import {automatic}\nfrom transformers import AutoTokenizer\n"
        if adapted
        else f"from transformers import {automatic}, AutoTokenizer\n"
    )
    more = ", num_labels=1" if adapted else ""
    text = "".join(str(run.samples[0].get(key, "")) for key in ("prompt", "completion")) if run.samples else "The"
    return (
        f"{imports}folder = {str(run.folder / ('adapter' if adapted else 'model'))!r}\n"
        f"model = {automatic}.from_pretrained(folder{more})\n"
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        f"inputs = tokenizer({json.dumps(text)}, add_special_tokens=False, return_tensors='pt')\n"
        "print(model(**inputs).logits[0, 0])"
    )


def _watching(run: RunData, own: list[str]) -> str:
    more = [f"run={_name(run)}-profile", "callbacks=profile", "logger=tensorboard", "stage.max_steps=20"]
    kept = _without(own, ("run", "callbacks", "logger", *LIMITS))
    return _command([*kept, *more])


def _command(overrides: list[str]) -> str:
    return " ".join(["python -m lifecycle", *map(shlex.quote, overrides)])


def _with_name(run: RunData, overrides: list[str]) -> list[str]:
    """The overrides with `run=NAME`, which finds the run's folder again, unless they or their experiment name it."""
    is_named = any(word.split("=")[0] in ("run", "experiment") for word in overrides)
    return overrides if is_named else [*overrides, f"run={_name(run)}"]


def _name(run: RunData) -> str:
    """The value of `run=`: the folder's name; for a job of a sweep RUN/FOLDER."""
    name, configured = run.folder.resolve().name, str(run.setting("run") or "")
    return name if configured in ("", name) else f"{configured}/{name}"


def _without(overrides: list[str], keys: tuple[str, ...]) -> list[str]:
    return [word for word in overrides if word.split("=")[0].lstrip("+~") not in keys]


def _limits(run: RunData) -> list[tuple[str, float]]:
    found = [(key, run.setting(key)) for key in LIMITS]
    return [(key, value) for key, value in found if isinstance(value, int | float)]


def _bigger(run: RunData) -> str | None:
    """None for a run with a parent, whose architecture it takes: another size is refused."""
    if run.run.get("parent") is not None:
        return None
    size = run.run.get("parameters")
    return next((name for name, scale in LADDER.items() if size and scale > 1.5 * size), None)
