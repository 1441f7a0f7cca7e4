"""README.md of final/: what the model is and how it was made. Paths of this machine stay out."""

import dataclasses
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from adaptsft.config.schema import Config, LoraConfig
from adaptsft.data.files import files_of, is_remote, local_file, training_sources
from adaptsft.errors import UserError
from adaptsft.training.environment import environment

PATHS = ("base_tokens", "base_stats")  # keys whose values are files of this machine
PACKAGES = ("adaptsft", "torch", "transformers")


def model_card(config: Config, steps: int, result: dict[str, Any], merged: bool = False) -> str:
    """`result`: of the run, whose figures of held-out data and tasks the card tells. merged: its
    adapters, if it trained any, have been added to the model."""
    adapters = config.model.lora
    alone = adapters.rank > 0 and not merged
    base, local = _base(config)
    datasets = _on_the_hub(config)
    facts = ModelCardData(
        base_model=None if local else base,
        datasets=datasets or None,
        library_name="peft" if alone else "transformers",
        pipeline_tag="text-generation",
        tags=["adaptsft", "sft"],
    )
    versions = environment()["versions"]
    train, sources = config.train, [source.name for source in training_sources(config.data)]
    rows = {
        "base model": f"{base} (a local folder)" if local else base,
        **({"adapters": _adapters(adapters)} if adapters.rank else {}),
        "data": ", ".join(sources),
        "objective": _settings(config.objective),
        "controller": _settings(config.controller),
        "steps": f"{steps:,} of {train.global_batch_size:,} examples",
        "learning rate": f"{train.lr:g}, {train.lr_schedule}",
        "seed": str(config.seed),
        "versions": ", ".join(f"{name} {versions[name]}" for name in PACKAGES),
        **_figures(result),
    }
    lines = [f"| {key} | {value.replace('|', chr(92) + '|')} |" for key, value in rows.items()]
    return "\n".join(
        [
            "---",
            facts.to_yaml(),
            "---",
            "",
            f"# {Path(config.run_dir).absolute().name}",
            "",
            "Supervised fine-tuning with adaptsft.",
            "",
            "| | |",
            "|---|---|",
            *lines,
            "",
        ]
    )


def _base(config: Config) -> tuple[str, bool]:
    """(name of the base model, whether it is a folder of this machine). The model of another run is
    called by that run's name."""
    folder = Path(config.model.path)
    if not folder.is_dir():
        return config.model.path, False
    folder = folder.absolute()
    return folder.parent.name if folder.name == "final" else folder.name, True


def _on_the_hub(config: Config) -> list[str]:
    """The data sets that are names on the hub, neither files nor folders nor URLs."""
    names = []
    for source in training_sources(config.data):
        if is_remote(source.path) or Path(source.path).expanduser().exists():
            continue
        try:
            if files_of(source) == [source.path] and local_file(source.path) is None:
                names.append(source.path)
        except UserError:
            continue  # files that have gone since
    return names


def _adapters(settings: LoraConfig) -> str:
    kind = "DoRA" if settings.use_dora else "LoRA"
    scaled = ", rank-stabilised" if settings.use_rslora else ""
    return f"{kind}, rank {settings.rank}, alpha {settings.alpha:g}{scaled}"


def _settings(group: Any) -> str:
    """The name, and what is not as it is by default."""
    parts = [group.name.rpartition("/")[2]]  # of a user's own file its name alone
    for declared in dataclasses.fields(group):
        value = getattr(group, declared.name)
        factory = declared.default_factory
        default = factory() if factory is not dataclasses.MISSING else declared.default
        if declared.name != "name" and value != default:
            parts.append(f"{declared.name}: {'yes' if declared.name in PATHS else value}")
    return ", ".join(parts)


def _figures(result: dict[str, Any]) -> dict[str, str]:
    rows = {}
    if held_out := result.get("held_out"):
        rows["held-out data"] = f"NLL {held_out['nll']:.4f}, mean p {held_out['mean_p']:.4f}"
    for task, metrics in result.get("tasks", {}).items():
        found = {name: value for name, value in metrics.items() if isinstance(value, float)}
        rows[f"{task}, in training"] = ", ".join(f"{n} {value:.3f}" for n, value in found.items())
    return rows
