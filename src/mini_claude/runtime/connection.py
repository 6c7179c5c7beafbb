"""One end of a ZeroMQ DEALER that knows when the other process has died.

ZeroMQ reconnects in silence, which is wrong here: every peer is one process with one address, and when it goes its
callers must hear of it at once. So the socket's monitor reports the end of the connection, which the kernel signals
even after kill -9, and the socket is closed long before it would reconnect. (Switching reconnecting off instead would
throw away what the peer wrote before it went and we have not read yet.)
"""

import asyncio
from collections.abc import Callable

import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

GONE = zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED | zmq.EVENT_CONNECT_RETRIED | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
FRAMES_PER_TURN = 16
NEVER = 3_600_000  # ms


class Connection:
    """Sends frames to `address` and gives every frame that comes to `on_frame`, in order.

    `on_closed` is called once, after the last frame, when the peer is gone or `close` was called.
    """

    def __init__(
        self,
        context: zmq.asyncio.Context,
        address: str,
        on_frame: Callable[[bytes], None],
        on_closed: Callable[[], None],
    ) -> None:
        self.address = address
        self._on_frame = on_frame
        self._on_closed = on_closed
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 200)  # ms: a last Abort or Goodbye still leaves
        self._socket.setsockopt(zmq.SNDHWM, 0)  # bounded by the queues above, never by dropping
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.RECONNECT_IVL, NEVER)
        self._monitor = self._socket.get_monitor_socket(GONE)
        self._socket.connect(address)
        self.closed = False
        self._tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._watch())]

    def send(self, frame: bytes) -> None:
        """Queue a frame; frames to a closed connection are dropped, `on_closed` has told the callers."""
        if not self.closed:
            self._socket.send(frame)

    async def _receive(self) -> None:
        while True:
            # Awaiting a frame that is there already does not yield: without the sleep a burst would fill the
            # queues of readers that are never given a turn.
            num_frames = 0
            while num_frames < FRAMES_PER_TURN:
                frames = await self._socket.recv_multipart()
                for frame in frames:
                    self._on_frame(frame)
                num_frames += len(frames)
            await asyncio.sleep(0)

    async def _watch(self) -> None:
        await recv_monitor_message(self._monitor)
        # What the peer wrote before it went is still read, by `_receive`; the turn given to it last is for a frame
        # that it has been handed already.
        while await self._socket.poll(0):  # noqa: ASYNC110 - an empty socket is no event
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.close()

    def close(self) -> None:
        """Close the sockets; safe to call twice."""
        if self.closed:
            return
        self.closed = True
        current = asyncio.current_task()
        for task in self._tasks:
            if task is not current:
                task.cancel()
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close()
        self._on_closed()
