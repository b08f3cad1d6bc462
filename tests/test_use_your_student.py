"""The page "Use your student": its lines as they stand, on the tiny pipeline."""

import re
import shlex
from pathlib import Path
from urllib.request import urlopen

import pytest

from cfgdistill import add_w_conditioning, cli, get_recipe
from cfgdistill.teachers.stable_diffusion import Pipeline, base_and_start, tiny_pipeline
from cfgdistill.training.checkpoints import save_weights

PAGE = Path(__file__).parents[1] / "notebooks" / "use_your_student.md"
TEXT = PAGE.read_text(encoding="utf-8")
WHOLE, LORA, SERVER = re.findall(r"```python\n(.*?)```", TEXT, re.S)
LINES = re.findall(r"```sh\n(.*?)```", TEXT, re.S)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the student that the page names, and what its commands write."""
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        base = tiny_pipeline(folder / "base")
        _, start = base_and_start(get_recipe("sd", "smoke", base=base, entries=1000))
        student = add_w_conditioning(start, (2.0, 14.0)).for_steps(8)
        student.meaning = Pipeline(base, "full")
        save_weights(student, Path("out/sd-colab/stage-two/steps-8"), {})
        for line in LINES:
            _, _, module, *words = shlex.split(line)
            assert module == "cfgdistill" and cli.main(words) == 0
        yield folder


def run(code, place, names=None):
    """The names of a block of the page after it has been run."""
    names = {} if names is None else names
    for name in ("student", "student-lora"):
        code = code.replace(f'"{name}"', f'"{place / name}"')
    code = code.replace("stable-diffusion-v1-5/stable-diffusion-v1-5", str(place / "base"))
    code = code.replace("float16", "float32").replace('"cuda"', '"cpu"')
    exec(code.replace("8000", "0"), names)
    return names


def test_the_student_is_called_as_a_pipeline_and_as_a_lora_file(place):
    whole, lora = run(WHOLE, place), run(LORA, place)
    assert whole["image"].size == lora["image"].size == (16, 16)


def test_the_single_file_lies_where_the_page_says(place):
    assert (place / "student-file" / "student.safetensors").exists()
    said = re.search(r"`simple` takes entries ([\d, ]+), \.\.\.", TEXT).group(1)
    # t = i/8 for i = 8, 7, ..., in entries of 1000, the first of which is k = 0.
    assert [int(k) for k in said.split(", ")] == [1000 * i // 8 - 1 for i in (8, 7, 6)]


def test_the_server_answers_with_a_picture(place):
    names = run(SERVER, place, run(LORA, place))
    port = names["server"].server_address[1]
    try:
        with urlopen(f"http://127.0.0.1:{port}/?prompt=a+red+fox") as answer:
            assert answer.read().startswith(b"\x89PNG")
    finally:
        names["server"].shutdown()
