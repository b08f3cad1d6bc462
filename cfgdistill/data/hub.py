"""Names on the hub: what they mean, and who may have them fetched."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def name_and_revision(base: str) -> tuple[str, str | None]:
    """A folder or a name on the hub, and what may stand behind an @: a branch, tag or commit."""
    if Path(base).is_dir():
        return base, None
    name, _, revision = base.partition("@")
    return name, revision or None


@contextmanager
def nothing_fetched() -> Iterator[None]:
    """Names that a card gives are looked for in folders and in the hub's cache, and not further.

    A card may come from anywhere: whoever uses it decides what is fetched, not its author.
    """
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def to_fetch(base: str, command: str = "hf download {}") -> str:
    """What to do about something of the hub that is not here."""
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE:
        return "connect to the network"
    name, revision = name_and_revision(base)
    if Path(name).is_absolute() or name.count("/") > 1 or Path(name).exists():
        return "see to that folder"
    command = command.format(name) + (f" --revision {revision}" if revision else "")
    return f"nothing is fetched because a card names it, so fetch it first (`{command}`)"
