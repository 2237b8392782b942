"""The network of a parent, loaded for inference: for jobs, and for the difficulty of documents."""

from __future__ import annotations

import torch

from lifecycle.hardware.hardware import Hardware, probe
from lifecycle.lineage.parent import Parent
from lifecycle.model import Decoder
from lifecycle.model.precision import dtype_of


def load_model(parent: Parent, hardware: Hardware) -> Decoder:
    """The parent's network in eval mode; in bf16 on a GPU that has the units, unless hardware.precision says otherwise.

    Weights that autocast uses in fp32 (norms, routers) stay in fp32.
    """
    device = torch.device(hardware.device_type())
    half = hardware.precision == "bf16" or (
        hardware.precision == "auto" and device.type == "cuda" and probe("cuda").has_bf16
    )
    dtype = torch.bfloat16 if half else torch.float32
    with torch.device("meta"):
        model = Decoder(parent.model)
    weights = {name: weight.to(device, dtype_of(name, dtype)) for name, weight in parent.weights.items()}
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)
