"""`inferbase settlement dead-letters …`: what could not be settled or run, and putting records back.

A dead letter's content is never shown. The request id of a record is: where its seal opens with the keys of this
command, else nobody vouches for what it says.
"""

import re
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer

from compose.commands.nouns import noun
from compose.commands.output import AsJson, print_list, print_one
from compose.commands.target import DATA_DIR, DataDir, Target, with_target
from compose.errors import CommandFailed
from compose.terminal import complain
from shared.errors import SealInvalid

if TYPE_CHECKING:
    from shared.queue.settlements import DeadLetter, SettlementQueue
    from shared.settings import SecretSettings
    from shared.wire import Seal

LETTERS_MOST: Final = 10_000  # that are listed or named at once
PAGE_LETTERS: Final = 16  # read at once: a job may have megabytes
SCANNED_KEYS: Final = 1000  # looked at per answer of Redis
ID_PATTERN: Final = re.compile(r"[0-9]{1,19}-[0-9]{1,19}")  # Redis' halves have 64 bits
REPLAYABLE: Final = "finish"

OfModel = Annotated[
    str | None, typer.Option("--model", metavar="ID", help="Of this model only. Default: of all.", show_default=False)
]

app = noun("dead-letters", "Dead letters: what could not be settled or run.")


@app.command("list")
def list_(
    model: OfModel = None,
    *,
    limit: Annotated[int, typer.Option(min=1, max=LETTERS_MOST, help="List so many, the oldest of each model.")] = 100,
    as_json: AsJson = None,
    data_dir: DataDir = DATA_DIR,
) -> None:
    """List the dead letters, never their content.

    Kind: finish (a settlement record, can be replayed) or job (a forged request, cannot). The request of a record is
    shown where the record's seal opens with INFERBASE_WIRE_KEY or INFERBASE_WIRE_KEY_PREVIOUS, as given here.
    """

    async def work(target: Target) -> tuple[list[dict[str, Any]], int]:
        now_seconds, _ = await target.redis.time()
        seal, total = _seal(target.settings.secrets), 0
        rows: list[dict[str, Any]] = []
        for each in await _models(target, model):
            total += await _count(target, each)
            async for page in _pages(_queue(target), each, most=limit - len(rows)):
                rows += [_shown(letter, seal, now_seconds * 1000) for letter in page]
        return rows, total

    rows, total = with_target(data_dir, work)
    print_list(rows, as_json)
    if total > len(rows):
        complain(f"{total - len(rows)} more: --limit {min(total, LETTERS_MOST)} lists them")


@app.command()
def replay(
    letters: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID", help="Ids as `list` shows them.", show_default=False),
    ] = None,
    *,
    model: OfModel = None,
    every: Annotated[bool, typer.Option("--all", help="Every settlement record among them.")] = False,
    as_json: AsJson = None,
    data_dir: DataDir = DATA_DIR,
) -> None:
    """Put settlement records back into the settlement queue, once what stopped them is mended.

    Each is charged at most once, however often it is replayed; one that still cannot be settled becomes a dead letter
    again. Of a request that was closed meanwhile nothing changes.
    """
    if bool(letters) == every:
        raise typer.BadParameter("name the ids of dead letters, or give --all")
    if wrong := [letter for letter in letters or () if not ID_PATTERN.fullmatch(letter)]:
        raise typer.BadParameter(f"{wrong[0]!r} is no id of a dead letter, such as 1764100000000-0")
    if len(letters or ()) > LETTERS_MOST:
        raise typer.BadParameter(f"at most {LETTERS_MOST} ids at once")

    async def work(target: Target) -> dict[str, Any]:
        models = await _models(target, model)
        if letters:
            replayed, left = await _replay_named(target, models, list(dict.fromkeys(letters))), 0
        else:
            replayed, left = await _replay_all(target, models)
        return {"object": "dead_letter_replay", "replayed": replayed, "left": left}

    done = with_target(data_dir, work)
    print_one(done, as_json)
    if done["left"]:
        complain(
            f"{done['left']} cannot be replayed and stay: jobs, or records of a model that nobody settles any more"
        )


