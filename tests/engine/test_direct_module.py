"""A module that is called directly still runs the hooks that somebody put on it."""

import torch

from mini_claude.engine.direct_module import DirectModule


class Double(DirectModule):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def test_hooks_run_and_a_module_without_any_just_computes() -> None:
    module, seen = Double(), []
    before = module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].item()))
    after = module.register_forward_hook(lambda _module, _arguments, output: output + 1)
    assert module(torch.tensor(3.0)).item() == 7
    before.remove()
    after.remove()
    assert module(torch.tensor(3.0)).item() == 6
    assert seen == [3]
