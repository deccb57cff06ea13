"""The four long-running processes, each in the foreground until SIGTERM or Ctrl-C, and the migrations."""

import gc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer

from compose.commands import dead_letters
from compose.commands.output import AsJson, print_one
from compose.commands.target import DATA_DIR, DataDir, settings_of
from shared.settings import Settings

GARBAGE_THRESHOLDS: Final = (50_000, 50, 1000)  # allocations, then collections of the younger generation
ENGINE_HELP: Final = "Engine of this worker: llamacpp, simulator or tensorrt. Default: INFERBASE_ENGINE, else llamacpp."


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    for command in (api, worker, janitor, migrate):
        app.command()(command)
    group = typer.Typer(name="settlement", rich_markup_mode=None)
    group.callback(invoke_without_command=True)(settlement)
    group.add_typer(dead_letters.app)
    app.add_typer(group)


def api(
    port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help="Port to listen on. Default: INFERBASE_PORT, else 8000.", show_default=False
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(help="Address to listen on. Default: INFERBASE_HOST, else 127.0.0.1.", show_default=False),
    ] = None,
    data_dir: DataDir = DATA_DIR,
) -> None:
    """Run one API node, which takes requests over HTTP.

    In the foreground, until Ctrl-C. It reaches Redis and Postgres.
    """
    from api.serve import serve

    def chosen(settings: Settings) -> Settings:
        api = msgspec.structs.replace(settings.api, port=port or settings.api.port, host=host or settings.api.host)
        return msgspec.structs.replace(settings, api=api)

    _run("api", data_dir, serve, chosen)


def worker(
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID",
            help="Id of a model to serve; repeat it for several. Default: INFERBASE_MODELS, else all of the engine.",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[str | None, typer.Option(help=ENGINE_HELP, show_default=False)] = None,
    data_dir: DataDir = DATA_DIR,
) -> None:
    """Run one inference worker, which answers requests.

    In the foreground, until Ctrl-C. It pulls jobs from Redis, listens on no port and never reaches Postgres.
    """
    from workers.inference.worker import serve

    def chosen(settings: Settings) -> Settings:
        named = ",".join(model) if model else settings.worker.models
        worker = msgspec.structs.replace(settings.worker, models=named, engine=engine or settings.worker.engine)
        return msgspec.structs.replace(settings, worker=worker)

    _run("worker", data_dir, serve, chosen)


def settlement(context: typer.Context, data_dir: DataDir = DATA_DIR) -> None:
    """Run one settlement worker, which charges for answers.

    In the foreground, until Ctrl-C. It turns finished requests into usage rows and charges, from Redis to Postgres.
    With `dead-letters` nothing is run: see what had to be set aside, and put it back.
    """
    if context.invoked_subcommand is not None:
        if data_dir != DATA_DIR:
            raise typer.BadParameter(
                f"it belongs behind the command: settlement {context.invoked_subcommand} … --data-dir"
            )
        return
    from workers.settlement.worker import serve

    _run("settlement", data_dir, serve)


def janitor(data_dir: DataDir = DATA_DIR) -> None:
    """Run the janitor, which closes what was left open.

    In the foreground, until Ctrl-C. It ends requests whose worker or API node is gone, and keeps Redis' copy of
    the model catalogue fresh.
    """
    from workers.janitor.worker import serve

    _run("janitor", data_dir, serve)


def migrate(as_json: AsJson = None, data_dir: DataDir = DATA_DIR) -> None:
    """Bring the database to the schema of this version.

    Safe to run twice, and while everything runs. `inferbase up` does it by itself.
    """
    import asyncio

    from shared.database.migrate import migrate as apply

    with settings_of(data_dir) as settings:
        applied = asyncio.run(apply(settings.stores.database_url))
    print_one({"applied": applied}, as_json)


def _run(
    role: str,
    data_dir: Path,
    serve: Callable[[Settings], Awaitable[None]],
    chosen: Callable[[Settings], Settings] = lambda settings: settings,
) -> None:
    import uvloop

    from shared.log import configure_logging

    with settings_of(data_dir, process=role) as found:
        settings = chosen(found)
        configure_logging(role=role, level=settings.log_level, as_json=settings.log_json)
        uvloop.run(_served(serve, settings))


async def _served(serve: Callable[[Settings], Awaitable[None]], settings: Settings) -> None:
    _collect_rarely()
    await serve(settings)


def _collect_rarely() -> None:
    """Leave what start-up made out of every garbage collection, and collect less often.

    Requests leave few cycles; at the default threshold collections took a sixth of an API node's CPU.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)