async def _replay_named(target: Target, models: Sequence[str], ids: Sequence[str]) -> int:
    """Replay all of `ids`, or none where one of them cannot be. Raises CommandFailed."""
    found: dict[str, str] = {}  # id -> its model
    for letter_id in ids:
        for model in models:
            for letter in await _queue(target).dead_letters(model, first=letter_id.encode(), last=letter_id.encode()):
                if letter_id in found:
                    raise CommandFailed(f"{letter_id} is of {found[letter_id]} and of {model}: name one by --model")
                if letter.kind != REPLAYABLE:
                    raise CommandFailed(
                        f"{letter_id} is a {_printable(letter.kind)}: only settlement records can be replayed"
                    )
                found[letter_id] = model
        if letter_id not in found:
            raise CommandFailed(f"there is no dead letter {letter_id}: was it replayed already?")
    by_model = {model: [each for each in ids if found[each] == model] for model in dict.fromkeys(found.values())}
    if lost := by_model.keys() - await _settled_models(target):
        raise CommandFailed(
            f"nobody settles {lost.pop()} any more: it is not in the catalogue, no request of it is open"
        )
    return sum([await _queue(target).replay(model, _encoded(named)) for model, named in by_model.items()])


async def _replay_all(target: Target, models: Sequence[str]) -> tuple[int, int]:
    """Return how many went back, and how many could not."""
    settled = await _settled_models(target)
    replayed = left = 0
    for model in models:
        async for page in _pages(_queue(target), model, most=LETTERS_MOST * 2):  # trimming is approximate
            records = [letter.entry_id for letter in page if letter.kind == REPLAYABLE and model in settled]
            replayed += await _queue(target).replay(model, records)
            left += len(page) - len(records)
    return replayed, left


async def _settled_models(target: Target) -> set[str]:
    """Return the models whose settlement queue is read."""
    from shared.database.models import list_model_ids

    return set(await list_model_ids(target.connection))


async def _models(target: Target, model: str | None) -> list[str]:
    """Return the models to look at: also those that have left the catalogue."""
    from shared import keys

    if model is not None:
        if not await _count(target, model) and model not in await _settled_models(target):
            raise CommandFailed(f"there is no model {model}: `inferbase model list` shows the ids")
        return [model]
    names = target.redis.scan_iter(match=keys.DEAD_LETTERS_OF_ALL, count=SCANNED_KEYS)
    return sorted({keys.model_of_dead_letters(name) async for name in names})


async def _count(target: Target, model: str) -> int:
    from shared import keys

    return int(await target.redis.xlen(keys.dead_letters(model)))


async def _pages(queue: "SettlementQueue", model: str, *, most: int) -> AsyncIterator[list["DeadLetter"]]:
    """Yield up to `most` letters, oldest first, of those that are there when this starts.

    What a replay brings back is not among them, else a record that stays poison would be replayed for ever.
    """
    after, until, left = b"-", await queue.newest_dead_letter(model), most
    while left > 0 and until is not None:
        page = await queue.dead_letters(model, most=min(left, PAGE_LETTERS), first=after, last=until)
        if not page:
            return
        yield page
        after, left = b"(" + page[-1].entry_id, left - len(page)


def _queue(target: Target) -> "SettlementQueue":
    from shared.queue.settlements import SettlementQueue

    return SettlementQueue(target.redis, target.settings.settlement)


def _seal(secrets: "SecretSettings") -> "Seal | None":
    from shared.wire import Seal

    return Seal(secrets.wire_key.encode(), secrets.wire_key_previous.encode() or None) if secrets.wire_key else None


def _shown(letter: "DeadLetter", seal: "Seal | None", now_ms: int) -> dict[str, Any]:
    return {
        "id": letter.entry_id.decode(),
        "object": "dead_letter",
        "model": letter.model,
        "kind": _printable(letter.kind),
        "reason": _printable(letter.reason),
        "request_id": _printable(letter.of) if letter.kind == "job" else _request_id(letter, seal),
        "age_seconds": max(0, now_ms - letter.dead_ms) // 1000,
        "size_bytes": len(letter.payload),
    }


def _request_id(letter: "DeadLetter", seal: "Seal | None") -> str | None:
    from shared.wire import decode_finish

    try:
        return None if seal is None else _printable(decode_finish(seal.open(letter.payload)).request_id)
    except (SealInvalid, msgspec.MsgspecError):
        return None


def _printable(text: str) -> str:
    """Return `text` on one line: what a faulty process wrote must not steer a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _encoded(ids: Sequence[str]) -> list[bytes]:
    return [each.encode() for each in ids]
