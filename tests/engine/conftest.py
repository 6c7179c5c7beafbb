"""Tiny random models of many architectures, and ways to run requests through an engine core."""

from collections.abc import Callable, Sequence

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from mini_claude.engine.engine_core import EngineCore, RequestFailure
from mini_claude.engine.pool_runner import PoolRunner
from mini_claude.engine.row_runner import RowRunner
from mini_claude.engine.torch_model import TorchModel
from mini_claude.models.echo_model import ByteCodec
from mini_claude.types import GenerationRequest, LoadOptions, SamplingParams

CONTEXT_LENGTH = 256
VOCAB_SIZE = ByteCodec().vocab_size

_COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT_LENGTH,
    "initializer_range": 0.5,  # large enough for varied text instead of one token for ever
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_LAYER_TYPES = ["sliding_attention", "full_attention"]
CONFIGS: dict[str, dict[str, object]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "olmo2": {},
    "phi3": {"partial_rotary_factor": 0.5},
    "mistral": {"sliding_window": 7},
    "gemma2": {"sliding_window": 7, "query_pre_attn_scalar": 8, "layer_types": _LAYER_TYPES},
    "gemma3_text": {"sliding_window": 7, "query_pre_attn_scalar": 8, "layer_types": _LAYER_TYPES},
    "gpt_oss": {"sliding_window": 7, "num_local_experts": 4, "layer_types": _LAYER_TYPES},
    "gpt2": {"n_positions": CONTEXT_LENGTH, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "gpt_neox": {"rotary_pct": 0.5},
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny models gain nothing from a second thread, and lose much where other tests use the cores."""
    torch.set_num_threads(1)


BuildModel = Callable[[str], PreTrainedModel]
RunAll = Callable[[EngineCore, Sequence[GenerationRequest]], dict[str, list[int]]]


def build(architecture: str) -> PreTrainedModel:
    settings = {**_COMMON, **CONFIGS[architecture]}
    config = AutoConfig.for_model(architecture, **settings)
    torch.manual_seed(7)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return model.eval()


@pytest.fixture(scope="session")
def build_model() -> BuildModel:
    """The same architecture always gives the same weights."""
    return build


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Prompts of many lengths; the longest is past every sliding window and every small token budget."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(VOCAB_SIZE, (length,), generator=generator).tolist() for length in (40, 3, 1, 17, 25, 8)]


def greedy(request_id: str, prompt: Sequence[int], max_tokens: int = 20) -> GenerationRequest:
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0)
    return GenerationRequest(request_id, tuple(prompt), params)


@pytest.fixture
def greedy_request() -> Callable[..., GenerationRequest]:
    return greedy


def run(core: EngineCore, requests: Sequence[GenerationRequest]) -> dict[str, list[int]]:
    """Add all requests and step until none is left; the token ids of each reply."""
    replies: dict[str, list[int]] = {request.request_id: [] for request in requests}
    for request in requests:
        core.add(request)
    while not core.is_idle:
        for output in core.step():
            if isinstance(output, RequestFailure):
                raise output.error
            replies[output.request_id] += output.token_ids
    return replies


@pytest.fixture
def run_all() -> RunAll:
    return run


@pytest.fixture
def layout() -> str:
    """Where keys and values are: in "rows", as on a CPU, or in a "pool", as on a GPU."""
    return "rows"


@pytest.fixture
def build_core(build_model: BuildModel, layout: str) -> Callable[..., EngineCore]:
    def make(architecture: str = "llama", **settings: int) -> EngineCore:
        options = LoadOptions(**{"kv_cache_tokens": 2048, **settings})  # type: ignore[arg-type]
        model = build_model(architecture)
        runner = RowRunner(model) if layout == "rows" else PoolRunner(model, options)
        return EngineCore(TorchModel(model, VOCAB_SIZE, runner), ByteCodec(), CONTEXT_LENGTH, options)

    return make
