"""The teacher's pages: every exercise is in them, and every question has an answer that holds."""

import math
import re

import jupytext
import kit
import pytest

from cfgdistill import guide, scale_from_w

BOOK = kit.ROOT / "notebooks" / "book"
CHAPTERS = [kit.chapter(script) for script in kit.select(kit.ROOT / "notebooks", [])]
QUESTIONS = kit.questions((BOOK / "questions.md").read_text(encoding="utf-8"))


def test_the_page_for_teachers_names_every_exercise_with_its_minutes_and_where_it_is():
    page = kit.teaching((BOOK / "teaching.md").read_text(encoding="utf-8"))
    assert "@" not in page and "EXERCISES" not in page
    for one in CHAPTERS:
        assert one.reading >= 15 and one.aims.startswith("- "), one.stem
        assert f"### [{one.title}]({one.stem}.ipynb)" in page
        for each in one.exercises:
            row = f"| {each.title} | {each.kind} | {each.minutes} | `{each.name}` |"
            assert row in page and each.link in page


def test_an_exercise_that_serves_no_aim_is_listed_and_one_that_is_gone_is_told():
    others = kit.teaching("@others, not @average")
    links = {each.name: each.link for one in CHAPTERS for each in one.exercises}
    assert [name for name in links if others.count(links[name]) != 1] == []
    with pytest.raises(ValueError, match="^teaching.md names the exercise avarage, which no"):
        kit.teaching("practised in @avarage")


def test_minutes_are_those_of_reading_and_of_all_exercises(tmp_path):
    script = tmp_path / "07_small.py"
    script.write_text(
        "# %% [markdown]\n# # 07 · Small\n#\n# **You will**\n#\n# - see.\n#\n# "
        + "word " * 590
        + "\n\n# %%\nset_up()\n\n# %% [markdown]\n# ## 1. One\n#\n"
        "# ### Exercise 1: a title *(derive, 4 minutes)*\n\n"
        '# %% nbgrader={"grade_id": "it", "solution": true}\n'
        + "x = 1\n# no code\n\n" * 31
        + '\n# %% [markdown] tags=["solution"]\n# '
        + "long " * 900
    )
    one = kit.chapter(script)  # about 600 words at 150, and 31 lines at 30
    assert (one.title, one.aims) == ("07 · Small", "- see.")
    assert (one.reading, one.doing, one.minutes) == (5, 4, 9)
    assert one.pace == "Allow about 5 minutes to read it, and 5 for the exercises."
    assert one.exercises == [kit.Exercise("it", "07_small", "1", "a title", "derive", 4)]
    script.write_text("# %% [markdown]\n# # 07\n#\n# " + "word | " * 1498 + "\n")
    assert kit.chapter(script).pace == "Allow about 10 minutes to read it."


def test_whoever_is_short_of_time_leaves_out_sections_and_exercises_that_are_further(tmp_path):
    def exercise(number, kind, minutes):
        graded = f'# %% nbgrader={{"grade_id": "n{number}", "solution": true}}\n' + "x = 1\n" * 60
        heading = f"# %% [markdown]\n# ### Exercise {number}: it *({kind}, {minutes} minutes)*\n\n"
        return f"{heading}{graded}\n"

    words = "# " + "word " * 298  # two minutes, with its heading
    script = tmp_path / "07_small.py"
    script.write_text(
        f"# %% [markdown]\n# # Small\n#\n{words}\n#\n# ## 1. What\n\n"
        + exercise(1, "derive", 4)  # two minutes to read, as the others
        + exercise(2, "further: derive", 8)
        + f"# %% [markdown]\n{words}\n#\n# ## 2. Why *(further)*\n#\n{words}\n\n"
        + exercise(3, "further: count", 16)
        + f"# %% [markdown]\n# ## 3. How\n#\n{words}\n#\n# ## Further questions\n#\n{words}\n"
    )
    one = kit.chapter(script)
    assert (one.reading, one.doing) == (15, 28)
    assert one.short == pytest.approx(2 + 2 + 4 + 2 + 2, abs=0.2)
    assert [each.further for each in one.exercises] == [False, True, True]
    assert one.pace.endswith("30 for the exercises; without what is *further*, 10 in all.")


def test_the_first_eight_notebooks_take_four_hours_without_what_is_further_and_six_with_it():
    first = [one for one in CHAPTERS if one.stem < "08"]
    assert sum(one.short for one in first) <= 240
    assert round(sum(one.minutes for one in first) / 60) == 6


@pytest.mark.parametrize("one", CHAPTERS, ids=lambda one: one.stem)
def test_a_notebook_says_first_how_long_it_takes(one):
    script = kit.ROOT / "notebooks" / f"{one.stem}.py"
    first = jupytext.read(script).cells[0].source
    assert one.pace in " ".join(first.split())


def test_every_question_has_a_folded_answer_that_names_a_notebook():
    asked = re.findall(
        r"^\*\*(\d+)\.\*\* (.+?)\n\n<details><summary>Answer</summary>\n\n(.+?)\n\n</details>$",
        QUESTIONS,
        re.MULTILINE | re.DOTALL,
    )
    assert len(asked) >= 40 and "\n> " not in QUESTIONS
    assert [int(number) for number, *_ in asked] == [*range(1, len(asked) + 1)]
    stems = {one.stem for one in CHAPTERS}
    for number, question, answer in asked:
        assert question.endswith((".", "?")), number
        (where,) = re.findall(r"\]\((\w+)\.ipynb\)", answer)
        assert where in stems
    assert {where[:2] for where in re.findall(r"\]\((\w+)\.ipynb\)", QUESTIONS)} == {
        f"{number:02d}" for number in range(len(CHAPTERS))
    }


def answer(words):
    """What is said to a question that contains these words."""
    return QUESTIONS.partition(words)[2].partition("</details>")[0]


def test_answers_with_a_number_in_them_are_what_the_package_computes():
    assert scale_from_w(6.5) == 7.5
    assert "6.5: the scale is" in answer("guidance_scale=7.5")
    assert guide(1.0, 0.0, 3) == 4 and "four times the class mean" in answer("one guided step")
    begins = [i / 32 for i in range(32, 0, -1)]
    assert f": {sum(2 if t > 0.3 else 1 for t in begins)}." in answer("guided only while")
    assert f"{2 / math.pi * math.atan(5.49):.2f}$" in answer("0.18215")
    assert f"= {round(guide(guide(1, 0, 2), 0, 2) - 1)}$" in answer("guides it with 2 once more")
    assert f"{(0.016 / 0.027) ** 2:.2f}" in answer("an rmse of 0.016")
    times = [int(k * 1000 / 4) for k in (3, 2, 1, 0)]
    assert "At {}, {}, {} and {}.".format(*times) in answer('timestep_spacing="leading"')
