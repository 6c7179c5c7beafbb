"""Frames over a Unix socket: whole and in order however they arrive, and the end of either side heard once.

On both event loops (conftest.py).
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from mini_claude.runtime.connection import FRAMES_PER_TURN, LENGTH_BYTES, MAX_FRAME_BYTES, Connection, Listener, connect
from mini_claude.runtime.sockets import new_engine_address


class Heard:
    """What one side was told."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.connections: list[Connection] = []
        self.ends = 0
        self.changed = asyncio.Event()

    def frame(self, connection: Connection, frame: bytes) -> None:
        self.frames.append(frame)
        self.connections.append(connection)
        self.changed.set()

    def end(self, _connection: Connection) -> None:
        self.ends += 1
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


@pytest.fixture
def address(tmp_path: Path) -> str:
    return new_engine_address(tmp_path)


@pytest.fixture
async def heard(address: str) -> AsyncIterator[Heard]:
    """What a listener at the address hears."""
    heard = Heard()
    listener = Listener(address, heard.frame, heard.end)
    await listener.open()
    yield heard
    await listener.aclose()


def framed(*frames: bytes) -> bytes:
    return b"".join(len(frame).to_bytes(LENGTH_BYTES, "big") + frame for frame in frames)


async def test_frames_arrive_whole_and_in_order_in_both_directions(address: str, heard: Heard) -> None:
    answers = Heard()
    connection = await connect(address, answers.frame, answers.end)
    frames = [b"", b"a", b"\x00" * 70_000, os.urandom(3_000_000), b"last"]
    connection.send(*frames)
    await heard.until(lambda: len(heard.frames) == len(frames))
    assert heard.frames == frames
    heard.connections[0].send(b"one")
    heard.connections[0].send(b"two", b"three")
    await answers.until(lambda: len(answers.frames) == 3)
    assert answers.frames == [b"one", b"two", b"three"]
    await connection.aclose()
    await heard.until(lambda: heard.ends == 1)
    assert answers.ends == 1


async def test_a_frame_may_come_byte_by_byte(address: str, heard: Heard) -> None:
    reader, writer = await asyncio.open_unix_connection(address)
    for byte in framed(b"slow", b"frame"):
        writer.write(bytes([byte]))
        await writer.drain()
    await heard.until(lambda: len(heard.frames) == 2)
    assert heard.frames == [b"slow", b"frame"]
    writer.close()
    assert await reader.read() == b""


