"""The README's table of request fields is what decoders and engines do, and leaves nothing out."""

from shared.openai.decode import CHAT_CHECKS
from shared.openai.decode_prompts import COMPLETION_CHECKS, EMBEDDING_CHECKS
from tests.house import fields_table
from workers.engines import open_engine
from workers.engines.base import EngineOptions

DECODED_TOGETHER = {"messages", "tools", "tool_choice", "prompt", "input"}


def test_the_fields_table_is_what_decoders_and_engines_do() -> None:
    """Write it anew with `python -m tests.house.fields_table`."""
    assert fields_table.written() == fields_table.table()


def test_every_field_that_a_decoder_knows_has_its_row() -> None:
    for checks, rows in (
        (CHAT_CHECKS, fields_table.CHAT),
        (COMPLETION_CHECKS, fields_table.COMPLETION),
        (EMBEDDING_CHECKS, fields_table.EMBEDDING),
    ):
        assert set(checks) - set(rows) == set()
        unknown = set(rows) - set(checks) - DECODED_TOGETHER
        assert not unknown or rows is fields_table.CHAT, unknown


async def test_llamacpp_can_do_what_the_table_says() -> None:
    options = EngineOptions(model="test/model", context=512, slots=1, options={"embeddings": "true"})

    async with open_engine("llamacpp", options) as engine:
        assert engine.capabilities == fields_table.LLAMACPP
