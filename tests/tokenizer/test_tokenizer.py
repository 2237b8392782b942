"""Laws of the tokenizer: nothing of a text is lost, text stays text, training repeats itself, the cache heals."""

import errno
import gzip
import json
import os
import pickle
import random
import string
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from lifecycle.errors import UserError
from lifecycle.jobs.tokenizer import report
from lifecycle.tokenizer.bpe import SPECIAL, pattern
from lifecycle.tokenizer.tokenizer import Tokenizer, TokenizerRecipe, from_recipe, load, train_bpe

RECIPE = TokenizerRecipe(vocab_size=500, digits=3, max_bytes=100_000)


def corpus() -> list[str]:
    rng = random.Random(0)
    words = ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(1, 8))) for _ in range(200)]
    return [" ".join(rng.choices(words, k=100)) + f"\n{rng.randint(0, 10**6)} naïve — 日本\n" for _ in range(40)]


@cache
def trained() -> Tokenizer:
    return train_bpe(corpus(), vocab_size=500, digits=3)


def strings() -> list[str]:
    rng = random.Random(1)
    ranges = [(0, 127), (0, 0xD7FF), (0xE000, 0x10FFFF), (0x1F300, 0x1FAFF), (0x300, 0x36F)]
    out = [
        "",
        " ",
        "\n",
        "\0",
        "\ufeff",
        "\r\n\t  x  \n\n",
        "👩‍👩‍👧‍👦🏳️‍🌈",
        "e\u0301 é",
        "'S 'll 12345 ١٢٣",
        "  a\u00a0b\u200b",
    ]
    for _ in range(300):
        low, high = rng.choice(ranges)
        out.append(
            "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 40))).encode("utf-8", "ignore").decode()
        )
    return out


@pytest.mark.parametrize("specials", [False, True])
def test_decode_undoes_encode_for_any_text(specials: bool) -> None:
    texts = strings()
    encoded = trained().encode_batch(texts)
    assert [trained().decode(ids, specials=specials) for ids in encoded] == texts


def test_ids_are_int32_below_the_vocabulary_and_never_special() -> None:
    for ids in trained().encode_batch(strings() + corpus()):
        assert ids.dtype == np.int32
        assert ids.size == 0 or (len(SPECIAL) <= ids.min() and ids.max() < trained().vocab_size == 500)


def test_bytes_of_is_the_length_in_utf8_and_marks_have_none() -> None:
    for text, ids, document in zip(
        strings(), trained().encode_batch(strings()), trained().documents(strings()), strict=True
    ):
        assert trained().bytes_of(ids) == trained().bytes_of(document) == len(text.encode())


def test_a_document_is_its_text_between_bos_and_eos() -> None:
    tokenizer = trained()
    texts = ["one two", ""]
    for ids, document in zip(tokenizer.encode_batch(texts), tokenizer.documents(texts), strict=True):
        assert document.dtype == np.int32
        assert document.tolist() == [tokenizer.bos_id, *ids.tolist(), tokenizer.eos_id]
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)


def test_the_name_of_a_special_token_in_a_text_is_text() -> None:
    for tokenizer in (trained(), pickle.loads(pickle.dumps(trained()))):
        for name in SPECIAL:
            (ids,) = tokenizer.encode_batch([f"a{name}b"])
            assert ids.min() >= len(SPECIAL)
            assert tokenizer.decode(ids) == f"a{name}b"


def test_lone_surrogates_become_replacement_characters() -> None:
    (ids,) = trained().encode_batch(["a\ud800b"])
    assert trained().decode(ids) == "a\ufffdb"
    assert trained().tokens_per_byte(["\udfff"]) == len(trained().encode_batch(["\ufffd"])[0]) / 3


def test_tokens_per_byte_by_hand() -> None:
    bare = train_bpe(["x"], vocab_size=300, digits=1)  # nothing repeats: every byte is a token
    assert bare.vocab_size == 256 + len(SPECIAL)
    assert bare.tokens_per_byte(["abc", "é"]) == 1.0
    assert bare.tokens_per_byte([]) == 0.0


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_no_token_has_more_digits_than_asked(digits: int) -> None:
    texts = ["1234567890 " * 50, "year 2024 2024 2024"]
    tokenizer = train_bpe(texts, vocab_size=400, digits=digits)  # type: ignore[arg-type]
    tokens = [tokenizer.decode([index]) for index in range(tokenizer.vocab_size)]
    assert max(sum(c.isdigit() for c in token) for token in tokens) == digits
    assert pattern(3).count("{1,3}") == 1


