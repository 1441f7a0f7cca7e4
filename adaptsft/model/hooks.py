"""What the check of the first batch sees inside a model, which afterwards is as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from adaptsft.model.lora import adapted_layers
from adaptsft.model.mixers import mixers
from adaptsft.model.modules import blocks


@contextmanager
def outputs_of(layers: list[nn.Module]) -> Iterator[list[Tensor]]:
    """What these decoder layers give meanwhile, [B, L, D] each."""
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        found.append((output[0] if isinstance(output, tuple) else output).detach())

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def without_new_hooks(model: nn.Module) -> Iterator[None]:
    """Asked for what layers return, transformers hooks all of them for good, and a layer with such
    a hook cannot be compiled as a whole."""
    mark = "_output_capturing_hooks_installed"
    before = {m: (set(m._forward_hooks), mark in vars(m)) for m in model.modules()}
    try:
        yield
    finally:
        for module, (own, marked) in before.items():
            for key in set(module._forward_hooks) - own:
                del module._forward_hooks[key]
            if not marked:
                vars(module).pop(mark, None)


@contextmanager
def mixers_in_training(model: PreTrainedModel) -> Iterator[list[str]]:
    """Mixers as in training but for dropout: some have kernels of their own for it, which take the
    weights of a layer instead of calling it. After a forward the list has the names of such layers
    that carry an adapter."""
    found = [mixer for layer in blocks(model) for mixer in mixers(layer)]
    parts = {part for mixer in found for part in mixer.modules()}
    before = {part: part.training for part in parts if not isinstance(part, nn.Dropout)}
    called: set[str] = set()
    passed_over: list[str] = []
    adapted = dict(adapted_layers(model))

    def note(name: str, *_: Any) -> None:
        called.add(name)

    hooks = [layer.register_forward_pre_hook(partial(note, n)) for n, layer in adapted.items()]
    for part in before:
        part.training = True
    try:
        yield passed_over
        passed_over += [name for name in adapted if name not in called]
    finally:
        for part, mode in before.items():
            part.training = mode
        for hook in hooks:
            hook.remove()
