"""`r2d feedback ...`: reviewers, what they answered, and datasets made of it."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reason2decide.cli.data import Force, Name, Out, Seed, Split, shares_of
from reason2decide.console import say
from reason2decide.errors import UserError, require

if TYPE_CHECKING:
    from reason2decide.review.store import Store

feedback_app = typer.Typer(help="Reviewers, their answers, and datasets made of them.", no_args_is_help=True)

StoreFile = Annotated[Path, typer.Argument(metavar="STORE", help="File that `r2d serve --review` keeps.")]


@feedback_app.command("add-reviewer")
def add_reviewer_command(
    store: StoreFile,
    name: Annotated[str, typer.Argument(help="Name to sign in with.")],
    role: Annotated[str, typer.Option(help="reviewer, adjudicator or administrator.")] = "reviewer",
    no_password: Annotated[
        bool, typer.Option("--no-password", help="For a proxy that signs people in (--reviewer-header).")
    ] = False,
) -> None:
    """Add a reviewer; the password is asked for, or read from standard input."""
    from reason2decide.review.accounts import Accounts
    from reason2decide.review.store import Store

    require("argon2", "review", "r2d feedback add-reviewer")
    password = None if no_password else _password()
    with Store(store) as opened:
        added = Accounts(opened, 0).add(name, role, password)
    say(f"{added.name} may review as {added.role}; exports name them {added.pseudonym}")


@feedback_app.command("set-password")
def set_password_command(store: StoreFile, name: Annotated[str, typer.Argument(help="Name of the reviewer.")]) -> None:
    """Give a reviewer another password, and end their sessions."""
    from reason2decide.review.accounts import Accounts

    require("argon2", "review", "r2d feedback set-password")
    with _opened(store) as opened:
        Accounts(opened, 0).set_password(name, _password())
    say(f"{name} has another password")


@feedback_app.command("remove-reviewer")
def remove_reviewer_command(
    store: StoreFile, name: Annotated[str, typer.Argument(help="Name of the reviewer.")]
) -> None:
    """Revoke a reviewer's access; their answers are kept."""
    from reason2decide.review.accounts import Accounts

    with _opened(store) as opened:
        Accounts(opened, 0).remove(name)
    say(f"{name} may review no more")


@feedback_app.command("export")
def export_command(
    store: StoreFile, out: Out, split: Split = None, seed: Seed = 0, name: Name = None, force: Force = False
) -> None:
    """Write the settled cases as a dataset, with the reviewers' reasons and their provenance."""
    from reason2decide.data.records import SPLITS
    from reason2decide.review.export import export_feedback

    with _opened(store) as opened:
        exported = export_feedback(opened, out, shares=shares_of(split), seed=seed, name=name, force=force)
    found = ", ".join(f"{count} {source}" for source, count in sorted(exported.rationales.items())) or "none"
    say(f"{out}: {sum(len(exported.dataset.split(part)) for part in SPLITS)} settled cases; rationales: {found}")
    if exported.unsettled:
        say(f"{exported.unsettled} cases are not settled, and left out")


@feedback_app.command("summary")
def summary_command(store: StoreFile) -> None:
    """Print agreement, overrides, and how often models are right by the answers so far."""
    from reason2decide.review.summary import summary_lines

    with _opened(store) as opened:
        for line in summary_lines(opened):
            typer.echo(line)


@feedback_app.command("backup")
def backup_command(store: StoreFile, target: Annotated[Path, typer.Argument(help="New file.")]) -> None:
    """Copy a store while a server uses it."""
    with _opened(store) as opened:
        opened.backup(target)
    say(f"{target}: a copy of {store}")


@feedback_app.command("to-label-studio")
def to_label_studio_command(
    store: StoreFile,
    out: Annotated[Path, typer.Option("--out", help="Folder for tasks.json and config.xml.")],
    force: Force = False,
) -> None:
    """Write the cases as tasks for Label Studio, with what the model said and people answered."""
    from reason2decide.review.label_studio import write_tasks

    with _opened(store) as opened:
        count = write_tasks(opened, out, force=force)
    say(f"{out}: {count} tasks; make a project with config.xml, and import tasks.json")


def _opened(path: Path) -> Store:
    from reason2decide.review.store import Store

    if not path.is_file():
        raise UserError(f"there is no file {path}; give the one that `r2d serve --review` keeps")
    return Store(path)


def _password() -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    first, second = getpass.getpass("Password: "), getpass.getpass("Again: ")
    if first != second:
        raise UserError("the two passwords differ; try again")
    return first
