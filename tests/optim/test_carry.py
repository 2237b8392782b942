"""The moments of one optimizer as the beginning of another, worked by hand."""

import copy

import pytest
import torch

from lifecycle.errors import UserError
from lifecycle.optim.carry import carry_over, forget_rows


def optimizer(rows: int, *names: str) -> torch.optim.AdamW:
    groups = [
        {"params": [torch.nn.Parameter(torch.zeros(rows if name == "embedding" else 2, 3))], "name": name, "lr": 0.1}
        for name in names
    ]
    return torch.optim.AdamW(groups)


def stepped(rows: int, *names: str) -> torch.optim.AdamW:
    made = optimizer(rows, *names)
    for group in made.param_groups:
        group["params"][0].grad = torch.ones_like(group["params"][0])
    made.step()
    return made


def test_moments_go_over_and_new_rows_start_at_zero() -> None:
    before, after = stepped(4, "embedding", "matrix"), optimizer(6, "matrix", "embedding")
    carry_over(before.state_dict(), after)
    matrix, embedding = (after.state[group["params"][0]] for group in after.param_groups)
    torch.testing.assert_close(matrix["exp_avg"], torch.full((2, 3), 0.1))
    torch.testing.assert_close(embedding["exp_avg"], torch.tensor([0.1, 0.1, 0.1, 0.1, 0, 0])[:, None].expand(6, 3))
    assert embedding["step"] == 1
    assert [group["lr"] for group in after.param_groups] == [0.1, 0.1]


@pytest.mark.parametrize(("kernel", "device"), [("fused", "meta"), ("capturable", "meta"), ("none", "cpu")])
def test_the_count_of_steps_is_where_the_kernel_counts(kernel: str, device: str) -> None:
    before, after = stepped(2, "matrix"), optimizer(2, "matrix")
    group = after.param_groups[0]
    group["params"] = [torch.nn.Parameter(torch.zeros(2, 3, device="meta"))]
    group |= {kernel: True}
    carry_over(before.state_dict(), after)
    assert after.state[group["params"][0]]["step"].device.type == device


def test_what_was_padding_and_is_a_token_now_starts_at_zero_too() -> None:
    state = copy.deepcopy(stepped(4, "embedding", "matrix").state_dict())
    forget_rows(state, 3)
    assert state["state"][0]["exp_avg_sq"][3].tolist() == [0, 0, 0]
    assert state["state"][0]["exp_avg_sq"][:3].min() > 0 and state["state"][1]["exp_avg_sq"].min() > 0


@pytest.mark.parametrize(
    ("rows", "names", "said"),
    [(4, ("embedding", "head"), "has the groups embedding, matrix"), (3, ("embedding", "matrix"), r"is \(3, 3\)")],
)
def test_what_does_not_fit_is_refused(rows: int, names: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        carry_over(stepped(4, "embedding", "matrix").state_dict(), optimizer(rows, *names))
