"""The teacher's pages of the book, filled in from the notebooks so that they cannot go stale."""

import re
from pathlib import Path
from typing import NamedTuple

import jupytext
from course import ROOT, select
from editions import TASK, by_section

# Read in a minute: prose is read at 238 words (Brysbaert 2019), text with formulas more slowly.
WORDS, LINES = 150, 30
WORD = re.compile(r"\S*\w\S*")  # not the lines of a table, nor a dash
# What whoever is short of time may leave out; an exercise says so where its kind stands.
FURTHER = re.compile(r"^## (Further .+|.+ \*\(further\)\*)$", re.M)


class Exercise(NamedTuple):
    name: str  # nbgrader's grade_id
    notebook: str
    number: str
    title: str
    kind: str
    minutes: int

    @property
    def further(self) -> bool:
        return self.kind.startswith("further: ")

    @property
    def link(self) -> str:
        return f"[{self.title} ({self.notebook[:2]}.{self.number})]({self.notebook}.ipynb)"


class Chapter(NamedTuple):
    stem: str
    title: str
    reading: int  # minutes
    short: float  # minutes of reading and exercises without what is further
    aims: str  # a list in Markdown
    exercises: list[Exercise]

    @property
    def doing(self) -> int:
        return sum(each.minutes for each in self.exercises)

    @property
    def minutes(self) -> int:
        return self.reading + self.doing

    @property
    def pace(self) -> str:
        """What the first cell says of them."""
        doing = f", and {_fives(self.doing)} for the exercises" if self.exercises else ""
        said = f"Allow about {self.reading} minutes to read it{doing}"
        short = _fives(self.short)
        if short + 5 <= self.minutes:
            said += f"; without what is *further*, {short} in all"
        return f"{said}."


def _fives(minutes: float) -> int:
    return 5 * round(minutes / 5)


def chapter(script: Path) -> Chapter:
    """What a notebook says of itself and of its exercises."""
    cells = jupytext.read(script).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    aims = re.search(r"\*\*You will\*\*[^\n]*\n\n(.*?)\n\n", text, re.DOTALL)
    exercises, task, further, reading, short = [], None, None, 0.0, 0.0
    for cell in by_section(cells):
        if cell.source.startswith("## "):
            further = bool(FURTHER.match(cell.source))
        if further is None and cell.cell_type == "code":
            continue  # set up before the first section, as in every other notebook
        found = TASK.search(cell.source)
        task = found or task
        about = cell.metadata.get("nbgrader")
        later = bool(further or (found or about) and task[3].startswith("further: "))
        here = _minutes_to_read(cell)
        reading += here
        short += 0 if later else here
        if about and about.get("solution"):
            number, title, kind, minutes = task.groups()
            row = (about["grade_id"], script.stem, number, title, kind, int(minutes))
            exercises.append(Exercise(*row))
    short += sum(each.minutes for each in exercises if not each.further)
    title = re.search(r"^# (.+)", text, re.MULTILINE)[1]
    return Chapter(script.stem, title, _fives(reading), short, aims[1] if aims else "", exercises)


def _minutes_to_read(cell) -> float:
    """Of text and code, but not of answers, nor of what is for teachers."""
    if cell.cell_type == "code":
        code = map(str.strip, cell.source.splitlines())
        return sum(bool(line) and not line.startswith("#") for line in code) / LINES
    if {"solution", "instructor"} & set(cell.metadata.get("tags", [])):
        return 0.0
    return len(WORD.findall(cell.source)) / WORDS


def teaching(text: str) -> str:
    """The page with its @names filled in: of exercises, of notebooks, and @minutesNN.

    ValueError, with one sentence, for the name of an exercise that no notebook has.
    """
    chapters = {script.stem[:2]: chapter(script) for script in select(ROOT / "notebooks", [])}
    known = {each.name: each for one in chapters.values() for each in one.exercises}
    left = known.keys() - set(re.findall(r"@(\w+)", text))
    others = ", ".join(each.link for name, each in known.items() if name in left) or "-"

    def filled(found: re.Match) -> str:
        name = found[1]
        if name in chapters:
            return f"[{name}]({chapters[name].stem}.ipynb)"
        if name.removeprefix("minutes") in chapters:
            return f"{chapters[name.removeprefix('minutes')].minutes} minutes"
        if name == "others":
            return others
        if name not in known:
            raise ValueError(f"teaching.md names the exercise {name}, which no notebook has.")
        return known[name].link

    return re.sub(r"@(\w+)", filled, text).replace("EXERCISES", listed([*chapters.values()]))


def listed(chapters: list[Chapter]) -> str:
    """Every notebook with its minutes, its aims and its exercises."""
    parts = []
    for one in chapters:
        parts += [f"### [{one.title}]({one.stem}.ipynb)", f"{one.reading} minutes to read. Aims:"]
        parts.append(one.aims)
        if one.exercises:
            rows = ["| | exercise | kind | minutes | for nbgrader |", "| --- " * 5 + "|"]
            rows += [
                f"| {each.number} | {each.title} | {each.kind} | {each.minutes} | `{each.name}` |"
                for each in one.exercises
            ]
            parts.append("\n".join(rows))
    return "\n\n".join(parts)


def questions(text: str) -> str:
    """The page with its questions numbered and their answers, which begin with >, folded."""
    parts = re.split(r"^(.+)\n> (.+)$", text, flags=re.MULTILINE)
    for k in range(1, len(parts), 3):
        parts[k] = f"**{k // 3 + 1}.** {parts[k]}"
        parts[k + 1] = f"\n\n<details><summary>Answer</summary>\n\n{parts[k + 1]}\n\n</details>\n"
    return "".join(parts)
