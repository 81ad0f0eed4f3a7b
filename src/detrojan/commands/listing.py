"""`detrojan list`: what there is."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from detrojan.commands.flags import Json

EXAMPLE = "Example: detrojan list defenses"


class Listing(StrEnum):
    """What `list` can list."""

    attacks = "attacks"
    behaviors = "behaviors"
    defenses = "defenses"
    datasets = "datasets"


def list_(
    what: Annotated[Listing | None, typer.Argument(help="leave out to list all")] = None, json: Json = None
) -> None:
    """List attacks, behaviors, defenses and data sets with papers and options."""
    from detrojan.terminal import emit, quiet, show

    with quiet():
        from detrojan.listing import as_json, as_tables

        listing = as_json(what.value if what else None)
    if json:
        emit(listing, json)
    if json != "-":
        show(*as_tables(listing))
