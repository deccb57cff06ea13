"""`inferbase model …`"""

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compose.chosen_model import gguf_file
from compose.commands.nouns import noun
from compose.commands.output import AsJson, print_list, print_one
from compose.commands.target import DATA_DIR, DataDir, Target, with_target
from compose.errors import CommandFailed
from shared.model_ids import check_model_id
from shared.pricing import Prices, format_price, parse_price
from shared.settings import given_store_urls

if TYPE_CHECKING:
    from shared.catalogue import Model

CONTEXT_TOKENS_MOST = 10_000_000
OPTION_CHARACTERS_MOST = 4096
NOTICE_SECONDS_MOST = 3.0  # workers look at the catalogue each second

app = noun("model", "Models: what can be asked for, at which price.")


@app.command()
def add(
    model_id: Annotated[
        str, typer.Argument(metavar="ID", help="What requests will name, such as my/model.", show_default=False)
    ],
    *,
    engine: Annotated[
        str, typer.Option(help="What runs it: llamacpp (real models) or simulator (by script).", show_default=False)
    ],
    context: Annotated[
        int, typer.Option(min=1, max=CONTEXT_TOKENS_MOST, help="Tokens of prompt and answer together.")
    ] = 8192,
    prompt_price: Annotated[str, typer.Option(help="Credits per million prompt tokens, at most 3 decimals.")] = "0.10",
    completion_price: Annotated[str, typer.Option(help="Credits per million completion tokens, likewise.")] = "0.40",
    cached_price: Annotated[
        str | None,
        typer.Option(
            help="Credits per million prompt tokens that were cached. Default: the prompt price.", show_default=False
        ),
    ] = None,
    batch_discount: Annotated[
        int, typer.Option(min=0, max=100, help="Percent less for `service_tier: flex`, the batch lane.")
    ] = 50,
    default_max_tokens: Annotated[
        int, typer.Option(min=1, help="Longest answer, in tokens, where a request names none.")
    ] = 4096,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="For the engine; repeat it. llamacpp: path=FILE (a GGUF file; required), threads, slots, gpu_layers, "
            "cache_prompt. simulator: load_seconds, prefill_ms, step_ms, tokens, slots, fail_before_first_token, "
            "fail_after_tokens, hang_after_tokens, exit_after_tokens, stamp_tokens.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = None,
    data_dir: DataDir = DATA_DIR,
) -> None:
    """Add a model, or replace the one of that id.

    What is not named here gets its default, also where a model is replaced. Running workers of the engine pick it up
    within seconds.
    """
    from compose.catalogue_mirror import mirror_catalogue
    from shared.catalogue import Model
    from shared.database.models import add_model, list_models
    from workers.engines import check_engine, check_options

    check_engine(engine)
    options = _options(option or [])
    check_options(engine, options)  # no worker would load it, and only a log would say why
    if engine == "llamacpp":
        options |= {"path": _weights(options.get("path", ""))}
    if engine == "tensorrt" and not options.get("path"):
        raise CommandFailed("a tensorrt model needs --option path=FOLDER, its checkpoint where the workers see it")
    model = Model(
        id=_checked_id(model_id),
        engine=engine,
        context=context,
        prices=_prices(prompt_price, cached_price, completion_price),
        batch_discount_percent=batch_discount,
        default_max_tokens=default_max_tokens,
        options=options,
    )

    async def work(target: Target) -> dict[str, Any]:
        await add_model(target.connection, model)
        await mirror_catalogue(target.connection, target.redis)
        if not await _is_served(target, model):
            command = f"inferbase worker --engine {engine} --model {model.id}"
            print(f"warning: no live worker lists {model.id}: start one by  {command}", file=sys.stderr)
        return next(_shown(row) for row in await list_models(target.connection) if row.id == model.id)

    print_one(with_target(data_dir, work), as_json)


@app.command(name="list")
def list_all(as_json: AsJson = None, data_dir: DataDir = DATA_DIR) -> None:
    """List all models with their prices and options."""
    from shared.database.models import list_models

    async def work(target: Target) -> list[dict[str, Any]]:
        return [_shown(row) for row in await list_models(target.connection)]

    print_list(with_target(data_dir, work), as_json)


async def _is_served(target: Target, model: "Model") -> bool:
    """Tell whether a live worker lists a model that was just added; one of its engine is given time to notice it."""
    from shared.presence import read_all

    give_up_at = time.monotonic() + NOTICE_SECONDS_MOST
    while True:
        workers = await read_all(target.redis)
        if any(model.id in said.models and said.models[model.id].state != "draining" for said in workers):
            return True
        if time.monotonic() > give_up_at or not any(said.engine == model.engine for said in workers):
            return False
        await asyncio.sleep(0.1)


def _checked_id(model_id: str) -> str:
    try:
        return check_model_id(model_id)
    except ValueError as error:
        raise CommandFailed(f"{model_id!r}: {error}") from None


def _prices(prompt: str, cached: str | None, completion: str) -> Prices:
    try:
        prices = Prices(
            prompt=parse_price(prompt),
            cached=parse_price(prompt if cached is None else cached),
            completion=parse_price(completion),
        )
    except ValueError as error:
        raise CommandFailed(str(error)) from None
    if prices.cached > prices.prompt:
        raise CommandFailed("the cached price must not be higher than the prompt price")
    return prices


def _options(pairs: Sequence[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier() or len(value) > OPTION_CHARACTERS_MOST:
            raise CommandFailed(f"--option {pair!r} is not NAME=VALUE")
        options[name] = value
    return options


def _weights(path: str) -> str:
    """Return where workers find the file; what this machine cannot know of workers elsewhere is left to them."""
    if not path:
        raise CommandFailed("a llamacpp model needs --option path=FILE, its GGUF file")
    return path if any(given_store_urls()) else str(gguf_file(Path(path)))


def _shown(model: "Model") -> dict[str, Any]:
    return {
        "id": model.id,
        "object": "model",
        "engine": model.engine,
        "context": model.context,
        "prompt_price": format_price(model.prices.prompt),
        "cached_price": format_price(model.prices.cached),
        "completion_price": format_price(model.prices.completion),
        "batch_discount_percent": model.batch_discount_percent,
        "default_max_tokens": model.default_max_tokens,
        "options": model.options,
        "created_at": model.created_at,
    }