def test_training_twice_gives_the_same_file_also_in_a_fresh_process(tmp_path: Path) -> None:
    trained().save(tmp_path / "a")
    train_bpe(corpus(), vocab_size=500, digits=3).save(tmp_path / "b")
    code = (
        "import sys; from pathlib import Path; from lifecycle.tokenizer.tokenizer import train_bpe;"
        "train_bpe(sys.stdin.read().split('\\x01'), vocab_size=500, digits=3).save(Path(sys.argv[1]))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "c")],
        input="\x01".join(corpus()),
        text=True,
        check=True,
        env=environment,
    )
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
    for name in files:
        assert len({(tmp_path / folder / name).read_bytes() for folder in "abc"}) == 1


def test_saved_it_is_the_same_for_load_and_for_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    trained().save(tmp_path / "tokenizer")
    texts = strings()
    for again in (
        load(str(tmp_path)),
        load(str(tmp_path / "tokenizer")),
        load(str(tmp_path / "tokenizer/tokenizer.json")),
    ):
        assert again.sha256 == trained().sha256
        assert all(map(np.array_equal, again.encode_batch(texts), trained().encode_batch(texts)))
    theirs = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert theirs(texts[:10], add_special_tokens=False)["input_ids"] == [
        ids.tolist() for ids in trained().encode_batch(texts[:10])
    ]
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, 0)
    config = json.loads((tmp_path / "tokenizer/tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_disk_that_is_full_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as found:
        trained().save(tmp_path)
    assert found.value.errno == errno.ENOSPC


def test_the_hash_tells_tokenizers_apart_and_knows_the_marks() -> None:
    other = train_bpe(corpus(), vocab_size=499, digits=3)
    assert other.sha256 != trained().sha256
    moved = pickle.loads(pickle.dumps(trained().hf))
    moved.eos_token = "<|end|>"
    assert Tokenizer(moved).sha256 != trained().sha256


def test_chat_template_marks_turns_and_what_the_assistant_said() -> None:
    from transformers import BatchEncoding

    hf = trained().hf
    chat = [
        {"role": "system", "content": "be"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yo"},
    ]
    told = "<|bos|><|system|>\nbe<|end|>\n<|user|>\nhi<|end|>\n<|assistant|>\nyo<|end|>\n"
    assert hf.apply_chat_template(chat, tokenize=False) == told
    asked = hf.apply_chat_template(chat[:2], tokenize=False, add_generation_prompt=True)
    assert isinstance(asked, str) and told.startswith(asked) and asked.endswith("<|assistant|>\n")
    made = hf.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    assert isinstance(made, BatchEncoding)
    said = [i for i, mask in zip(made["input_ids"], made["assistant_masks"], strict=True) if mask]
    assert trained().decode(said, specials=True) == "yo<|end|>"


def gpt2_files(folder: Path, suffix: str) -> None:
    """A tokenizer in the form in which GPT-2's was published: bytes, then the merges of `low` and ` low`."""
    from tokenizers.pre_tokenizers import ByteLevel

    merges = [("l", "o"), ("lo", "w"), ("Ġ", "low")]
    tokens = [*sorted(ByteLevel.alphabet()), *("".join(pair) for pair in merges), "<|endoftext|>"]
    files = {
        "encoder.json": json.dumps({token: index for index, token in enumerate(tokens)}),
        "vocab.bpe": "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges),
    }
    for name, content in files.items():
        raw = content.encode()
        (folder / f"{name}{suffix}").write_bytes(gzip.compress(raw) if suffix else raw)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_gpt2_files_load_from_a_folder(tmp_path: Path, suffix: str) -> None:
    gpt2_files(tmp_path, suffix)
    tokenizer = load(str(tmp_path))
    assert [ids.tolist() for ids in tokenizer.encode_batch(["low low", "<|endoftext|>"])][0] == [257, 258]
    assert tokenizer.bos_id == tokenizer.eos_id == tokenizer.pad_id == 259
    assert tokenizer.vocab_size == 260
    texts = strings()
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(texts)] == texts
    tokenizer.save(tmp_path / "again")
    assert load(str(tmp_path / "again")).sha256 == tokenizer.sha256


def test_byte_order_marks_are_read_over(tmp_path: Path) -> None:
    trained().save(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    files = sorted(tmp_path.glob("*.json"))
    for path in files:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load(str(tmp_path)).sha256 == trained().sha256
    assert load(str(tmp_path)).hf.chat_template == trained().hf.chat_template
    assert all(path.read_bytes().startswith(b"\xef\xbb\xbf") for path in files)


def newer(content: str) -> str:
    return json.dumps(json.loads(content) | {"model": {"type": "of another year", "vocab": []}})


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("tokenizer.json", newer, "was written by a newer version, or is damaged; update tokenizers"),
        ("tokenizer.json", lambda text: text[:300], "is not JSON: it breaks off at its end"),
        ("tokenizer.json", lambda text: "", "is empty"),
        ("tokenizer.json", lambda text: "version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        ("tokenizer_config.json", lambda text: "[]", "holds a list, wanted an object"),
        ("tokenizer_config.json", lambda text: text.rstrip()[:-1] + ",}", "the comma before"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    name: str, change: Callable[[str], str], said: str, tmp_path: Path
) -> None:
    trained().save(tmp_path)
    path = tmp_path / name
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    for place in (tmp_path, path) if name == "tokenizer.json" else (tmp_path,):
        with pytest.raises(UserError, match=said) as caught:
            load(str(place))
        assert str(path) in str(caught.value)


@pytest.mark.skipif("GPT2_TOKENIZER" not in os.environ, reason="GPT2_TOKENIZER names no folder with GPT-2's files")
def test_published_gpt2_gives_its_known_ids() -> None:
    tokenizer = load(os.environ["GPT2_TOKENIZER"])
    assert tokenizer.vocab_size == 50257 and tokenizer.eos_id == 50256
    assert tokenizer.encode_batch(["Hello world"])[0].tolist() == [15496, 995]


def test_bytes_of_a_sentencepiece_vocabulary() -> None:
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

    vocab = {"</s>": 0, "<0x0A>": 1, "▁": 2, "▁é": 3, "a": 4}
    backend = Backend(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens([AddedToken("</s>", special=True)])
    backend.add_tokens(["<tool>"])
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))
    assert tokenizer.byte_lengths.tolist() == [0, 1, 1, 3, 1, 6]


def test_a_tokenizer_without_an_end_is_refused() -> None:
    hf = pickle.loads(pickle.dumps(trained().hf))
    hf.eos_token = None
    with pytest.raises(UserError, match="no end-of-text token"):
        Tokenizer(hf)


@pytest.mark.parametrize("place", ["./nowhere", "/nowhere/at/all", "outputs/none/tokenizer"])
def test_a_missing_path_is_named(place: str) -> None:
    with pytest.raises(UserError, match=f"data.tokenizer is '{place}'"):
        load(place)


def test_a_hub_id_is_asked_for_once_and_read_as_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def fetch(name: str, *, allow_patterns: list[str], revision: str | None) -> str:
        asked.append(name)
        if name == "owner/away":
            raise ConnectionError("Name or service not known\nmore")
        return str(tmp_path / "made")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    made = trained()
    made.save(tmp_path / "made")
    found = load("owner/name")
    assert found.sha256 == made.sha256 and found.hf.name_or_path == "owner/name"
    with pytest.raises(UserError, match=r"'owner/away', but no tokenizer .* \(Name or service not known\)\. Give"):
        load("owner/away")
    (tmp_path / "made" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json is not JSON"):
        load("owner/broken")
    assert asked == ["owner/name", "owner/away", "owner/broken"] and capfd.readouterr().err == ""


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer could be loaded"):
        load(str(tmp_path))


def test_code_in_a_tokenizers_folder_is_neither_run_nor_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "theirs"
    trained().save(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Theirs", "auto_map": {"AutoTokenizer": [None, "theirs.Theirs"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Theirs: pass\n")
    monkeypatch.setattr("builtins.input", lambda *words: "y")
    try:
        load(str(folder))
    except UserError as error:
        assert str(folder) in str(error)
    assert not (tmp_path / "ran").exists()
    assert "[y/N]" not in capsys.readouterr().out


def test_recipes_that_cannot_work_are_refused() -> None:
    with pytest.raises(UserError, match="vocab_size is 200; it must be 264 or more(.|\n)*digits is 4"):
        TokenizerRecipe(vocab_size=200, digits=4, max_bytes=1, special_tokens=("<|tool|>",))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"special_tokens names <\|eos\|> twice"):
        TokenizerRecipe(vocab_size=300, digits=1, max_bytes=1, special_tokens=("<|eos|>",))
    with pytest.raises(UserError, match="no text"):
        train_bpe(["", ""], vocab_size=300, digits=1)


def test_further_special_tokens_are_special() -> None:
    tokenizer = train_bpe(corpus(), vocab_size=300, digits=1, special_tokens=("<|tool|>",))
    assert tokenizer.hf.convert_tokens_to_ids("<|tool|>") == len(SPECIAL)
    assert tokenizer.bytes_of([len(SPECIAL)]) == 0


def unread() -> Iterator[str]:
    raise AssertionError("a cached tokenizer needs no text")
    yield ""


def test_a_recipe_is_trained_once_for_each_key(tmp_path: Path) -> None:
    first = from_recipe(RECIPE, iter(corpus()), tmp_path, "key")
    assert from_recipe(RECIPE, unread(), tmp_path, "key").sha256 == first.sha256 == trained().sha256
    with pytest.raises(AssertionError, match="needs no text"):
        from_recipe(RECIPE, unread(), tmp_path, "other data")
    with pytest.raises(AssertionError, match="needs no text"):
        from_recipe(TokenizerRecipe(vocab_size=499, digits=3, max_bytes=100_000), unread(), tmp_path, "key")


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "note"])
def test_a_damaged_cache_is_made_again(tmp_path: Path, damage: str) -> None:
    from_recipe(RECIPE, iter(corpus()), tmp_path, "key")
    (file,) = tmp_path.glob("*/tokenizer.json")
    content = file.read_bytes()
    if damage == "truncate":
        file.write_bytes(content[:100])
    elif damage == "flip":
        file.write_bytes(content[:-50] + bytes([content[-50] ^ 1]) + content[-49:])
    elif damage == "remove":
        file.unlink()
    else:
        (file.parent / "recipe.json").write_bytes(b"[]")
    assert from_recipe(RECIPE, iter(corpus()), tmp_path, "key").sha256 == trained().sha256
    assert file.read_bytes() == content
    assert from_recipe(RECIPE, unread(), tmp_path, "key").sha256 == trained().sha256


def test_of_callers_that_come_together_one_trains(tmp_path: Path) -> None:
    readers = []

    def texts(caller: int) -> Iterator[str]:
        readers.append(caller)
        yield from corpus()

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda caller: from_recipe(RECIPE, texts(caller), tmp_path, "key"), range(4)))
    assert {tokenizer.sha256 for tokenizer in made} == {trained().sha256}
    assert len(readers) == 1
    assert sorted(path.suffix for path in tmp_path.iterdir()) == ["", ".lock"]  # and nothing half-written beside it


