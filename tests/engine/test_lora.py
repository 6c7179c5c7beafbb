"""Adapters and the base in one batch: each answers as PEFT does for it alone, the base as if there were none."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft.utils.integrations import dequantize_module_weight
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from mini_claude.engine.engine_core import EngineCore, RequestFailure
from mini_claude.engine.lora import StepRows, adaptable_layers
from mini_claude.engine.pool_runner import PoolRunner
from mini_claude.engine.row_runner import RowRunner
from mini_claude.engine.torch_model import TorchModel
from mini_claude.models.adapter_files import WEIGHTS_FILE
from mini_claude.models.echo_model import ByteCodec
from mini_claude.types import AdapterRef, GenerationRequest, LoadOptions, SamplingParams, TokenLogprob

from .peft_adapters import PeftAdapter, generated, make_adapter

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3_text", "gpt2")
BuildModel = Callable[[str], PreTrainedModel]
BuildCore = Callable[..., EngineCore]
RunAll = Callable[[EngineCore, list[GenerationRequest]], dict[str, list[int]]]
GreedyRequest = Callable[..., GenerationRequest]


def model_of(core: EngineCore) -> TorchModel:
    assert isinstance(core.model, TorchModel)
    return core.model


def core_of(model: PreTrainedModel, layout: str = "rows") -> EngineCore:
    codec, options = ByteCodec(), LoadOptions(kv_cache_tokens=2048)
    runner = RowRunner(model) if layout == "rows" else PoolRunner(model, options)
    return EngineCore(TorchModel(model, codec.vocab_size, runner), codec, 256, options)


def load(core: EngineCore, adapter: AdapterRef) -> None:
    core.add_adapter(adapter, core.model.read_adapter(Path(adapter.folder)))


@pytest.fixture(params=ARCHITECTURES, scope="module")
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["rows", "pool"])
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def adapters(
    architecture: str, build_model: BuildModel, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PeftAdapter, PeftAdapter]:
    """One on every linear layer, one on some, of another rank."""
    folder = tmp_path_factory.mktemp(architecture)
    few = ["c_attn"] if architecture == "gpt2" else ["q_proj", "down_proj"]
    return (
        make_adapter(build_model(architecture), folder / "wide", seed=1),
        make_adapter(build_model(architecture), folder / "narrow", seed=2, r=2, lora_alpha=3, target_modules=few),
    )


@pytest.fixture(scope="module")
def models(
    architecture: str, build_model: BuildModel, adapters: tuple[PeftAdapter, PeftAdapter]
) -> list[tuple[AdapterRef | None, PreTrainedModel]]:
    return [(None, build_model(architecture)), *((adapter.ref, adapter.model) for adapter in adapters)]


@pytest.fixture(scope="module")
def expected(
    models: list[tuple[AdapterRef | None, PreTrainedModel]], prompts: list[list[int]]
) -> dict[AdapterRef | None, list[list[int]]]:
    return {ref: [generated(model, prompt) for prompt in prompts] for ref, model in models}


@pytest.fixture
def core(architecture: str, build_core: BuildCore, adapters: tuple[PeftAdapter, PeftAdapter]) -> EngineCore:
    made = build_core(architecture)
    for adapter in adapters:
        load(made, adapter.ref)
    return made


def test_the_reference_answers_differ(expected: dict[AdapterRef | None, list[list[int]]]) -> None:
    assert len({str(replies) for replies in expected.values()}) == 3


def test_alone(
    core: EngineCore,
    run_all: RunAll,
    greedy_request: GreedyRequest,
    prompts: list[list[int]],
    expected: dict[AdapterRef | None, list[list[int]]],
) -> None:
    for ref, replies in expected.items():
        actual = [run_all(core, [replace(greedy_request("r", prompt), adapter=ref)])["r"] for prompt in prompts]
        assert actual == replies


@pytest.mark.parametrize("options", [{}, {"max_num_batched_tokens": 8, "max_num_seqs": 7}, {"kv_cache_tokens": 256}])
def test_all_in_one_batch(
    options: dict[str, int],
    architecture: str,
    build_core: BuildCore,
    adapters: tuple[PeftAdapter, PeftAdapter],
    run_all: RunAll,
    greedy_request: GreedyRequest,
    prompts: list[list[int]],
    expected: dict[AdapterRef | None, list[list[int]]],
) -> None:
    core = build_core(architecture, **options)
    for adapter in adapters:
        load(core, adapter.ref)
    requests = [
        replace(greedy_request(f"{name}-{number}", prompt), adapter=ref)
        for number, prompt in enumerate(prompts)
        for name, ref in enumerate(expected)
    ]
    replies = run_all(core, requests)
    for name, wanted in enumerate(expected.values()):
        assert [replies[f"{name}-{number}"] for number in range(len(prompts))] == wanted
    if "kv_cache_tokens" in options:
        assert core.stats().preemptions_total > 0


def test_the_base_beside_adapters_gets_the_very_numbers_that_it_gets_without_them(
    architecture: str,
    core: EngineCore,
    build_core: BuildCore,
    prompts: list[list[int]],
    adapters: tuple[PeftAdapter, ...],
) -> None:
    def requests(refs: tuple[AdapterRef | None, ...]) -> list[GenerationRequest]:
        params = SamplingParams(max_tokens=12, temperature=0.0, logprobs=5)
        return [
            GenerationRequest(f"{number}-{name}", tuple(prompt), params, ref)
            for number, prompt in enumerate(prompts)
            for name, ref in enumerate(refs)
        ]

    mixed = logprobs(core, requests((None, adapters[0].ref, adapters[1].ref)))
    without = logprobs(build_core(architecture), requests((None, None, None)))
    for number in range(len(prompts)):
        assert mixed[f"{number}-0"] == without[f"{number}-0"]
        assert mixed[f"{number}-1"] != without[f"{number}-1"]


def logprobs(core: EngineCore, requests: list[GenerationRequest]) -> dict[str, list[TokenLogprob]]:
    found: dict[str, list[TokenLogprob]] = {request.request_id: [] for request in requests}
    for request in requests:
        core.add(request)
    while not core.is_idle:
        for output in core.step():
            assert not isinstance(output, RequestFailure)
            found[output.request_id] += output.logprobs or ()
    return found


def test_a_prefix_is_reused_by_its_own_adapter_alone(
    core: EngineCore,
    run_all: RunAll,
    greedy_request: GreedyRequest,
    prompts: list[list[int]],
    expected: dict[AdapterRef | None, list[list[int]]],
) -> None:
    prompt, num_cached = prompts[0], 0
    for ref in expected:
        run_all(core, [replace(greedy_request("first", prompt[:30], 2), adapter=ref)])
        assert core.stats().cached_tokens_total == num_cached  # what the others read is of no use
        assert run_all(core, [replace(greedy_request("again", prompt), adapter=ref)])["again"] == expected[ref][0]
        num_cached += 30
        assert core.stats().cached_tokens_total == num_cached


def test_a_running_sequence_lends_its_prefix_to_its_own_adapter_alone(
    core: EngineCore,
    run_all: RunAll,
    greedy_request: GreedyRequest,
    prompts: list[list[int]],
    expected: dict[AdapterRef | None, list[list[int]]],
) -> None:
    for name, ref in enumerate(expected):
        core.add(replace(greedy_request(f"running-{name}", prompts[0], 40), adapter=ref))
    core.step()
    replies = {
        str(name): replace(greedy_request(str(name), prompts[0]), adapter=ref) for name, ref in enumerate(expected)
    }
    for reply in replies.values():
        core.add(reply)
    texts: dict[str, list[int]] = {}
    while not core.is_idle:
        for output in core.step():
            assert not isinstance(output, RequestFailure)
            texts.setdefault(output.request_id, []).extend(output.token_ids)
    assert [texts[name] for name in replies] == [wanted[0] for wanted in expected.values()]
    assert core.stats().cached_tokens_total == len(expected) * (len(prompts[0]) - 1)


def test_a_removed_adapter_leaves_no_trace(
    core: EngineCore,
    run_all: RunAll,
    greedy_request: GreedyRequest,
    prompts: list[list[int]],
    expected: dict[AdapterRef | None, list[list[int]]],
    adapters: tuple[PeftAdapter, PeftAdapter],
) -> None:
    wide, narrow = (adapter.ref for adapter in adapters)
    run_all(core, [replace(greedy_request("r", prompts[0]), adapter=wide)])
    core.remove_adapter(wide)
    assert core.stats().kv_tokens_cached == 0
    assert run_all(core, [replace(greedy_request("r", prompts[0]), adapter=narrow)])["r"] == expected[narrow][0]
    core.remove_adapter(narrow)
    assert all(not module._forward_hooks for module in model_of(core).model.modules())
    assert run_all(core, [greedy_request("r", prompts[0])])["r"] == expected[None][0]
    load(core, wide)
    assert run_all(core, [replace(greedy_request("r", prompts[0]), adapter=wide)])["r"] == expected[wide][0]


VARIANTS: dict[str, dict[str, object]] = {
    "rslora": {"use_rslora": True, "lora_alpha": 5},
    "dora": {"use_dora": True},
    "dora with rslora and another alpha": {"use_dora": True, "use_rslora": True, "lora_alpha": 7, "r": 3},
    "rank_pattern": {"rank_pattern": {"0.self_attn.q_proj": 7, "c_fc": 7}, "lora_alpha": 5},
    "alpha_pattern": {"alpha_pattern": {"down_proj": 20, "0.attn.c_attn": 20}, "use_rslora": True},
    "some layers": {"layers_to_transform": [1]},
}


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"], scope="function")
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_variants_of_lora(
    architecture: str,
    options: dict[str, object],
    build_model: BuildModel,
    layout: str,
    run_all: RunAll,
    greedy_request: GreedyRequest,
    prompts: list[list[int]],
    tmp_path: Path,
) -> None:
    adapter = make_adapter(with_biases(build_model(architecture)), tmp_path / "variant", **options)  # type: ignore[arg-type]
    core = core_of(with_biases(build_model(architecture)), layout)
    load(core, adapter.ref)
    requests = [
        replace(greedy_request(str(number), prompt), adapter=adapter.ref) for number, prompt in enumerate(prompts)
    ]
    replies = run_all(core, requests)
    assert [replies[str(number)] for number in range(len(prompts))] == [adapter.answer(prompt) for prompt in prompts]


def with_biases(model: PreTrainedModel) -> PreTrainedModel:
    """The same random ones each time; an untrained model's are zero, which would hide that DoRA leaves them alone."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model


