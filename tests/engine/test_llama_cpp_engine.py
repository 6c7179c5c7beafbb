"""llama.cpp behind our engine core: the same tokens as torch, from chunks, prefixes, crowds and adapters."""

import asyncio
import ctypes.util
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from mini_claude.engine import llama_cpp_library
from mini_claude.engine.engine_core import EngineCore, RequestFailure
from mini_claude.engine.llama_cpp_engine import LlamaCppEngine
from mini_claude.engine.llama_cpp_model import LlamaCppModel
from mini_claude.engine.row_runner import RowRunner
from mini_claude.engine.torch_model import TorchModel
from mini_claude.errors import ModelLoadError
from mini_claude.models.causal_lm import CausalLM
from mini_claude.models.text_codec import TokenizerCodec
from mini_claude.training.adapter_gguf import write_adapter_gguf
from mini_claude.types import AdapterRef, GenerationRequest, LoadOptions, SamplingParams

from ..training.tiny_adapters import load, save_adapter, save_base, some_sequences
from ..training.tiny_gguf import save_gguf

CONTEXT = 256
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "gemma3_text": {"query_pre_attn_scalar": 16},
    "gpt2": {},
}
PROMPTS = some_sequences(6, 20)
ROUNDING = 1e-4  # in nats: what is read together decides in which order llama.cpp adds up


class Base:
    """A tiny model in both forms, and cores that run it."""

    def __init__(self, folder: Path, architecture: str, **changes: Any) -> None:
        self.folder = save_base(folder / "base", architecture, **{**ARCHITECTURES[architecture], **changes})
        self.gguf = save_gguf(self.folder, folder / "base.gguf")
        self.codec: TokenizerCodec = CausalLM.from_folder("tiny", self.folder).codec

    def llama_cpp(self, **options: int) -> EngineCore:
        chosen = _options(**options)
        write_adapter = partial(write_adapter_gguf, self.folder)
        model = LlamaCppModel(self.gguf, self.codec.vocab_size, chosen, write_adapter)
        return EngineCore(model, self.codec, CONTEXT, chosen)

    def torch(self) -> EngineCore:
        model = load(self.folder)
        return EngineCore(TorchModel(model, self.codec.vocab_size, RowRunner(model)), self.codec, CONTEXT, _options())


def _options(**options: int) -> LoadOptions:
    return LoadOptions(**{"kv_cache_tokens": 2048, "num_threads": 1, "max_num_seqs": 8, **options})  # type: ignore[arg-type]


def request(
    name: str, prompt: list[int], adapter: AdapterRef | None = None, num_tokens: int = 12, **params: object
) -> GenerationRequest:
    settings = {"max_tokens": num_tokens, "temperature": 0.0, "ignore_eos": True, "logprobs": 5, **params}
    return GenerationRequest(name, tuple(prompt), SamplingParams(**settings), adapter)  # type: ignore[arg-type]


def run(core: EngineCore, requests: list[GenerationRequest]) -> dict[str, list[tuple[int, float]]]:
    """Tokens and their logprobs of each reply."""
    replies: dict[str, list[tuple[int, float]]] = {each.request_id: [] for each in requests}
    for each in requests:
        core.add(each)
    while not core.is_idle:
        for output in core.step():
            assert not isinstance(output, RequestFailure), output
            replies[output.request_id] += [(token.token_id, token.logprob) for token in output.logprobs or ()]
    return replies


