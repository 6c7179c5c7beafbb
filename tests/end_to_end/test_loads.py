"""Loading while the model is in use: races, broken folders, and a better copy in the place of the old one."""

import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mini_claude.data.database import Database
from mini_claude.data.models import ModelRepository
from mini_claude.types import ModelSource, ModelSpec

from .clients import ask, new_connection
from .conftest import Server, serving, until

pytestmark = pytest.mark.alone

WEIGHTS = "model.safetensors"


def truncate(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])


def lose_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["model.norm.weight"]
    save_file(tensors, folder / WEIGHTS)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers over bytes."""
    folder = tmp_path_factory.mktemp("tiny")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate([*alphabet, "</s>"])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(alphabet) + 1,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=len(alphabet),
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def register(data_dir: Path, name: str, folder: Path) -> None:
    data_dir.mkdir(exist_ok=True)
    database = Database(f"sqlite:///{data_dir / 'mini-claude.db'}")
    database.migrate()
    ModelRepository(database).add(ModelSpec(name, "causal_lm", (ModelSource("folder", str(folder)),)))
    database.close()


def load(server: Server, model: str, **options: str) -> httpx.Response:
    with new_connection(server.url) as http:
        return http.post("/api/v1/models/load", json={"model": model, **options})


def loads(server: Server, model: str, how_many: int) -> list[httpx.Response]:
    """As many calls at once."""
    with ThreadPoolExecutor(how_many) as pool:
        return list(pool.map(lambda _: load(server, model), range(how_many)))


def num_processes_started(server: Server, model: str) -> int:
    logs = "".join(path.read_text() for path in (server.data_dir / "logs").glob("supervisor-*.log"))
    entries = [json.loads(line) for line in logs.splitlines()]
    return sum(entry["event"] == "engine.started" and entry["model"] == model for entry in entries)


def check_refusal(answer: httpx.Response, code: str, words: str) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (422, code)
    assert words in error["message"]


@contextmanager
def traffic(server: Server) -> Iterator[list[int]]:
    """Three clients that ask without a pause; the status of each answer."""
    statuses: list[int] = []
    over = threading.Event()

    def client() -> None:
        while not over.is_set():
            statuses.append(ask(server.url, "hello", max_tokens=16).status_code)

    with ThreadPoolExecutor(3) as pool:
        clients = [pool.submit(client) for _ in range(3)]
        try:
            yield statuses
        finally:
            over.set()
        for each in clients:
            each.result()


def test_loads_race_and_fail_under_traffic_and_no_request_notices(data_dir: Path, tiny_folder: Path) -> None:
    own, other = data_dir.parent / "own", data_dir.parent / "other"
    for name, folder in (("tiny", own), ("incomplete", other)):
        register(data_dir, name, shutil.copytree(tiny_folder, folder))
    lose_a_tensor(other)
    settings = {"default_model": "tiny", "preload": "false", "device": "cpu", "num_threads": "1"}
    with serving(data_dir, **settings) as server:
        answers = loads(server, "tiny", 50)
        assert {answer.status_code for answer in answers} == {200}
        assert {answer.json()["pid"] for answer in answers} == set(server.pids("engine:tiny"))
        assert num_processes_started(server, "tiny") == 1
        (pid,) = server.pids("engine:tiny")
        truncate(own)
        with ThreadPoolExecutor(2) as pool:
            damaged = pool.submit(load, server, "tiny", dtype="bfloat16")
            incomplete = pool.submit(loads, server, "incomplete", 8)
            until(lambda: num_processes_started(server, "tiny") == 2, 20, "the second load has not begun")
            with traffic(server) as statuses:
                until(lambda: statuses, 20, "requests wait for a load that they do not need")
                assert not damaged.done()
                until(lambda: damaged.done() and incomplete.done(), 60, "a load has no end")
        assert set(statuses) == {200}
        check_refusal(damaged.result(), "model_file_damaged", f"{own / WEIGHTS} is truncated or damaged")
        for answer in incomplete.result():
            check_refusal(answer, "model_load_failed", "lack 1 tensors (the first is model.norm.weight)")
        assert num_processes_started(server, "incomplete") == 1
        assert server.pids("engine:tiny") == [pid]
        with traffic(server) as statuses:
            shutil.copy(tiny_folder / WEIGHTS, own / WEIGHTS)
            assert load(server, "tiny", dtype="bfloat16").json()["dtype"] == "bfloat16"
            until(lambda: pid not in server.pids("engine:tiny"), 20, "the old copy is still there")
            seen = len(statuses)
            until(lambda: len(statuses) > seen + 3, 20, "no traffic on the new copy")
        assert set(statuses) == {200}
        states = {each["name"]: each["state"] for each in server.http.get("/api/v1/models").json()["models"]}
        assert (states["tiny"], states["incomplete"]) == ("ready", "failed")
