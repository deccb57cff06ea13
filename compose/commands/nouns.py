"""The frame of a group of subcommands such as `inferbase key …`."""

import typer


def noun(name: str, help_text: str) -> typer.Typer:
    """Return an empty group; called without a verb it shows its help."""
    return typer.Typer(name=name, help=help_text, no_args_is_help=True, rich_markup_mode=None)