def assert_same(
    replies: dict[str, list[tuple[int, float]]], expected: dict[str, list[tuple[int, float]]], tolerance: float = 0.02
) -> None:
    """The tolerance is in nats: llama.cpp keeps keys and values in 16 bits."""
    assert replies.keys() == expected.keys()
    for name, tokens in expected.items():
        assert [token for token, _ in replies[name]] == [token for token, _ in tokens], name
        differences = [abs(one - other) for (_, one), (_, other) in zip(replies[name], tokens, strict=True)]
        assert max(differences) < tolerance, (name, differences)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return Base(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def adapters(base: Base, tmp_path_factory: pytest.TempPathFactory) -> tuple[AdapterRef, AdapterRef]:
    folder = tmp_path_factory.mktemp("adapters")
    wide = save_adapter(base.folder, folder / "wide", size=0.2)
    narrow = save_adapter(base.folder, folder / "narrow", size=0.4, targets=["q_proj", "v_proj"], r=2)
    return AdapterRef("tiny:wide@1", str(wide)), AdapterRef("tiny:narrow@1", str(narrow))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_both_engines_give_the_same_tokens_and_logprobs(architecture: str, tmp_path: Path) -> None:
    both = Base(tmp_path, architecture)
    wanted = [request(str(number), prompt) for number, prompt in enumerate(PROMPTS)]
    assert_same(run(both.llama_cpp(), wanted), run(both.torch(), wanted))


def test_a_prompt_in_chunks_beside_running_replies_gives_the_same(base: Base) -> None:
    wanted = [request(str(number), prompt, num_tokens=20) for number, prompt in enumerate(PROMPTS)]
    assert_same(run(base.llama_cpp(max_num_batched_tokens=9), wanted), run(base.torch(), wanted))


def test_a_full_cache_preempts_and_changes_nothing(base: Base) -> None:
    wanted = [request(str(number), prompt, num_tokens=60) for number, prompt in enumerate(PROMPTS)]
    core = base.llama_cpp(kv_cache_tokens=192)
    assert_same(run(core, wanted), run(base.torch(), wanted))
    assert core.stats().preemptions_total > 0


def test_a_prefix_is_read_once_for_the_next_turn_and_for_neighbours(base: Base) -> None:
    core = base.llama_cpp()
    first = run(core, [request("first", PROMPTS[0])])["first"]
    conversation = [*PROMPTS[0], *(token for token, _ in first[:-1]), *PROMPTS[1]]
    turns = [request("next", conversation), request("other", [*PROMPTS[0], 7, 8]), request("again", PROMPTS[0])]
    replies = run(core, turns)
    assert core.stats().cached_tokens_total >= len(PROMPTS[0]) * 3 - 1
    assert_same(replies, run(base.llama_cpp(), turns))
    assert core.stats().kv_tokens_used == 0


def test_adapters_that_come_later_answer_beside_the_base_as_they_do_on_torch(
    base: Base, adapters: tuple[AdapterRef, AdapterRef]
) -> None:
    cores = base.llama_cpp(), base.torch()
    prompts = dict(zip((None, *adapters), PROMPTS, strict=False))
    alone = run(cores[0], [request("None", PROMPTS[0])])
    for core in cores:
        for adapter in adapters:
            core.add_adapter(adapter, core.model.read_adapter(Path(adapter.folder)))
    wanted = [request(adapter.name if adapter else "None", prompt, adapter) for adapter, prompt in prompts.items()]
    together = run(cores[0], wanted)
    assert_same(together, run(cores[1], wanted))
    assert_same({"None": together["None"]}, alone, ROUNDING)
    assert len({tuple(token for token, _ in reply) for reply in together.values()}) == 3


def test_a_removed_adapter_leaves_no_trace(base: Base, adapters: tuple[AdapterRef, AdapterRef]) -> None:
    core = base.llama_cpp()
    wide, narrow = adapters
    expected = run(core, [request("r", PROMPTS[0])])
    for adapter in (wide, narrow, wide):
        core.add_adapter(adapter, core.model.read_adapter(Path(adapter.folder)))
        changed = run(core, [request("r", PROMPTS[0], adapter)])
        assert [token for token, _ in changed["r"]] != [token for token, _ in expected["r"]]
        core.remove_adapter(adapter)
    assert_same(run(core, [request("r", PROMPTS[0])]), expected, ROUNDING)
    core.remove_adapter(wide)  # unknown by now


def test_what_cannot_be_an_adapter_here_is_refused_with_the_reason(base: Base, tmp_path: Path) -> None:
    core = base.llama_cpp()
    with pytest.raises(ModelLoadError, match=r"set engine to torch.*DoRA"):
        core.model.read_adapter(save_adapter(base.folder, tmp_path / "dora", use_dora=True))
    other = save_base(tmp_path / "other", hidden_size=32)
    with pytest.raises(ModelLoadError, match="another model"):
        core.model.read_adapter(save_adapter(other, tmp_path / "stranger"))
    damaged = core.model.read_adapter(save_adapter(base.folder, tmp_path / "damaged", r=2))
    damaged.path.write_bytes(damaged.path.read_bytes()[:-100])
    with pytest.raises(ModelLoadError, match="cannot load tiny:damaged@1"):
        core.add_adapter(AdapterRef("tiny:damaged@1", "/nowhere"), damaged)


def crowd(
    prompts: list[list[int]], lengths: list[int], adapters: tuple[AdapterRef | None, ...]
) -> list[GenerationRequest]:
    """Requests of so many tokens each, and of the adapters in turn."""
    return [
        request(str(number), prompt, adapters[number % len(adapters)], num_tokens)
        for number, (prompt, num_tokens) in enumerate(zip(prompts, lengths, strict=True))
    ]


WINDOWED: dict[str, Any] = {"sliding_window": 16, "num_hidden_layers": 6}  # five layers of them, and one without


@pytest.mark.parametrize(("architecture", "changes"), [("llama", {}), ("gemma3_text", WINDOWED)])
def test_every_change_of_layout_keeps_what_was_read(architecture: str, changes: dict[str, Any], tmp_path: Path) -> None:
    both = Base(tmp_path, architecture, **changes)
    core = both.llama_cpp(max_num_seqs=16, kv_cache_tokens=1024)
    waves = [
        crowd(PROMPTS[:1], [30], (None,)),
        crowd(PROMPTS, [3, 40, 9, 30, 1, 20], (None,)),  # rows fall free in the midst of others
        crowd(some_sequences(9, 20), [25] * 9, (None,)),  # more rows than there is memory for
        crowd(PROMPTS, [75] * 6, (None,)),  # and rows again
    ]
    layouts = []
    for wave in waves:
        assert_same(run(core, wave), run(both.torch(), wave))
        layouts.append(core.model.storage.layout)  # type: ignore[attr-defined]
    assert [(layout.num_rows, layout.is_shared) for layout in layouts] == [
        (1, False),
        (8, False),
        (16, True),
        (8, False),
    ]


def test_rows_are_read_from_left_to_right_whoever_came_first(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp makes a pass over all weights of each run of ascending rows."""
    core = base.llama_cpp(max_num_seqs=4)
    decode = core.model._library.decode  # type: ignore[attr-defined]
    read: list[list[int]] = []

    def seen(context: int, batch: llama_cpp_library.Batch) -> int:
        read.append([batch.seq_id[token][0] for token in range(batch.n_tokens)])
        return int(decode(context, batch))

    wave = crowd(PROMPTS[:5], [3, 20, 20, 20, 12], (None,))  # the fifth comes into the row that the first has left
    with monkeypatch.context() as patch:
        patch.setattr(core.model._library, "decode", seen)  # type: ignore[attr-defined]
        replies = run(core, wave)
    assert read.count([0, 1, 2, 3]) > 10
    assert all(rows == sorted(rows) for rows in read)
    assert_same(replies, run(base.torch(), wave))


def test_adapters_in_turn_share_a_pool_and_one_alone_has_rows(
    base: Base, adapters: tuple[AdapterRef, AdapterRef]
) -> None:
    core, expected = base.llama_cpp(), base.torch()
    for adapter in adapters:
        for each in (core, expected):
            each.add_adapter(adapter, each.model.read_adapter(Path(adapter.folder)))
    mixed = crowd(PROMPTS, [20, 8, 20, 30, 5, 110], (*adapters, None))
    assert_same(run(core, mixed), run(expected, mixed))
    assert not core.model.storage.layout.is_shared  # type: ignore[attr-defined] # the last reply was long alone
    again = crowd(PROMPTS, [9] * 6, (*adapters, None))
    assert_same(run(core, again), run(expected, again))
    assert core.model.storage.layout.is_shared  # type: ignore[attr-defined]


def test_prefixes_of_many_chats_wait_outside_and_come_back(base: Base) -> None:
    core = base.llama_cpp(kv_cache_tokens=20_000)
    chats = [[number % 250 + 1, number // 250 + 1, *range(1, 18)] for number in range(300)]
    for number, chat in enumerate(chats):
        run(core, [request(str(number), chat, num_tokens=1)])
    assert core.stats().kv_tokens_cached > 0
    before = core.stats().cached_tokens_total
    later = [request(str(number), [*chat, 9, 9], num_tokens=5) for number, chat in enumerate(chats[-4:])]
    replies = run(core, later)
    assert core.stats().cached_tokens_total - before >= 4 * 16
    assert_same(replies, run(base.torch(), later))


def test_windows_in_a_pool_leave_nothing_to_share(tmp_path: Path) -> None:
    both = Base(tmp_path, "gemma3_text", **WINDOWED)
    core = both.llama_cpp(max_num_seqs=16, kv_cache_tokens=1024)
    prompts = some_sequences(9, 40)
    wave = crowd(prompts, [20] * 9, (None,))
    replies = run(core, wave)
    assert core.model.storage.layout.is_shared  # type: ignore[attr-defined]
    before = core.stats().cached_tokens_total
    later = [request(f"later {number}", [*prompt[:30], 5, 6]) for number, prompt in enumerate(prompts[-3:])]
    assert_same(run(core, later), run(both.torch(), later))
    assert core.stats().cached_tokens_total == before
    last = [token for token, _ in replies["8"]]
    turn = [request("turn", [*prompts[8], *last[:-1], 7])]  # a whole one goes on
    assert_same(run(core, turn), run(both.torch(), turn))


def test_an_adapter_is_applied_in_every_context(base: Base, adapters: tuple[AdapterRef, AdapterRef]) -> None:
    core, expected = base.llama_cpp(), base.torch()
    for each in (core, expected):
        each.add_adapter(adapters[0], each.model.read_adapter(Path(adapters[0].folder)))
    for num_requests in (1, 2, 5):  # one row, two, eight
        wanted = crowd(PROMPTS[:num_requests], [9] * num_requests, (adapters[0],))
        assert_same(run(core, wanted), run(expected, wanted))


def test_a_long_chat_lends_its_beginning_to_nobody(tmp_path: Path) -> None:
    both = Base(tmp_path, "llama", max_position_embeddings=1024)
    chosen = _options(kv_cache_tokens=4096)
    core = EngineCore(both.llama_cpp().model, both.codec, 1024, chosen)
    long = some_sequences(1, 700)[0]
    run(core, [request("long", long, num_tokens=1)])
    run(core, [request("short", [*long[:20], 5, 6], num_tokens=1)])
    assert core.stats().cached_tokens_total == 0
    run(core, [request("half", [*long[:400], 5, 6], num_tokens=1)])
    assert core.stats().cached_tokens_total == 400


def test_a_crowd_with_one_beginning_shares_one_copy(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    core = base.llama_cpp()
    beginning = [7, *range(30, 50)]
    run(core, [request("first", beginning)])
    num_states = 0
    read = core.model._library.state_seq_get_data  # type: ignore[attr-defined]

    def counted(*arguments: object) -> int:
        nonlocal num_states
        num_states += 1
        return int(read(*arguments))

    crowd_of_six = [request(str(number), [*beginning, number, 9, 8]) for number in range(6)]
    with monkeypatch.context() as patch:
        patch.setattr(core.model._library, "state_seq_get_data", counted)  # type: ignore[attr-defined]
        replies = run(core, crowd_of_six)
    assert num_states <= 2  # a copy of the beginning, and its own way out of the row
    assert_same(replies, run(base.llama_cpp(), crowd_of_six))


def test_a_context_that_cannot_be_made_fails_one_step_and_loses_nothing(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = base.llama_cpp()
    first = run(core, [request("first", PROMPTS[0])])["first"]
    with monkeypatch.context() as patch:
        patch.setattr(core.model._library, "init_from_model", lambda *_: None)  # type: ignore[attr-defined]
        for each in crowd(PROMPTS[1:3], [5, 5], (None,)):
            core.add(each)
        assert all(isinstance(output, RequestFailure) for output in core.step())
    assert core.is_idle
    later = request("later", [*PROMPTS[0], *(token for token, _ in first[:-1]), 8])
    replies = run(core, [later])
    assert core.stats().cached_tokens_total >= len(PROMPTS[0])
    assert_same(replies, run(base.torch(), [later]))


async def test_streams_seeds_aborts_and_closing(base: Base) -> None:
    engine = LlamaCppEngine(base.gguf, base.codec, CONTEXT, _options())
    drawn = request("r", PROMPTS[0], temperature=1.0, seed=3)

    async def read(wanted: GenerationRequest) -> list[int]:
        return [token for delta in [each async for each in engine.generate(wanted)] for token in delta.token_ids]

    assert await read(drawn) == await read(drawn)
    endless = engine.generate(request("endless", PROMPTS[1], num_tokens=200))
    await anext(endless)
    engine.abort("endless")
    rest = [delta async for delta in endless]
    assert rest[-1].finish_reason == "abort"
    running = asyncio.create_task(read(request("last", PROMPTS[2], num_tokens=200)))
    while not engine.stats().running:
        await asyncio.sleep(0)
    await engine.close()
    assert len(await running) < 200


def test_a_file_that_is_no_model_is_one_clear_error(base: Base, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(base.gguf.read_bytes()[:5000])
    with pytest.raises(ModelLoadError, match="truncated or damaged"):
        LlamaCppEngine(path, base.codec, CONTEXT, _options())


@pytest.mark.parametrize(("table", "field"), [("_MODEL_DEFAULTS", "load_mode"), ("_CONTEXT_DEFAULTS", "n_seq_max")])
def test_a_version_with_other_options_is_refused(table: str, field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {**getattr(llama_cpp_library, table), field: 77}
    monkeypatch.setattr(llama_cpp_library, table, expected)
    with pytest.raises(ModelLoadError, match=f"other options .*{field} is"):
        llama_cpp_library.llama_cpp_library.__wrapped__()


def test_a_model_that_does_not_fit_into_memory_is_refused_before_it_is_read(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = base.gguf.stat().st_size
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=size + 1000))
    with pytest.raises(ModelLoadError) as caught:
        base.llama_cpp()
    assert caught.value.code == "insufficient_memory"


def test_a_step_that_llama_cpp_refuses_fails_its_requests_and_the_engine_goes_on(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = base.llama_cpp()
    expected = run(core, [request("r", PROMPTS[0])])
    with monkeypatch.context() as patch:
        patch.setattr(core.model._library, "decode", lambda *_: 1)  # type: ignore[attr-defined]
        core.add(request("r", PROMPTS[1]))
        (failure,) = core.step()
        assert isinstance(failure, RequestFailure)
    assert core.stats().kv_tokens_used == 0
    assert_same(run(core, [request("r", PROMPTS[0])]), expected)


def test_a_library_of_something_else_is_refused() -> None:
    with pytest.raises(ModelLoadError, match="cannot be called directly"):
        llama_cpp_library.LlamaCppLibrary(Path(ctypes.util.find_library("c") or "libc"))
