"""Loading while the model is in use: races, broken folders, and a better copy in the place of the old one."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
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

WEIGHTS = "model.safetensors"


def truncate(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])


def lose_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["model.norm.weight"]
    save_file(tensors, folder / WEIGHTS)


BROKEN: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "truncated": (truncate, "model_file_damaged", "truncated or damaged"),
    "incomplete": (lose_a_tensor, "model_load_failed", "model.norm.weight"),
}


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
    own = shutil.copytree(tiny_folder, data_dir.parent / "own")
    register(data_dir, "tiny", own)
    for name, (damage, _, _) in BROKEN.items():
        damage(shutil.copytree(tiny_folder, data_dir.parent / name))
        register(data_dir, name, data_dir.parent / name)
    settings = {"default_model": "tiny", "preload": "false", "device": "cpu", "num_threads": "1"}
    with serving(data_dir, **settings) as server:
        answers = loads(server, "tiny", 50)
        assert {answer.status_code for answer in answers} == {200}
        assert {answer.json()["pid"] for answer in answers} == set(server.pids("engine:tiny"))
        assert num_processes_started(server, "tiny") == 1
        (pid,) = server.pids("engine:tiny")
        with traffic(server) as statuses:
            truncate(own)
            with ThreadPoolExecutor(len(BROKEN) + 1) as pool:
                again = pool.submit(load, server, "tiny", dtype="bfloat16")
                failures = {name: pool.submit(loads, server, name, 4) for name in BROKEN}
            for name, (_, code, words) in BROKEN.items():
                for answer in failures[name].result():
                    error = answer.json()["error"]
                    assert (answer.status_code, error["code"]) == (422, code)
                    assert words in error["message"]
                assert num_processes_started(server, name) == 1
            assert (again.result().status_code, again.result().json()["error"]["code"]) == (422, "model_file_damaged")
            assert server.pids("engine:tiny") == [pid]
            shutil.copy(tiny_folder / WEIGHTS, own / WEIGHTS)
            assert load(server, "tiny", dtype="bfloat16").json()["dtype"] == "bfloat16"
            until(lambda: pid not in server.pids("engine:tiny"), 20, "the old copy is still there")
            seen = len(statuses)
            until(lambda: len(statuses) > seen + 3, 20, "no traffic on the new copy")
        assert set(statuses) == {200}
        states = {each["name"]: each["state"] for each in server.http.get("/api/v1/models").json()["models"]}
        assert states["tiny"] == "ready"
        assert [states[name] for name in BROKEN] == ["failed"] * len(BROKEN)
