"""What is saved comes back bit for bit, and is what it was when `save_checkpoint` returned."""

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lifecycle.checkpoint import CheckpointError, load, verify
from lifecycle.checkpoint.io import CommittedCheckpointIO
from lifecycle.checkpoint.protocol import HashingFile
from lifecycle.checkpoint.snapshot import DTYPES, SLOT, plain
from lifecycle.errors import UserError


def same(a: Any, b: Any, path: str = "") -> None:
    """Equal in type, order, dtype, shape and bits."""
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), path
        bits = [t.resolve_conj().resolve_neg().contiguous().view(-1).view(torch.uint8) for t in (a, b) if t.numel()]
        assert not bits or torch.equal(*bits), path
    elif isinstance(a, dict):
        assert list(a) == list(b), path
        for key in a:
            same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{path}.{number}")
    else:
        assert a == b, path


def round_trip(checkpoint: dict[str, Any], folder: Path) -> dict[str, Any]:
    writer = CommittedCheckpointIO()
    writer.save_checkpoint(checkpoint, folder / "step-00000001")
    return writer.load_checkpoint(folder / "step-00000001", weights_only=True)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.complex64, torch.complex128], ids=str)
def test_every_dtype_comes_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    bits = torch.randint(0, 2 if dtype == torch.bool else 256, (6 * dtype.itemsize,), dtype=torch.uint8)
    tensor = bits.view(dtype).view(2, 3)
    tensors = {"2d": tensor, "0d": tensor[1, 1], "t": tensor.t(), "empty": tensor[:0], "row": tensor[1]}
    checkpoint = {"global_step": 1, "state_dict": tensors, "optimizer_states": [{"state": {0: dict(tensors)}}]}
    same(checkpoint, round_trip(checkpoint, tmp_path))


def test_containers_keep_type_and_order_and_modules_their_versions(tmp_path: Path) -> None:
    module = torch.nn.BatchNorm1d(3)
    checkpoint = {
        "global_step": 1,
        "state_dict": module.state_dict(),
        "loops": {"fit": {"n": 3, "f": 0.1, "none": None, 5: True, (1, "a"): b"x"}},
        "more": [1, (2.5, torch.ones(1)), {3}, OrderedDict(b=1, a=torch.zeros(2)), torch.float32, torch.device("cpu")],
    }
    found = round_trip(checkpoint, tmp_path)
    same(checkpoint, found)
    assert found["state_dict"]._metadata == module.state_dict()._metadata  # type: ignore[attr-defined]


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    w = torch.randn(100, 10)
    found = round_trip({"global_step": 1, "state_dict": {"embed": w, "head": w, "view": w[:50]}}, tmp_path)
    assert found["state_dict"]["embed"] is found["state_dict"]["head"]
    same(found["state_dict"]["view"], w[:50])
    assert verify(tmp_path / "step-00000001").files["weights.safetensors"].bytes < 7000


def test_names_that_meet_in_their_dotted_path_stay_apart(tmp_path: Path) -> None:
    checkpoint = {"global_step": 1, "state_dict": {}, "x": {"a": {"b": torch.zeros(1)}, "a.b": torch.ones(1)}}
    same(checkpoint, round_trip(checkpoint, tmp_path))


def test_weights_are_an_ordinary_safetensors_file(tmp_path: Path) -> None:
    weights = {"b": torch.randn(3, 5).t(), "half": torch.randn(3).half(), "n": torch.tensor(3), "e": torch.empty(0, 2)}
    round_trip({"global_step": 1, "state_dict": weights}, tmp_path)
    found = load_file(tmp_path / "step-00000001" / "weights.safetensors")
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        same(tensor, found[name], name)


def test_adamw_goes_on_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(17, 5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    x = torch.randn(9, 17)

    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()

    step(model, optimizer)
    state = {"global_step": 1, "state_dict": model.state_dict(), "optimizer_states": [optimizer.state_dict()]}
    found = round_trip(state, tmp_path)
    twin = torch.nn.Linear(17, 5)
    twin_optimizer = torch.optim.AdamW(twin.parameters(), lr=0.7)
    twin.load_state_dict(found["state_dict"])
    twin_optimizer.load_state_dict(found["optimizer_states"][0])
    for _ in range(3):
        step(model, optimizer)
        step(twin, twin_optimizer)
    same(dict(model.state_dict()), dict(twin.state_dict()))


def test_what_changes_after_the_call_is_not_in_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, write = threading.Event(), HashingFile.write

    def waiting(self: HashingFile, data: bytes) -> int:
        assert go.wait(10)
        return write(self, data)

    monkeypatch.setattr(HashingFile, "write", waiting)
    weights, moment, loops = torch.arange(5.0), torch.ones(3, dtype=torch.complex64), {"n": [1, 2]}
    checkpoint = {"global_step": 1, "state_dict": {"w": weights}, "optimizer_states": [{"m": moment}], "loops": loops}
    writer = CommittedCheckpointIO()
    writer.save_checkpoint(checkpoint, tmp_path / "step-00000001")
    weights.fill_(-1)
    moment.zero_()
    loops["n"].append(3)
    writer.save_checkpoint(checkpoint, tmp_path / "step-00000001")  # it is being written: nothing to do, no waiting
    assert not (tmp_path / "step-00000001").exists()
    go.set()
    writer.wait()
    found = load(tmp_path / "step-00000001")
    assert found["state_dict"]["w"].tolist() == [0, 1, 2, 3, 4]
    assert found["optimizer_states"][0]["m"].tolist() == [1, 1, 1] and found["loops"] == {"n": [1, 2]}
    assert writer.blocked_s > 0


def test_the_next_save_waits_for_the_one_before(tmp_path: Path) -> None:
    writer = CommittedCheckpointIO(keep_last=9)
    for step in range(1, 6):
        writer.save_checkpoint(
            {"global_step": step, "state_dict": {"w": torch.full((999,), step)}}, tmp_path / f"{step}"
        )
    writer.teardown()
    assert [load(tmp_path / f"{step}")["state_dict"]["w"][0].item() for step in range(1, 6)] == [1, 2, 3, 4, 5]


def test_a_committed_step_is_not_written_again(tmp_path: Path) -> None:
    writer = CommittedCheckpointIO(async_save=False)
    for value in (1.0, 2.0):
        writer.save_checkpoint({"global_step": 1, "state_dict": {"w": torch.tensor(value)}}, tmp_path / "step-00000001")
    assert load(tmp_path / "step-00000001")["state_dict"]["w"] == 1.0


@pytest.mark.parametrize("bad", [np.zeros(2), np.float64(1), range(3), Path("x"), torch.eye(2).to_sparse()], ids=repr)
def test_what_weights_only_could_not_read_is_refused_by_its_path(tmp_path: Path, bad: Any) -> None:
    checkpoint = {"global_step": 1, "state_dict": {}, "data": {"streams": [{"buffer": bad}]}}
    with pytest.raises(TypeError, match=r"checkpoint\.data\.streams\.0\.buffer is a "):
        CommittedCheckpointIO().save_checkpoint(checkpoint, tmp_path / "step-00000001")
    assert not list(tmp_path.iterdir())


def test_bad_keys_are_refused() -> None:
    for key in (np.int64(1), SLOT):
        with pytest.raises(TypeError, match="has the key"):
            plain({"a": {key: 1}})


def test_a_path_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing is no checkpoint folder"):
        load(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="has no manifest.json"):
        load(tmp_path)
