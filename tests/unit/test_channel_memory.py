"""What a writer remembers of running requests."""

from shared.channel.memory import WriterMemory


def test_everything_behind_a_tip_is_given_back_in_order() -> None:
    memory = WriterMemory(1000)
    for seq in (1, 2, 3):
        memory.add("r", 1, seq, b"%d" % seq)

    assert list(memory.behind("r", 1, 1)) == [(2, b"2"), (3, b"3")]
    assert list(memory.behind("r", 1, 3)) == []


def test_a_successor_remembers_only_its_own_chunks() -> None:
    memory = WriterMemory(1000)
    memory.add("r", 2, 8, b"8")

    assert list(memory.behind("r", 2, 7)) == [(8, b"8")]
    assert list(memory.behind("r", 2, 5)) == [], "6 and 7 were an earlier attempt's"


def test_another_attempt_starts_anew() -> None:
    memory = WriterMemory(1000)
    memory.add("r", 1, 1, b"old")
    memory.add("r", 3, 2, b"new")

    assert list(memory.behind("r", 1, 0)) == []
    assert list(memory.behind("r", 3, 1)) == [(2, b"new")]
    assert memory.size == 3


def test_a_chunk_said_twice_is_kept_once() -> None:
    memory = WriterMemory(1000)
    memory.add("r", 1, 1, b"1")
    memory.add("r", 1, 2, b"2")
    memory.add("r", 1, 1, b"1")

    assert list(memory.behind("r", 1, 0)) == [(1, b"1"), (2, b"2")]


def test_memory_never_exceeds_its_bytes() -> None:
    memory = WriterMemory(100)
    for seq in range(1, 50):
        for name in ("a", "b", "c"):
            memory.add(name, 1, seq, b"x" * 10)
            assert memory.size <= 100


def test_what_was_forgotten_for_room_leaves_a_gap_and_no_lie() -> None:
    memory = WriterMemory(10)
    memory.add("a", 1, 1, b"x" * 8)
    memory.add("b", 1, 1, b"x" * 8)
    memory.add("a", 1, 2, b"x")

    assert list(memory.behind("a", 1, 0)) == []
    assert list(memory.behind("a", 1, 1)) == [(2, b"x")]


def test_forgetting_frees_the_bytes() -> None:
    memory = WriterMemory(1000)
    memory.add("r", 1, 1, b"12345")

    memory.forget("r")
    memory.forget("r")

    assert memory.size == 0
