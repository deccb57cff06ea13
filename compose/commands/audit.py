"""`inferbase audit`: do the books agree with themselves?"""

from typing import Annotated

import typer

from compose.commands.output import AsJson, print_list, print_one, wants_json
from compose.commands.target import DATA_DIR, DataDir, Target, with_target
from compose.terminal import complain, say
from shared.errors import InferbaseError

EXIT_VIOLATIONS = 1
EXIT_COULD_NOT_RUN = 2


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(audit)


def audit(
    quiesced: Annotated[
        bool,
        typer.Option(
            "--quiesced",
            help="Say that nothing runs now: a request that is open past its deadline is then a violation too.",
        ),
    ] = False,
    as_json: AsJson = None,
    data_dir: DataDir = DATA_DIR,
) -> None:
    """Check that the books agree with themselves.

    Looks at every invariant of the ledger in one snapshot, also while requests run.

    Exit status: 0 all hold, 1 violations were found, 2 the check could not be run.
    """
    from shared.database.audit import audit as find_violations

    async def look(target: Target) -> list[dict[str, str]]:
        found = await find_violations(target.connection, quiesced=quiesced)
        return [{name: str(getattr(one, name)) for name in ("rule", "id", "detail")} for one in found]

    try:
        violations = with_target(data_dir, look)
    except (InferbaseError, OSError) as error:
        complain(f"the audit could not run: {error}")
        raise typer.Exit(EXIT_COULD_NOT_RUN) from None
    if wants_json(as_json):
        print_one({"clean": not violations, "violations": violations}, as_json)
    elif violations:
        print_list(violations, as_json)
    else:
        say("clean: every invariant holds")
    raise typer.Exit(EXIT_VIOLATIONS if violations else 0)
