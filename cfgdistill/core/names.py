"""Choosing by name, and saying what there is."""

import difflib
from collections.abc import Iterable

MOST = 40  # names in a sentence


def one_of(kind: str, name: object, names: Iterable[str]) -> str:
    """`name` itself if it is one of `names`, else one sentence with the near ones."""
    names = list(names)
    if name in names:
        return name
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    hint = f": did you mean {' or '.join(map(repr, near))}?" if near else "."
    said = repr(name) if len(repr(name)) <= 80 else f"{repr(name)[:60]}..."
    kinds = f"{kind}es" if kind.endswith("s") else f"{kind}s"
    listed = ", ".join(names[:MOST]) + (", ..." if len(names) > MOST else "")
    raise ValueError(f"There is no {kind} {said}{hint} The {kinds} are {listed}.")