def test_weights_in_sixteen_bits_are_the_same_numbers(
    build_model: BuildModel, build_core: BuildCore, run_all: RunAll, greedy_request: GreedyRequest, tmp_path: Path
) -> None:
    make_adapter(build_model("llama"), tmp_path / "half")
    weights = load_file(tmp_path / "half" / WEIGHTS_FILE)
    for dtype in (torch.bfloat16, torch.float16):
        rounded = {name: tensor.to(dtype) for name, tensor in weights.items()}
        save_file(rounded, tmp_path / "half" / WEIGHTS_FILE)
        read = build_core("llama").model.read_adapter(tmp_path / "half")
        layer = "model.layers.1.mlp.up_proj"
        assert torch.equal(torch.from_numpy(read[layer].b), rounded[f"base_model.model.{layer}.lora_B.weight"].float())


COARSE: dict[str, dict[str, object]] = {
    "bfloat16": {"dtype": torch.bfloat16},
    "int8": {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)},
    "nf4": {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")},
}


@pytest.fixture(params=COARSE)
def coarse_model(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], PreTrainedModel]:
    """Wide enough for blocks of 64 weights. Each call loads the same weights again."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")

    def load_base() -> PreTrainedModel:
        return LlamaForCausalLM.from_pretrained(tmp_path / "base", **COARSE[request.param]).eval()

    return load_base


def answer_of(model: PreTrainedModel, ref: AdapterRef, prompt: list[int]) -> dict[int, float]:
    """Log-probabilities of the most probable next tokens."""
    core = core_of(model)
    load(core, ref)
    params = SamplingParams(max_tokens=1, temperature=0.0, logprobs=20)
    (token,) = logprobs(core, [GenerationRequest("r", tuple(prompt), params, ref)])["r"]
    return {top.token_id: top.logprob for top in token.top}


def test_on_a_quantised_or_rounded_base(
    coarse_model: Callable[[], PreTrainedModel], prompts: list[list[int]], tmp_path: Path
) -> None:
    adapter = make_adapter(coarse_model(), tmp_path / "adapter")
    expected = adapter.model(torch.tensor([prompts[0]])).logits[0, -1].log_softmax(-1)
    base = coarse_model()(torch.tensor([prompts[0]])).logits[0, -1].log_softmax(-1)
    assert (expected - base).abs().max() > 1
    for token_id, logprob in answer_of(coarse_model(), adapter.ref, prompts[0]).items():
        assert logprob == pytest.approx(expected[token_id].item(), abs=0.1)  # 4-bit kernels round to bfloat16


def test_dora_on_such_a_base_divides_by_the_norms_of_its_own_weights(
    coarse_model: Callable[[], PreTrainedModel], prompts: list[list[int]], tmp_path: Path
) -> None:
    """With these norms as its magnitudes, DoRA is the same as plain LoRA."""
    plain, dora = (
        make_adapter(coarse_model(), tmp_path / name, use_dora=name == "dora").ref for name in ("plain", "dora")
    )
    tensors = load_file(tmp_path / "plain" / WEIGHTS_FILE)
    for name, layer in coarse_model().named_modules():
        key = f"base_model.model.{name}.lora_"
        if f"{key}A.weight" in tensors:
            delta = 2 * tensors[f"{key}B.weight"] @ tensors[f"{key}A.weight"]
            tensors[f"{key}magnitude_vector"] = (dequantize_module_weight(layer).float() + delta).norm(dim=1)
    save_file(tensors, tmp_path / "dora" / WEIGHTS_FILE)
    expected = answer_of(coarse_model(), plain, prompts[0])
    for token_id, logprob in answer_of(coarse_model(), dora, prompts[0]).items():
        assert logprob == pytest.approx(expected.get(token_id, logprob), abs=0.1)


def test_tokens_of_neighbours_are_a_slice_and_others_an_index() -> None:
    rows = StepRows(torch.device("cpu"))
    one, two = AdapterRef("m:one@1", "/one"), AdapterRef("m:two@1", "/two")
    rows.assign([(None, 3), (one, 2), (one, 1), (two, 1), (None, 1), (two, 2)])
    (first, neighbours), (second, scattered) = rows.by_adapter
    assert (first, neighbours, second) == (one, slice(3, 6), two)
    assert isinstance(scattered, torch.Tensor)
    assert scattered.tolist() == [6, 8, 9]
    rows.assign([(None, 4)])
    assert rows.by_adapter == ()


def test_the_output_layer_and_experts_cannot_be_adapted(build_core: BuildCore) -> None:
    assert not [name for name in model_of(build_core("llama")).layers if not name.startswith("model.layers.")]
    adaptable = {name.split(".")[-1] for name in model_of(build_core("gpt_oss")).layers}
    assert adaptable == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_a_layer_that_sees_some_tokens_only_is_left_out() -> None:
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.every, self.some, self.twice, self.never = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            x = self.every(torch.zeros(1, input_ids.shape[1], 4))
            return torch.cat((self.twice(self.twice(x)), self.some(x[:, 1:])), dim=1)

    model = Sparse()
    with adaptable_layers(model) as layers:
        model(input_ids=torch.zeros(1, 5, dtype=torch.long))
    assert list(layers) == ["every"]
    assert not any(module._forward_pre_hooks for module in model.modules())
