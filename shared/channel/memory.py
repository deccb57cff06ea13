"""What a writer remembers of each running request, so that a Redis that lost its last second gets it back.

Encoded chunks, from the first that this writer was given until FINISH. Bounded by bytes over all requests: beyond that
the longest-running request is forgotten, and a gap of its log is then answered honestly.
"""

from collections import OrderedDict
from collections.abc import Sequence


class _Remembered:
    """`chunks[i]` is the chunk of seq `first + i`."""

    __slots__ = ("attempt", "chunks", "first", "size")

    def __init__(self, attempt: int, first: int) -> None:
        self.attempt = attempt
        self.first = first
        self.chunks: list[bytes] = []
        self.size = 0


class WriterMemory:
    """The chunks of running requests by request id."""

    # Invariant: `_size` is the sum of `size` over `_requests`, and at most `_bytes_most` after each `add`.

    def __init__(self, bytes_most: int) -> None:
        self._bytes_most = bytes_most
        self._requests: OrderedDict[str, _Remembered] = OrderedDict()
        self._size = 0

    @property
    def size(self) -> int:
        """Bytes remembered."""
        return self._size

    def add(self, request_id: str, attempt: int, seq: int, chunk: bytes) -> None:
        """Remember a chunk; one that does not follow the last one starts the request anew."""
        request = self._requests.get(request_id)
        if request is None or request.attempt != attempt or seq != request.first + len(request.chunks):
            if request is not None and request.attempt == attempt and seq < request.first + len(request.chunks):
                return  # said again: it is known
            self.forget(request_id)
            request = self._requests[request_id] = _Remembered(attempt, seq)
        request.chunks.append(chunk)
        request.size += len(chunk)
        self._size += len(chunk)
        if self._size > self._bytes_most:
            self._make_room()

    def behind(self, request_id: str, attempt: int, tip: int) -> Sequence[tuple[int, bytes]]:
        """Return (seq, chunk) of everything behind `tip`; nothing where that would leave a gap."""
        request = self._requests.get(request_id)
        if request is None or request.attempt != attempt or tip + 1 < request.first:
            return ()
        start = tip + 1 - request.first
        return [(tip + 1 + index, chunk) for index, chunk in enumerate(request.chunks[start:])]

    def forget(self, request_id: str, attempt: int | None = None) -> None:
        """Drop a request that ended here; with `attempt` only that one's chunks."""
        request = self._requests.get(request_id)
        if request is not None and attempt in (None, request.attempt):
            del self._requests[request_id]
            self._size -= request.size

    def _make_room(self) -> None:
        while self._size > self._bytes_most and self._requests:
            _, request = self._requests.popitem(last=False)
            self._size -= request.size
