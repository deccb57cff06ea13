"""`inferbase up`."""

from pathlib import Path
from typing import Annotated

import typer

from compose.commands.target import DATA_DIR


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="up")(up)


def up(
    *,
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of the first API node; node i takes PORT+i.")
    ] = 8000,
    data_dir: Annotated[
        Path,
        typer.Option(
            "--data-dir", metavar="FOLDER", help="Where data, secrets and logs are kept; made if it is not there."
        ),
    ] = DATA_DIR,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="What to serve: a GGUF file (as local/its-name), ID=FILE, or an id of `inferbase model list`. "
            "Default: the small demo model that comes with Inferbase.",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="`llamacpp` runs real models; `simulator` answers by script, for tests and rehearsals.")
    ] = "llamacpp",
    workers: Annotated[int, typer.Option(min=1, max=64, help="How many inference workers.")] = 1,
    api_nodes: Annotated[int, typer.Option("--api-nodes", min=1, max=64, help="How many API nodes.")] = 1,
    ready_file: Annotated[
        Path | None,
        typer.Option(
            "--ready-file",
            metavar="FILE",
            help="Once all is ready, write here as JSON where everything is (URLs, API key, process ids), besides "
            "FOLDER/ready.json; removed at the stop.",
            show_default=False,
        ),
    ] = None,
    self_check: Annotated[
        bool, typer.Option("--self-check/--no-self-check", help="Send one completion when everything is ready.")
    ] = True,
) -> None:
    """Run everything on this machine, until Ctrl-C.

    Starts Postgres and Valkey (or uses those of DATABASE_URL and REDIS_URL), applies migrations, starts API nodes,
    workers, settlement and janitor, and prints base URL, API key and a request to try. Run it again and it finds its
    data, its account and its key as they were.
    """
    from compose.local import UpOptions
    from compose.local import up as run_up

    options = UpOptions(
        port=port,
        data_dir=data_dir,
        model=model,
        engine=engine,
        workers=workers,
        api_nodes=api_nodes,
        ready_file=ready_file,
        self_check=self_check,
    )
    raise typer.Exit(run_up(options))
