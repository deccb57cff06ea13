"""`inferbase`: every way in which a person or a service manager starts or steers the product.

Heavy modules are imported by the command that needs them, so that `--help` answers at once. Exit status: 0 done, 1 it
could not be done (one line on stderr says why), 2 wrongly called; `audit` has its own, told in its help.
"""

import os
import sys

import typer

from compose.commands import accounts, api_keys, audit, credit, model_catalogue, processes, start, workers
from compose.terminal import complain
from shared.errors import InferbaseError

app = typer.Typer(
    name="inferbase",
    help="Self-hosted, OpenAI-compatible LLM inference: metered, prepaid, durable.\n\n"
    "Start with `inferbase up`: it runs everything on this machine and prints an API key. The other commands work on "
    "that `up`, running or stopped, if called in the same folder or with its --data-dir; `inferbase COMMAND --help` "
    "tells more.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

start.register(app)
processes.register(app)
audit.register(app)
app.add_typer(accounts.app)
app.add_typer(api_keys.app)
app.add_typer(credit.app)
app.add_typer(model_catalogue.app)
app.add_typer(workers.app)


def main() -> None:
    """Run the command line; the one place where an error of ours becomes a line on stderr and a status."""
    try:
        "".join(sys.argv).encode()  # bytes that are no UTF-8 stand as lone surrogates in there
        app()
    except InferbaseError as error:
        complain(f"{error.message} ({error.__cause__})" if error.__cause__ else error.message)
        sys.exit(1)
    except UnicodeError:
        complain("an argument is not valid UTF-8")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
