"""What the channel leans on in redis-py and hiredis beyond their documented surface, so that an upgrade tells."""

import inspect

import hiredis
import redis
from redis.asyncio.connection import AbstractConnection, Connection, ConnectionPool


def test_redis_py_is_the_version_these_pins_were_read_from() -> None:
    assert redis.__version__.split(".")[0] == "5"


def test_a_connection_has_its_stream_under_the_names_we_take() -> None:
    connection = Connection(host="localhost", port=1)

    assert connection._reader is None and connection._writer is None
    assert not connection.is_connected


def test_a_pool_makes_connections_that_it_does_not_keep() -> None:
    pool = ConnectionPool(host="localhost", port=1, max_connections=1)

    made = [pool.make_connection() for _ in range(3)]

    assert len({id(one) for one in made}) == 3
    assert all(isinstance(one, AbstractConnection) for one in made)


def test_a_broken_read_or_write_disconnects_so_that_answers_never_shift() -> None:
    for method in (AbstractConnection.send_packed_command, AbstractConnection.read_response):
        source = inspect.getsource(method)
        assert "except BaseException" in source and "disconnect(nowait=True)" in source


def test_hiredis_says_false_where_a_reply_is_not_whole() -> None:
    parser = hiredis.Reader()
    parser.feed(b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$2\r\nh")
    assert parser.gets() is False

    parser.feed(b"i\r\n")

    assert parser.gets() == [b"message", b"c", b"hi"]
    assert parser.gets() is False
