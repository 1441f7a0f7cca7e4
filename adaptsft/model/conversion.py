"""Tensors of a model that transformers computes from others of the files, as where it stacks the
matrices of all experts of a layer: by its own operations, of which a rank runs what it needs."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import WeightConverter

from adaptsft.errors import ConfigError, reason_of
from adaptsft.model.modules import class_name

Window = tuple[slice, ...]  # of a tensor: a slice of each dimension


class Source(NamedTuple):
    stored: str  # name in the files
    exported: str  # name that an export writes


# pattern of transformers -> {name that computing back gives: of which tensor}, in the order of them
Sources = dict[str, dict[str, Source]]


@dataclass(frozen=True)
class Conversion:
    """One computation: what it takes, and what it gives."""

    converter: WeightConverter
    model: PreTrainedModel  # on meta: the whole model, whose shapes some operations ask for
    first: str  # name in it of the tensor that is computed, or of the first of several
    sources: Sources
    targets: dict[str, str]  # pattern -> name in the model that is trained
    shapes: dict[str, torch.Size]  # by name in the files: expected, and once it is read, found

    @classmethod
    def of(
        cls,
        converter: WeightConverter,
        model: PreTrainedModel,
        state: dict[str, Tensor],
        first: str,
        sources: Sources,
    ) -> "Conversion":
        """From its sources, of which some may be missing; `state` is that of the model. Raises
        ConfigError where they are not all there, and where transformers cannot compute them back,
        which an export needs."""
        patterns = converter.target_patterns
        targets = {pattern: first.replace(patterns[0], pattern, 1) for pattern in patterns}
        made = cls(converter, model, first, sources, targets, {})
        try:
            back = made._back({name: state[name] for name in targets.values()})
        except Exception as error:  # whatever an operation raises that has no opposite
            raise ConfigError(
                f"{class_name(model)}: transformers computes {first} from others of the files, and "
                f"cannot compute those back, as an export needs: {reason_of(error)}"
            ) from None
        there = made._by_name()
        made._check_complete(list(back), list(there))
        made.shapes.update((there[name].stored, tensor.shape) for name, tensor in back.items())
        return made

    def _check_complete(self, wanted: list[str], there: list[str]) -> None:
        missing, unknown = (
            [name for name in names if name not in others]
            for names, others in ((wanted, {*there}), (there, {*wanted}))
        )
        if missing or unknown:
            parts = [f"{len(missing)} missing (such as {missing[0]})"] if missing else []
            parts += [f"{len(unknown)} that it does not have ({unknown[0]})"] if unknown else []
            raise ConfigError(
                f"{class_name(self.model)} computes {self.first} from {len(wanted)} tensors of the "
                f"files: {', '.join(parts)}. Are the files complete, and do they belong to "
                "config.json?"
            )

    def convert(self, tensors: dict[str, list[Tensor]]) -> dict[str, Tensor]:
        """{name in the model that is trained: tensor} from {pattern: those of its sources}."""
        made = self._run(self.converter, tensors, self.first)
        return {self.targets[pattern]: tensor for pattern, tensor in made.items()}

    def revert(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """{name that an export writes: tensor} from {name in the model that is trained: tensor}."""
        there, written = self._by_name(), {}
        for name, tensor in self._back(tensors).items():
            stored, exported = there[name]
            as_read = tensor.shape == self.shapes[stored]
            written[exported] = tensor if as_read else tensor.transpose(-2, -1)
        return written

    def transposed(self, shape: torch.Size) -> torch.Size | None:
        """The other shape that a tensor of the files may have: some are read either way round."""
        either = any(getattr(of, "check_dims", False) for of in self.converter.operations)
        return torch.Size([*shape[:-2], shape[-1], shape[-2]]) if either else None

    def _by_name(self) -> dict[str, Source]:
        return {name: source for of in self.sources.values() for name, source in of.items()}

    def _back(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        back: Any = self.converter.reverse_transform()
        patterns = zip(back.source_patterns, self.targets.values(), strict=True)
        given = {pattern: [tensors[name]] for pattern, name in patterns}
        made = self._run(back, given, back.rename_source_key(self.first)[0])
        before, _, after = self.first.partition(self.converter.target_patterns[0])
        return {before + part + after: tensor for part, tensor in made.items()}

    def _run(self, converter: WeightConverter, tensors: Any, first: str) -> dict[str, Tensor]:
        for operation in converter.operations:
            tensors = operation.convert(
                tensors,
                source_patterns=converter.source_patterns,
                target_patterns=converter.target_patterns,
                full_layer_name=first,
                model=self.model,
                config=self.model.config,
                missing_keys=None,
            )
        return {key: t[0] if isinstance(t, list) else t for key, t in tensors.items()}

    def narrowed(self, shape: torch.Size, window: Window) -> Window | None:
        """The window of a stack that gives this window of the only target, of this shape: which of
        the sources, and of each its slices; None where more is needed to compute it."""
        cut = {number for number, of in enumerate(window) if of != slice(0, shape[number])}
        untouched = self._untouched(len(shape))
        if len(self.targets) > 1 or not untouched or not cut <= untouched:
            return None
        return tuple(of if number in cut else slice(None) for number, of in enumerate(window))

    def _untouched(self, dimensions: int) -> set[int]:
        """The dimensions of the target along which every operation but the first, which stacks the
        sources along dimension 0, works on each slice for itself."""
        stack, *others = self.converter.operations
        if type(stack).__name__ != "MergeModulelist" or _mixed(stack) != (0,):
            return set()
        mixed = {number % dimensions for of in others for number in _mixed(of, dimensions)}
        return set(range(dimensions)) - mixed


def _mixed(operation: Any, dimensions: int = 0) -> tuple[int, ...]:
    """The dimensions along which an operation does more than to repeat itself for every slice."""
    kind = type(operation).__name__  # some are not in every version of transformers
    if kind in ("MergeModulelist", "Concatenate", "Interleave"):
        return (operation.dim,)
    if kind == "Transpose" and not getattr(operation, "check_dims", False):
        return operation.dim0, operation.dim1
    return tuple(range(dimensions))
