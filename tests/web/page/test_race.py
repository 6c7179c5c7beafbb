"""Two answers that are written at once, over the echo engine."""

import pytest

from mini_claude.errors import MiniClaudeError, NotFound
from mini_claude.services.identity import LOCAL
from mini_claude.types import Message, SamplingParams
from mini_claude.web.page.race import Contestant, start_race

from ..conftest import OpenSite, Site, eventually
from ..echo_runtime import UNLOADABLE, EchoRuntime

MESSAGES = (Message("user", "one two three four"),)
PARAMS = SamplingParams(max_tokens=64)
BASE = Contestant("smollm2-135m", PARAMS)


async def test_both_answers_come_to_their_end(site: Site) -> None:
    race = await start_race(
        site.services.chat, LOCAL, (BASE, Contestant("default", SamplingParams(max_tokens=2))), MESSAGES
    )
    async for _ in race:
        pass
    whole, short = race.answers
    assert (whole.is_whole, short.is_whole, short.finish_reason) == (True, True, "length")
    assert whole.text.startswith(short.text)
    assert len(short.text) < len(whole.text)


async def test_answers_are_seen_while_they_are_written_and_can_be_stopped(open_site: OpenSite) -> None:
    runtime = EchoRuntime()
    runtime.pause_after = 2
    site = await open_site(runtime)
    race = await start_race(site.services.chat, LOCAL, (BASE, BASE), MESSAGES)
    num_frames = 0
    async for _ in race:
        num_frames += 1
        if all(answer.num_tokens for answer in race.answers):
            race.abort()
    assert num_frames > 0
    assert [answer.finish_reason for answer in race.answers] == ["abort", "abort"]
    assert not any(answer.is_whole for answer in race.answers)


async def test_who_goes_away_in_the_middle_leaves_no_answer_running(open_site: OpenSite) -> None:
    runtime = EchoRuntime()
    runtime.pause_after = 1
    site = await open_site(runtime)
    race = await start_race(site.services.chat, LOCAL, (BASE, BASE), MESSAGES)
    frames = aiter(race)
    await anext(frames)
    await frames.aclose()  # type: ignore[attr-defined]
    await eventually(lambda: runtime.stats().running == 0)
    assert len(runtime.closed) == 2


async def test_an_engine_that_dies_ends_its_answer_with_the_reason(open_site: OpenSite) -> None:
    runtime = EchoRuntime()
    runtime.die_after = 1
    site = await open_site(runtime)
    race = await start_race(site.services.chat, LOCAL, (BASE, BASE), MESSAGES)
    async for _ in race:
        pass
    assert all("engine process ended" in (answer.error or "") for answer in race.answers)


@pytest.mark.parametrize("name", ["nothing", UNLOADABLE])
async def test_where_one_cannot_answer_the_other_is_not_left_running(site: Site, name: str) -> None:
    with pytest.raises(MiniClaudeError) as caught:
        await start_race(site.services.chat, LOCAL, (BASE, Contestant(name, PARAMS)), MESSAGES)
    assert isinstance(caught.value, NotFound) == (name == "nothing")
    await eventually(lambda: site.runtime.stats().running == 0)
    assert len(site.runtime.closed) == len(site.runtime.requests)