async def test_a_burst_leaves_turns_of_the_loop_to_others_and_is_whole_though_its_sender_is_gone(address: str) -> None:
    heard, most, since = Heard(), 0, 0

    def count(connection: Connection, frame: bytes) -> None:
        nonlocal most, since
        heard.frame(connection, frame)
        since += 1
        most = max(most, since)

    async def others() -> None:
        nonlocal since
        while True:
            since = 0
            await asyncio.sleep(0)

    listener = Listener(address, count, heard.end)
    await listener.open()
    turns = asyncio.create_task(others())
    sender = socket.socket(socket.AF_UNIX)
    await asyncio.to_thread(sender.connect, address)
    frames = [b"%d" % number for number in range(5_000)]
    await asyncio.to_thread(sender.sendall, framed(*frames))
    sender.close()
    await heard.until(lambda: heard.ends == 1)
    assert heard.frames == frames
    assert most <= 2 * FRAMES_PER_TURN  # a turn's own, and those of a read between two turns of `others`
    turns.cancel()
    await listener.aclose()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_what_a_process_sent_before_it_was_killed_is_heard_before_its_end(
    address: str, heard: Heard, number: signal.Signals
) -> None:
    script = f"""
import socket, sys
line = socket.socket(socket.AF_UNIX)
line.connect({address!r})
line.sendall(bytes.fromhex({framed(b"last words").hex()!r}))
print(flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdin is not None
    await asyncio.to_thread(process.stdout.readline)
    process.send_signal(number)
    await heard.until(lambda: heard.ends == 1)
    assert heard.frames == [b"last words"]
    await asyncio.to_thread(process.wait)
    process.stdin.close()
    process.stdout.close()


async def test_who_announces_an_impossible_frame_is_cut_off_and_others_are_not(address: str, heard: Heard) -> None:
    friend = await connect(address, heard.frame, lambda _connection: None)
    reader, writer = await asyncio.open_unix_connection(address)
    writer.write((MAX_FRAME_BYTES + 1).to_bytes(LENGTH_BYTES, "big"))
    assert await reader.read() == b""
    writer.close()
    await heard.until(lambda: heard.ends == 1)
    friend.send(b"still here")
    await heard.until(lambda: bool(heard.frames))
    assert heard.frames == [b"still here"]
    await friend.aclose()


async def test_a_fault_in_what_takes_frames_ends_the_connection(address: str) -> None:
    def fail(_connection: Connection, _frame: bytes) -> None:
        raise RuntimeError("a bug")

    ends, answers = Heard(), Heard()
    listener = Listener(address, fail, ends.end)
    await listener.open()
    connection = await connect(address, answers.frame, answers.end)
    connection.send(b"one", b"two")
    await answers.until(lambda: answers.ends == 1)
    assert ends.ends == 1
    await listener.aclose()


async def test_sending_to_an_end_that_is_gone_is_dropped_also_while_its_last_burst_is_delivered(address: str) -> None:
    heard, answers = Heard(), Heard()

    def answer(connection: Connection, frame: bytes) -> None:
        heard.frame(connection, frame)
        connection.send(b"x" * 100_000)  # an error sooner or later, and the line is cut

    listener = Listener(address, answer, answers.end)
    await listener.open()
    sender = socket.socket(socket.AF_UNIX)
    await asyncio.to_thread(sender.connect, address)
    await asyncio.to_thread(sender.sendall, framed(*[b"burst"] * 200))
    sender.close()
    await answers.until(lambda: answers.ends == 1)
    assert set(heard.frames) == {b"burst"}
    await listener.aclose()


async def test_what_was_sent_last_is_read_though_the_reader_writes_meanwhile(address: str) -> None:
    heard, answers = Heard(), Heard()
    listener = Listener(address, heard.frame, heard.end)
    await listener.open()

    def write(connection: Connection, frame: bytes) -> None:
        connection.send(b"one more question")
        answers.frame(connection, frame)

    connection = await connect(address, write, answers.end)
    connection.send(b"hello")
    await heard.until(lambda: bool(heard.frames))
    last = [b"%d" % number for number in range(500)]
    heard.connections[0].send(*last)
    await listener.aclose()
    await answers.until(lambda: answers.ends == 1)
    assert answers.frames == last


async def test_who_connects_while_the_listener_closes_is_cut_off(address: str) -> None:
    heard, answers = Heard(), Heard()
    listener = Listener(address, heard.frame, heard.end)
    await listener.open()
    connecting = [asyncio.create_task(connect(address, answers.frame, answers.end)) for _ in range(20)]
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await listener.aclose()
        outcomes = await asyncio.gather(*connecting, return_exceptions=True)
    assert all(isinstance(outcome, Connection | OSError) for outcome in outcomes)
    await answers.until(lambda: answers.ends == sum(isinstance(outcome, Connection) for outcome in outcomes))


async def test_a_closed_connection_says_nothing_more(address: str, heard: Heard) -> None:
    answers = Heard()
    connection = await connect(address, answers.frame, answers.end)
    connection.send(b"before")
    connection.close()
    connection.close()
    connection.send(b"after")
    await heard.until(lambda: heard.ends == 1)
    assert heard.frames == [b"before"]
    assert (answers.ends, connection.closed) == (1, True)


async def test_where_nobody_listens_there_is_no_connection(address: str) -> None:
    heard = Heard()
    with pytest.raises(FileNotFoundError):
        await connect(address, heard.frame, heard.end)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(address)  # as a process that was killed leaves it
    with pytest.raises(ConnectionRefusedError):
        await connect(address, heard.frame, heard.end)
    listener = Listener(address, heard.frame, heard.end)
    await listener.open()
    await (await connect(address, heard.frame, heard.end)).aclose()
    await listener.aclose()
    with pytest.raises(FileNotFoundError):
        await connect(address, heard.frame, heard.end)


async def test_closing_waits_for_nobody_who_does_not_read(address: str) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(address)
        deaf.listen()
        heard = Heard()
        connection = await connect(address, heard.frame, heard.end)
        connection.send(b"x" * 50_000_000)  # more than any socket holds
        async with asyncio.timeout(5):
            await connection.aclose()
        assert heard.ends == 1
