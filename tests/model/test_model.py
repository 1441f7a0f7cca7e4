"""From a Hugging Face folder to a trainable model and back: the same numbers as transformers, for every kind of architecture."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config, LlamaConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from adaptsft.config.schema import ModelConfig, TrainConfig
from adaptsft.data.collator import Batch
from adaptsft.data.documents import Documents, padded_length
from adaptsft.distributed.ranks import device_mesh, process_group
from adaptsft.errors import ConfigError
from adaptsft.model import attention
from adaptsft.model.build import build_model
from adaptsft.model.loss import check_fused_loss_matches_model
from adaptsft.model.export import export
from adaptsft.model.pretrained import load_pretrained
from adaptsft.objectives.build import NLL
from adaptsft.statistics.step import StepStatistics
from adaptsft.train import train
from tests.runs import small_config

ARCHITECTURES = [
    ("llama", False),
    ("llama", True),
    ("qwen2", False),
    ("qwen2", True),
    ("qwen3", False),
    ("gemma2", True),
    ("gemma3", True),
]
LENGTHS = [[5, 9, 2], [16], [1, 8, 3, 4]]  # documents in three rows of 16 tokens


@pytest.fixture
def device():
    with process_group("cpu") as found:
        yield found


def packed_batch(lengths: list[list[int]], vocabulary: int, seed: int = 0) -> Batch:
    """Rows of documents of random tokens; every token but the first of a document is supervised."""
    ids = torch.randint(
        3,
        vocabulary,
        (len(lengths), sum(lengths[0])),
        generator=torch.Generator().manual_seed(seed),
    )
    flat = [length for row in lengths for length in row]
    bounds = torch.tensor([0, *flat]).cumsum(0)
    positions = torch.cat([torch.arange(length) for length in flat]).view_as(ids)
    valid = torch.cat([torch.arange(begin, end - 1) for begin, end in itertools.pairwise(bounds)])
    target_tokens = torch.tensor([length - 1 for length in flat])
    source = torch.zeros(len(valid), dtype=torch.int64)
    sequence = torch.arange(len(flat)).repeat_interleave(target_tokens)
    return Batch(
        ids,
        positions,
        Documents.build(bounds.int(), with_buckets=True),
        valid,
        ids.flatten()[valid + 1],
        source,
        sequence,
        target_tokens,
        torch.zeros_like(target_tokens),
    )


def built(folder: Path, device, **settings):
    pretrained = load_pretrained(ModelConfig(path=str(folder), **settings))
    model = build_model(
        ModelConfig(path=str(folder), **settings),
        TrainConfig(),
        pretrained,
        device_mesh(device, 1),
        device,
    )
    assert model.attention_backend == "sdpa"
    return model, pretrained


@pytest.mark.parametrize(("arch", "tied"), ARCHITECTURES)
def test_a_pack_gives_what_transformers_gives_for_each_document_alone(
    tiny_model, device, arch, tied
):
    """Forward and gradient, against the model as transformers loads and runs it, one document at a time and eagerly."""
    folder = tiny_model(arch, tied=tied)
    model, pretrained = built(folder, device)
    reference = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    batch = packed_batch(LENGTHS, pretrained.config.vocab_size)
    model.loss_settings["chunk_size"] = 7
    loss, rows, _ = model.token_loss(batch, NLL, None, 1.0 / len(batch.targets))
    loss.backward()

    expected = []
    for begin, end in itertools.pairwise(batch.documents.cu_seqlens):
        ids = batch.ids.flatten()[begin:end][None]
        logits = reference(input_ids=ids, use_cache=False).logits[0, :-1]
        expected.append(logits.log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(1))
    expected = torch.cat(expected)
    (-expected.mean()).backward()
    assert (rows.logp - expected).abs().max() < 2e-6
    gradients = {name: parameter.grad for name, parameter in reference.named_parameters()}
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor)
        assert (parameter.grad.full_tensor() - gradients[name]).abs().max() < 1e-6 * max(
            1.0, largest
        ), name


def test_sliding_window_and_softcap_are_honoured_within_a_pack(tiny_model, device, tmp_path):
    folder = tmp_path / "windowed"
    shutil.copytree(tiny_model("gemma2", tied=True), folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(
            values
            | {"sliding_window": 4, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
        )
    )
    model, pretrained = built(folder, device)
    reference = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    batch = packed_batch(LENGTHS, pretrained.config.vocab_size)
    _, rows, _ = model.token_loss(batch, NLL, None, 1.0)
    ids = batch.ids[1:2]
    expected = (
        reference(input_ids=ids, use_cache=False)
        .logits[0, :-1]
        .log_softmax(-1)
        .gather(1, ids[0, 1:, None])
        .squeeze(1)
    )
    offset = sum(LENGTHS[0]) - len(LENGTHS[0])
    assert (rows.logp[offset : offset + 15] - expected).abs().max() < 2e-6


def test_another_document_of_the_pack_cannot_be_seen(tiny_model, device):
    model, pretrained = built(tiny_model("llama", tied=False), device)
    batch = packed_batch(LENGTHS, pretrained.config.vocab_size)
    _, before, _ = model.token_loss(batch, NLL, None, 1.0)
    batch.ids[0, 5:14] = 7  # the second document of the first row; the labels stay
    _, after, _ = model.token_loss(batch, NLL, None, 1.0)
    changed = (before.logp != after.logp).nonzero().squeeze(1).tolist()
    assert set(changed) <= set(range(4, 12)) and changed


class Operators(TorchDispatchMode):
    """The operators that have run, by name, and their arguments."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append((func.name(), args))
        return func(*args, **(kwargs or {}))


