"""Plain values that every layer shares: messages, sampling parameters, deltas and what is known of a model.

This file knows the vocabulary and nothing else: no I/O, no framework, no torch. All values are immutable and
travel between processes as msgpack (msgspec encodes dataclasses natively). What is made at every step is a struct:
that takes a tenth of the time.
"""

from dataclasses import dataclass, field
from typing import Literal

import msgspec

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "abort"]
ModelState = Literal["available", "loading", "ready", "unloading", "failed"]
EngineKind = Literal["auto", "llama_cpp", "torch", "echo"]
ModelFamily = Literal["causal_lm", "dialogpt"]
SourceKind = Literal["package", "hub", "folder", "gguf"]
Quantization = Literal["int8", "nf4"]
GGUFType = Literal["f32", "f16", "q8_0"]  # of an export's matrices; its vectors stay as they are
MadeGGUF = Literal["f32", "f16", "mixed", "q8_0", "q4_0"]  # of a GGUF file; mixed: q8_0 with attention in f16
ServedGGUF = Literal["auto", "as_is", "f16", "mixed", "q8_0", "q4_0"]
DTypeName = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation as the client wrote it; `content` is plain text, never control tokens."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen. The defaults sample from the model's unmodified distribution.

    Order of application: penalties and bias on the logits, temperature, then top_k, top_p and min_p.
    `repetition_penalty` divides or multiplies the logits of seen tokens (Keskar et al. 2019, section 4.1);
    `presence_penalty` and `frequency_penalty` are subtracted from the logits of generated tokens, as OpenAI does.
    """

    max_tokens: int | None = None  # None: as many as the context still holds
    temperature: float = 1.0  # 0 means greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 means no limit
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None
    logprobs: int | None = None  # None: not wanted; k: the chosen token's and the top k's
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False  # benchmarks only: keep going to max_tokens
    forced_token_ids: tuple[int, ...] = ()  # the reply's first tokens, whatever would have been chosen
    trace: int | None = None  # k: record how each token was chosen among the k most probable


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """LoRA weights for a model: `name` is "model:adapter@version", `folder` holds them in PEFT's format."""

    name: str
    folder: str


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A unit of work for an engine. `prompt_token_ids` is complete: the engine adds nothing to it."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    adapter: AdapterRef | None = None  # None: the model as it is
    owner: str = ""  # whose it is, where several share the engine: seats and queue are divided between owners


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """A candidate token with its natural-log probability; `token_bytes` are the token's exact bytes."""

    token_id: int
    token: str
    token_bytes: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The chosen token and the most probable candidates at its position, most probable first."""

    token_id: int
    token: str
    token_bytes: bytes
    logprob: float
    top: tuple[TopLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class CandidateTrace:
    """What each step of sampling made of one candidate.

    `probabilities` are aligned with `TokenTrace.steps`; None where a step took the candidate out.
    """

    token_id: int
    token: str
    probabilities: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class TokenTrace:
    """How one token was chosen.

    `steps` are "model" (softmax of its logits) and then the sampling parameters that changed something, in the order
    in which they were applied. `candidates` are the model's most probable tokens, best first, and the chosen one in
    any case. `seconds` are times of stages by name: queue and prefill (first token only), decode, sampling,
    detokenize; decode is the whole step's, which is shared with the rest of the batch.
    """

    token_id: int
    token: str
    forced: bool
    steps: tuple[str, ...]
    candidates: tuple[CandidateTrace, ...]
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class PromptToken:
    """A token of a prompt; a control token shows its name."""

    token_id: int
    token: str
    is_control: bool


@dataclass(frozen=True, slots=True)
class PromptTrace:
    """What the model was given. `seconds`: render (messages to text) and tokenize."""

    tokens: tuple[PromptToken, ...]
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request; `cached_tokens` is the part of the prompt served from the prefix cache."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt plus completion."""
        return self.prompt_tokens + self.completion_tokens


class GenerationDelta(msgspec.Struct, frozen=True, array_like=True):
    """What one engine step added to one reply.

    `text` is valid UTF-8 on its own and never holds a part of a stop string. `finish_reason` and `usage` are set
    on the last delta only. `logprobs` covers `token_ids` one to one when they were asked for.
    """

    request_id: str
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    trace: tuple[TokenTrace, ...] = ()  # where it was asked for; also of a token that ends the reply unseen


class EngineStats(msgspec.Struct, frozen=True):
    """A snapshot of one engine. Cache figures are in tokens; `cached` is idle prefix cache, `used` is running."""

    running: int = 0
    waiting: int = 0
    kv_tokens_used: int = 0
    kv_tokens_cached: int = 0
    kv_tokens_total: int = 0
    prompt_tokens_total: int = 0
    cached_tokens_total: int = 0
    generated_tokens_total: int = 0
    preemptions_total: int = 0
    steps_total: int = 0


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a model is loaded and how much it may hold at once. `auto` lets the machine decide."""

    engine: EngineKind = "torch"  # auto: llama.cpp for a model from a GGUF file on a CPU, else torch
    dtype: DTypeName = "auto"  # auto: float32 on a CPU, bfloat16 on a GPU
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    quantization: Quantization | None = None  # torch, by bitsandbytes; int8 uses threshold 6.0
    gguf_type: ServedGGUF = "auto"  # llama.cpp; auto: see served_gguf.py
    native_llama_cpp: bool = True  # the library that `mini-claude compile` made, where it did
    kv_cache_tokens: int = 8192  # running and cached sequences together
    max_num_seqs: int = 32  # sequences decoded in one batch
    max_num_batched_tokens: int = 512  # tokens of one step, prefill chunks included
    max_waiting: int = 256  # requests queued before new ones are refused
    num_threads: int = 0  # 0: physical cores, with llama.cpp fewer where other programs are busy


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model's files come from.

    kind `package`: `location` is "distribution/file.gguf" of an installed Python package; `hub`: a hub id
    "owner/name"; `folder` and `gguf`: an absolute path that an administrator registered.
    """

    kind: SourceKind
    location: str


@dataclass(frozen=True, slots=True)
class ModelOrigin:
    """Where the weights on this machine came from; `version` is that of the Python package, where they came in one.

    `sha256` is that of the weight files one after another in the order of their names, which is also what adapters
    keep of the base that they were made for.
    """

    source: ModelSource
    version: str | None
    sha256: str


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A catalog entry: a name that clients may send, and what stands behind it. `sources` are tried in order."""

    name: str
    family: ModelFamily
    sources: tuple[ModelSource, ...]
    description: str = ""
    license: str = ""


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """Memory of one GPU in bytes as its driver reports it."""

    index: int
    name: str
    used_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model as the API shows it. Everything past `state` is known only while it is (or was just) loaded."""

    name: str
    state: ModelState
    description: str = ""
    license: str = ""
    engine: str | None = None
    context_length: int | None = None
    dtype: str | None = None
    device: str | None = None
    quantization: str | None = None
    memory_bytes: int | None = None  # resident memory of the engine process
    error: str | None = None
    loaded_at: float | None = None  # Unix time
    pid: int | None = None
    restarts: int = 0
