"""`r2d data ...`: import, check and simulate datasets."""

from __future__ import annotations

import typer

data_app = typer.Typer(help="Import, check and simulate datasets.", no_args_is_help=True)