def test_a_single_rank_neither_divides_gradients_nor_sums_statistics_over_ranks(tiny_model, device):
    model, pretrained = built(tiny_model("llama", tied=False), device)
    batch = packed_batch(LENGTHS, pretrained.config.vocab_size)
    loss, tokens, kept = model.token_loss(batch, NLL, None, 1.0)
    statistics = StepStatistics(1, device)
    statistics.add(tokens, kept, batch)
    with Operators() as operators:
        loss.backward()
        statistics.all_reduce()
    names = {name for name, _ in operators.seen}
    assert "aten::mm" in names and not {"aten::div.Tensor", "c10d::allreduce_"} & names
    assert statistics.column("tokens").sum() == len(batch.targets)


def test_flash_and_varlen_are_given_the_longest_document_not_the_row():
    offsets = torch.tensor([0, 7, 207, 208, 8192], dtype=torch.int32)
    for end, expected in ((3, 256), (2, 128), (5, 8192)):
        chosen = offsets[:end]
        documents = Documents.build(chosen, with_buckets=False)
        assert documents.max_length == expected >= int(chosen.diff().max())
    assert [padded_length(n) for n in (1, 128, 129, 256, 257)] == [128, 128, 256, 256, 512]


def test_varlen_repeats_keys_only_where_it_has_to():
    """Traced with fake tensors: the CPU has no such kernel, and shapes are what counts."""
    documents = Documents.build(torch.tensor([0, 7, 64], dtype=torch.int32), False)
    with FakeTensorMode(allow_non_fake_inputs=True), Operators() as operators:
        query = torch.empty(64, 4, 32, dtype=torch.bfloat16)
        key, value = (torch.empty(64, 2, 32, dtype=torch.bfloat16) for _ in range(2))
        out = attention._varlen(query, key, value, documents, 1.0, 5, None, 0.0)
    assert out.shape == query.shape
    (inputs,) = (args for name, args in operators.seen if name == "torch_attn::_varlen_attn")
    heads = [tensor.shape[1] for tensor in inputs[:3]]
    assert heads == ([4, 2, 2] if attention.VARLEN_GROUPS_HEADS else [4, 4, 4])


def test_compiled_attention_is_compiled_twice_whatever_the_longest_document():
    """Once for the first length, once for any; traced with tensors that hold no data."""
    compiled = []

    def count(graph, inputs):
        compiled.append(graph)
        return graph.forward

    attend = torch.compile(attention._varlen, backend=count, fullgraph=True)
    query = torch.empty(64, 4, 32, dtype=torch.bfloat16, device="meta")
    for offsets in ([0, 64], [0, 200, 250], [0, 500, 501, 1000], [0, 3000, 3001, 3002]):
        documents = Documents.build(torch.tensor(offsets, dtype=torch.int32), False)
        documents = documents._replace(cu_seqlens=documents.cu_seqlens.to("meta"))
        attend(query, query[:, :2], query[:, 2:], documents, 1.0, None, None, 0.0)
    assert len(compiled) == 2