@pytest.mark.slow
def test_of_processes_that_come_together_one_trains(tmp_path: Path) -> None:
    code = """if True:
        import os, sys, time
        from pathlib import Path
        from lifecycle.tokenizer.tokenizer import TokenizerRecipe, from_recipe
        folder = Path(sys.argv[1])
        (folder / f"ready-{os.getpid()}").touch()
        while len(list(folder.glob("ready-*"))) < 3:
            time.sleep(0.01)
        def texts():
            (folder / f"trained-{os.getpid()}").touch()
            yield from ["one two three " * 1000] * 100
        print(from_recipe(TokenizerRecipe(vocab_size=300, digits=1, max_bytes=9), texts(), folder, "key").sha256)
    """
    command = [sys.executable, "-c", code, str(tmp_path)]
    callers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    printed = {caller.communicate(timeout=120)[0] for caller in callers}
    assert [caller.returncode for caller in callers] == [0, 0, 0]
    assert len(printed) == 1
    assert len(list(tmp_path.glob("trained-*"))) == 1


def test_report_counts_by_source() -> None:
    texts = {"a": corpus()[:3], "empty": []}
    made = report(trained(), texts)
    size = sum(len(text.encode()) for text in texts["a"])
    tokens = sum(len(ids) for ids in trained().encode_batch(texts["a"]))
    assert made["sources"]["a"] == {
        "documents": 3,
        "bytes": size,
        "tokens": tokens,
        "tokens_per_byte": tokens / size,
        "bytes_per_token": size / tokens,
    }
    assert made["sources"]["empty"]["tokens_per_byte"] == 0
    lengths = [len(token.encode()) for token in made["longest"]]
    assert lengths == sorted(lengths, reverse=True) and lengths[0] == max(trained().byte_lengths)
    assert 0 < made["used"] < 1
    json.dumps(made)
