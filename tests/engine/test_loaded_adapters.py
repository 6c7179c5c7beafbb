"""Which adapters stay loaded, without any engine."""

import asyncio

import pytest

from mini_claude.engine.loaded_adapters import LoadedAdapters
from mini_claude.errors import ModelLoadError, Overloaded
from mini_claude.types import AdapterRef

A, B, C, D = (AdapterRef(f"m:{name}@1", f"/{name}") for name in "abcd")


class Engine:
    """Remembers what it was told. Loading waits for `gate` and fails for what is in `broken`."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.broken: set[AdapterRef] = set()
        self.adapters = LoadedAdapters(self.load, self.drop, capacity=2)

    async def load(self, adapter: AdapterRef) -> None:
        self.events.append(f"load {adapter.folder[1:]}")
        await self.gate.wait()
        if adapter in self.broken:
            raise ModelLoadError("broken")

    def drop(self, adapter: AdapterRef) -> None:
        self.events.append(f"drop {adapter.folder[1:]}")

    async def use(self, *adapters: AdapterRef) -> None:
        for adapter in adapters:
            async with self.adapters.use(adapter):
                pass


@pytest.fixture
def engine() -> Engine:
    return Engine()


async def test_the_least_recently_used_one_gives_way(engine: Engine) -> None:
    await engine.use(A, B, A, C, A)
    assert engine.events == ["load a", "load b", "drop b", "load c"]


async def test_one_in_use_never_gives_way(engine: Engine) -> None:
    async with engine.adapters.use(A):
        await engine.use(B, C, D)
        assert engine.events == ["load a", "load b", "drop b", "load c", "drop c", "load d"]
        async with engine.adapters.use(D):
            with pytest.raises(Overloaded) as caught:
                await engine.use(B)
            assert caught.value.retry_after
    await engine.use(B)
    assert engine.events[-2:] == ["drop a", "load b"]


async def test_requests_that_come_together_load_once(engine: Engine) -> None:
    engine.gate.clear()
    users = [asyncio.create_task(engine.use(A)) for _ in range(20)]
    await asyncio.sleep(0)
    engine.gate.set()
    await asyncio.gather(*users)
    assert engine.events == ["load a"]


async def test_a_failed_load_is_everybodys_error_and_the_next_request_tries_again(engine: Engine) -> None:
    engine.broken.add(A)
    outcomes = await asyncio.gather(*(engine.use(A) for _ in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ModelLoadError] * 3
    engine.broken.clear()
    await engine.use(B, A)
    assert engine.events == ["load a", "load b", "load a"]


async def test_who_leaves_while_it_loads_does_not_take_it_from_the_others(engine: Engine) -> None:
    engine.gate.clear()
    leaving, staying = asyncio.create_task(engine.use(A)), asyncio.create_task(engine.use(A))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    engine.gate.set()
    await staying
    await engine.use(A)
    assert engine.events == ["load a"]


async def test_one_that_is_still_loading_does_not_give_way_even_if_nobody_waits(engine: Engine) -> None:
    engine.gate.clear()
    leaving = [asyncio.create_task(engine.use(adapter)) for adapter in (A, B)]
    await asyncio.sleep(0)
    for task in leaving:
        task.cancel()
    await asyncio.gather(*leaving, return_exceptions=True)
    with pytest.raises(Overloaded):
        await engine.use(C)
    assert engine.events == ["load a", "load b"]


async def test_removing_waits_for_the_last_user(engine: Engine) -> None:
    async with engine.adapters.use(A):
        async with engine.adapters.use(A):
            engine.adapters.remove(A)
        assert engine.events == ["load a"]
    assert engine.events == ["load a", "drop a"]
    await engine.use(A)
    assert engine.events == ["load a", "drop a", "load a"]
    engine.adapters.remove(A)
    engine.adapters.remove(A)
    engine.adapters.remove(B)
    assert engine.events[3:] == ["drop a"]


async def test_removing_while_it_loads_with_nobody_left_drops_it_once_it_is_there(engine: Engine) -> None:
    engine.gate.clear()
    leaving = asyncio.create_task(engine.use(A))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    engine.adapters.remove(A)
    assert engine.events == ["load a"]
    engine.gate.set()
    async with asyncio.timeout(5):
        while engine.events[-1] != "drop a":
            await asyncio.sleep(0)