def test_verify_head_catches_a_head_that_the_loss_does_not_know(tiny_model, device):
    model, pretrained = built(tiny_model("llama", tied=False), device)
    batch = packed_batch(LENGTHS, pretrained.config.vocab_size)
    check_fused_loss_matches_model(model, batch)
    model.config.logit_scale = (
        0.25  # known to token_loss, unknown to the Llama that computes the logits
    )
    with pytest.raises(ConfigError, match="linear head"):
        check_fused_loss_matches_model(model, batch)


def test_heads_that_a_gpu_kernel_does_not_take_are_known_before_it_runs():
    for head_dim, flash, varlen in (
        (64, "", ""),
        (36, "", "a multiple of 8"),
        (512, "at most 256", "at most 256"),
    ):
        config = LlamaConfig(head_dim=head_dim)
        for backend, reason in (("flash", flash), ("varlen", varlen)):
            found = attention.unfit(backend, config)
            assert reason in found and bool(reason) == bool(found), (head_dim, backend, found)
    assert "softcap" in attention.unfit("varlen", Gemma2Config()) and not attention.unfit(
        "flash", Gemma2Config()
    )


def test_attention_that_cannot_be_honoured_is_refused(device):
    with pytest.raises(ConfigError, match=r"model\.attention=varlen.*GPU"):
        attention.choose("varlen", device, torch.bfloat16, None)
    seam = ALL_ATTENTION_FUNCTIONS[attention.SEAM["sdpa"]]
    documents = Documents.build(torch.tensor([0, 4]), with_buckets=True)
    states = torch.randn(1, 2, 4, 8)
    with pytest.raises(ConfigError, match="s_aux"):
        seam(
            torch.nn.Module(),
            states,
            states,
            states,
            None,
            documents=documents,
            s_aux=torch.zeros(2),
        )


def test_frozen_parameters_do_not_move_and_added_tokens_start_at_the_mean(tmp_path, tiny_model):
    source = tiny_model("qwen2", tied=False)
    config = small_config(
        tmp_path,
        source,
        model__freeze=["embed_tokens", r"layers\.0\."],
        model__add_tokens=["<think>", "</think>"],
        train__weight_decay=0.0,
    )
    train(config)
    before = AutoModelForCausalLM.from_pretrained(source).state_dict()
    final = Path(config.run_dir) / "final"
    after, tokenizer = (
        AutoModelForCausalLM.from_pretrained(final).state_dict(),
        AutoTokenizer.from_pretrained(final),
    )
    known = len(AutoTokenizer.from_pretrained(source))
    assert tokenizer.convert_tokens_to_ids(["<think>", "</think>"]) == [known, known + 1]
    embedding = after["model.embed_tokens.weight"]
    assert torch.equal(embedding[:known], before["model.embed_tokens.weight"][:known])
    mean = before["model.embed_tokens.weight"][:known].mean(0)
    assert torch.allclose(embedding[known : known + 2], mean.expand(2, -1), atol=1e-7)
    for name, tensor in after.items():
        if "layers.0." in name:
            assert torch.equal(tensor, before[name]), name
    assert not torch.equal(
        after["model.layers.1.mlp.up_proj.weight"], before["model.layers.1.mlp.up_proj.weight"]
    )
    with pytest.raises(ConfigError, match="matches no parameter"):
        train(small_config(tmp_path, source, "typo", model__freeze=["embeding"]))


