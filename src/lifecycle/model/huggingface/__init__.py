"""Hugging Face in and out: the same model under the names and in the files of `transformers`.

    export(model, folder, tokenizer=tokenizer)        ->  AutoModelForCausalLM.from_pretrained(folder)
                                                          AutoModelForSequenceClassification, where it ends in a score
    config, weights = load_pretrained(folder)         ->  Decoder(config).load_state_dict(weights)

Ours and theirs hold the same numbers: the way out and back changes names, pulls experts apart, and orders the rows of
rotary queries and keys, but no bits. A family is one file in model/families.
"""

from lifecycle.model.huggingface.export_folder import export, to_huggingface
from lifecycle.model.huggingface.load import from_huggingface, load_pretrained, read_config
from lifecycle.model.huggingface.names import names

__all__ = ["export", "from_huggingface", "load_pretrained", "names", "read_config", "to_huggingface"]
