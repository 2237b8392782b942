"""Our C as another processor would have it, whose vectors are narrower or which has no units for bf16."""

from types import ModuleType

import pytest
import torch

from lifecycle.system.native import c_library


def use_build_with(flag: str, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on `module` calls a build of its C with this option of the compiler; skips where there is none such."""
    monkeypatch.setattr(c_library, "FLAGS", (*c_library.FLAGS, flag))
    other = c_library.library.__wrapped__(module.SOURCE, module.SLOWER)
    if other is None:
        assert not torch.backends.cpu.get_cpu_capability().startswith("AVX")  # a compiler for x86 has them all
        pytest.skip("no such option of the compiler, whose processor is another")
    monkeypatch.setattr(module, "library", lambda *_: other)