@pytest.mark.parametrize(("arch", "tied"), [("llama", False), ("gemma3", True)])
def test_the_export_is_a_complete_hugging_face_folder(tiny_model, tmp_path, device, arch, tied):
    source = tiny_model(arch, tied=tied)
    model, pretrained = built(source, device)
    export(model, pretrained, tmp_path / "fp32", "fp32")
    export(model, pretrained, tmp_path / "bf16", "bf16")
    original = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "fp32")
    ids = torch.arange(3, 30)[None]
    assert torch.equal(original(ids).logits, again(ids).logits)
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "bf16")
    assert half.dtype == torch.bfloat16
    assert torch.equal(
        half.state_dict()["model.norm.weight"],
        original.state_dict()["model.norm.weight"].bfloat16(),
    )
    tokenizer, expected = (
        AutoTokenizer.from_pretrained(tmp_path / "bf16"),
        AutoTokenizer.from_pretrained(source),
    )
    message = [{"role": "user", "content": "two and two?"}]
    assert tokenizer.apply_chat_template(message, tokenize=False) == expected.apply_chat_template(
        message, tokenize=False
    )
    assert (tmp_path / "bf16" / "generation_config.json").is_file()
    assert half.generate(ids, max_new_tokens=4, min_new_tokens=4).shape == (1, 31)
    assert {path.suffix for path in (tmp_path / "bf16").iterdir()} <= {
        ".json",
        ".safetensors",
        ".jinja",
    }


def test_files_that_do_not_fit_are_refused_by_name(tiny_model, tmp_path, device):
    from safetensors.torch import load_file, save_file

    source = tiny_model("llama", tied=False)

    def changed(name: str, change) -> Path:
        folder = tmp_path / name
        shutil.copytree(source, folder)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    with pytest.raises(ConfigError, match=r"1 tensors missing.*model\.norm\.weight"):
        built(changed("missing", lambda t: t.pop("model.norm.weight")), device)
    with pytest.raises(ConfigError, match=r"not used.*extra"):
        built(changed("extra", lambda t: t.update(extra=torch.zeros(1))), device)
    with pytest.raises(ConfigError, match=r"lm_head\.weight: the file has shape"):
        built(
            changed(
                "shape", lambda t: t.update({"lm_head.weight": t["lm_head.weight"][:10].clone()})
            ),
            device,
        )
    torn = tmp_path / "torn"
    shutil.copytree(source, torn)
    content = (torn / "model.safetensors").read_bytes()
    (torn / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigError, match=r"model\.safetensors: damaged"):
        built(torn, device)
    with pytest.raises(ConfigError, match="no such folder"):
        load_pretrained(ModelConfig(path="./nowhere"))


def test_weights_in_several_files_and_bf16_are_read_into_fp32_masters(tiny_model, tmp_path, device):
    original = AutoModelForCausalLM.from_pretrained(
        tiny_model("qwen3", tied=False), dtype=torch.bfloat16
    )
    shutil.copytree(tiny_model("qwen3", tied=False), tmp_path / "split")
    (tmp_path / "split" / "model.safetensors").unlink()
    original.save_pretrained(tmp_path / "split", max_shard_size="100KB")
    assert len(list((tmp_path / "split").glob("*.safetensors"))) > 1
    model, _ = built(tmp_path / "split", device)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter.full_tensor(), original.state_dict()[name].float()), name


@pytest.mark.parametrize(
    "setting",
    [
        {"train__activation_checkpointing": "full"},
        {"train__activation_checkpointing": "per_op"},
        {"train__compile": True},
    ],
    ids=str,
)
def test_recomputation_and_compilation_change_nothing(tmp_path, tiny_model, setting):
    model = tiny_model("llama", tied=False, layers=1)
    shape = {
        "train__max_steps": 2,
        "data__packing": False,
        "data__pad_multiple": 128,
    }  # one shape, so that little is compiled
    plain = train(small_config(tmp_path, model, "plain", **shape))
    other = train(small_config(tmp_path, model, "other", **shape, **setting))
    assert other["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    assert other["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4)


def test_bf16_compute_keeps_fp32_masters_and_optimizer_state(tmp_path, tiny_model):
    from tests.runs import saved_state

    exact = train(
        small_config(tmp_path, tiny_model("llama", tied=False), "fp32", train__max_steps=2)
    )
    config = small_config(
        tmp_path,
        tiny_model("llama", tied=False),
        "bf16",
        train__max_steps=2,
        model__compute_dtype="bf16",
    )
    half = train(config)
    assert half["loss"] != exact["loss"]
    assert half["loss"] == pytest.approx(exact["loss"], rel=2e-2)
    state = saved_state(Path(config.run_dir) / "checkpoints" / "step_00000002")
    assert {tensor.dtype for name, tensor in state.items() if "tensors" not in name} == {
        torch.float32
    }
