"""The published table: what the README says is what results.json holds, and nothing is typed."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import script, unet_of

from cfgdistill import GuidedDenoiser, get_recipe
from cfgdistill.course import pretrained
from cfgdistill.data.named import load_data
from cfgdistill.judge.metrics import Classifier, Judge, evaluate

MADE = script("make_results")


def row(model, steps, nfe, w, distance, **more):
    about = dict(dataset="digits", feature_net="net", reference="digits train", n_samples=9, seed=0)
    measured = dict(model=model, steps=steps, nfe=nfe, w=w, frechet_distance=distance)
    measured["delivered_w"] = 0.5
    return {**about, **measured, "sampler": "ddim", "ms_per_image": 2.0, **more}


ROWS = [
    row("teacher", 16, 32, 0.0, 0.254),
    row("teacher", 16, 32, 1.0, 2.0, ms_per_image=4.0),
    row("student", 4, 4, 1.0, 3.14159, sampler="stochastic"),
]


TRAINING = {
    "digits/teacher": {"updates": 9, "minutes": 2.0, "cores": 2},
    "digits/stage-one": {"updates": 9, "minutes": 1.0, "cores": 2},
    "digits/stage-two/steps-2": {"updates": 9, "minutes": 0.5, "cores": 2},
    "digits/stage-two/steps-1": {"updates": 9, "minutes": 1.2, "cores": 1},
    "digits/stage-two-stochastic/steps-1": {"updates": 9, "minutes": 4.0, "cores": 1},
}
RESULTS = {"meta": {"training": TRAINING}, "rows": ROWS}
FORMS = {"frechet_distance": ".2f", "delivered_w": ".2f"}


def test_the_table_has_a_line_per_model_and_for_each_value_a_column_per_w():
    assert MADE.table(ROWS, FORMS).splitlines() == [
        "| model | steps | NFE | Frechet, w = 0 | w = 1 | delivered w, w = 0 | w = 1 | ms per image |",  # noqa: E501
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| guided teacher | 16 | 32 | 0.25 | 2.00 | 0.50 | 0.50 | 2.00 |",
        "| student, stochastic | 4 | 4 | - | 3.14 | - | 0.50 | 2.00 |",
    ]


def test_the_cost_of_distillation_is_that_of_both_stages_for_one_sampler():
    assert MADE.cost(TRAINING, "digits") == (
        "Training, in minutes of one CPU core: teacher 4.0, stage-one 2.0, stage-two 2.2, "
        "stage-two-stochastic 4.0. Stages one and two took 1.1 times the teacher's."
    )


def test_students_of_a_base_cost_no_teacher():
    spent = {name: TRAINING[name] for name in TRAINING if name != "digits/teacher"}
    said = MADE.cost(spent, "digits")
    assert said.endswith("stage-two-stochastic 4.0. The teacher is a base as it is.")


def test_what_stage_one_gives_for_each_w_stands_below_its_table_as_it_was_measured():
    given = {"n": 2048, "times": [0.1, 1.0], "seed": 0, "delivered_w": {"0": 0.014, "3": 2.9}}
    made = MADE.everything(
        RESULTS | {"meta": {"training": TRAINING, "delivered": {"digits": given}}}
    )
    said = "Asked for w = 0, 3, the network of stage one gives 0.01, 2.90 (`delivered_w`: 2,048 "
    assert said + "training examples, t in [0.1, 1], seed 0)" in made
    assert "Asked for" not in MADE.everything(RESULTS)


def test_the_page_of_all_numbers_has_a_table_for_every_value_that_was_measured():
    measured = [row | {"recall": 0.25} for row in ROWS]
    page = MADE.everything(RESULTS | {"rows": measured})
    assert page.count("| model | steps |") == 2 and "precision" not in page
    assert MADE.table(ROWS, FORMS) in page and "| 0.2500 | 0.2500 |" in page
    assert MADE.cost(TRAINING, "digits") in page and MADE.caption(ROWS) in page


def test_rows_of_different_numbers_of_samples_or_judges_are_in_tables_of_their_own():
    other = [row("teacher", 256, 512, 0.0, 1.0, n_samples=3000)]
    third = [row("teacher", 256, 512, 0.0, 2.0, feature_net="another")]
    page = MADE.everything(RESULTS | {"rows": [*other, *ROWS, *third]})
    tables = [MADE.table(rows, FORMS) for rows in (other, ROWS, third)]
    assert all(one in page for one in tables) and page.count("| model |") == 3
    assert page.count("## digits\n") == 1 and "### digits, 3,000 samples judged by net" in page


SHOWN = [
    row("teacher", 256, 512, 0.0, 1.0, dataset="cifar10"),
    row("teacher", 8, 16, 0.0, 2.0, dataset="cifar10"),
    row("student", 4, 4, 0.0, 3.0, dataset="cifar10"),
    row("student", 4, 4, 0.3, 4.0, dataset="cifar10"),
    row("student", 4, 4, 0.0, 5.0, dataset="cifar10", sampler="stochastic"),
]
OTHERS = [{**r, "feature_net": "another", "frechet_distance": 9.0} for r in SHOWN]


def test_the_readme_has_one_table_between_its_marks_made_anew():
    results = RESULTS | {"rows": [*ROWS, *SHOWN, *OTHERS]}
    readme = "a\n<!-- results -->\nold\n<!-- end -->\nb"
    made = MADE.with_table(readme, results)
    known = MADE.table([SHOWN[0], SHOWN[2]], FORMS)
    assert made == f"a\n<!-- results -->\n{known}\n\n{MADE.caption(SHOWN)}\n<!-- end -->\nb"
    assert MADE.with_table(made, results) == made


def test_what_training_took_is_read_for_every_shipped_model():
    spent = MADE.training_of(["digits", "cifar10", "emoji", "sd"])
    kept = json.loads(MADE.RESULTS.read_text())["meta"]["training"]
    assert spent == kept and set(MADE.names()) <= spent.keys()


@pytest.mark.skipif(not MADE.RESULTS.exists(), reason="no results.json yet")
def test_the_readme_and_the_page_of_all_numbers_show_those_of_results_json():
    readme, results = MADE.README.read_text(), json.loads(MADE.RESULTS.read_text())
    assert "<!-- results -->" in readme and MADE.with_table(readme, results) == readme
    page = MADE.RESULTS.with_suffix(".md").with_stem("RESULTS").read_text()
    assert page == MADE.everything(results)


def test_a_notebook_finds_the_rows_of_the_shipped_models_and_none_for_others(tmp_path):
    kept = json.loads(MADE.RESULTS.read_text())["rows"]
    recipe = pretrained.use_pretrained(get_recipe("digits", "laptop"), tmp_path)
    rows = [row for row in kept if row["dataset"] == "digits"]
    assert pretrained.results(recipe, tmp_path) == rows != []
    assert pretrained.results(replace(recipe, seed=1), tmp_path) == []
    weights = tmp_path / recipe.name / "stage-one" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[::-1])  # a run of one's own
    assert pretrained.results(recipe, tmp_path) == []


def test_several_judges_of_the_same_samples_say_what_each_says_alone():
    data = load_data("digits")
    x, labels = data.batch(torch.arange(60))
    nets = [Classifier(1, 8, 10), Classifier(1, 8, 10)]
    alone = [Judge(net, data)(x, labels) for net in nets]
    assert alone[0] != alone[1]
    both = MADE.Judges([Judge(net, data) for net in nets])
    both.reset()
    both.update(x, labels)
    row = {"w": 1.0, **both.compute()}
    about = dict(feature_net="digits classifier, 64 features")
    about |= dict(reference="digits train, 1438 images", w=1.0)
    assert both.apart(row) == [{**about, **own} for own in alone]


def test_several_judges_make_one_row_as_one_judge_does():
    data = load_data("digits")
    denoiser = unet_of(get_recipe("digits", "smoke"), channels=1, size=8, num_classes=10)
    teacher = GuidedDenoiser(denoiser, data.null)
    both = MADE.Judges([Judge(Classifier(1, 8, 10), data) for _ in range(2)])
    with pytest.warns(UserWarning, match="8 samples are too few"):
        row = evaluate(teacher, both, data, model="teacher", steps=1, w=1.0, n=8)
    assert {"0:frechet_distance", "1:frechet_distance", "nfe"} <= row.keys()


def test_shortcuts_of_the_independent_judge_skip_places_and_pad_channels():
    block = MADE._Block(2, 4, stride=2).eval()
    torch.nn.init.zeros_(block.conv2.weight)  # so that the shortcut is all
    x = torch.rand(1, 2, 4, 4)
    y = block(x)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2]) and not y[:, [0, 3]].any()


@pytest.mark.skipif("CFGDISTILL_RESNET" not in os.environ, reason="CFGDISTILL_RESNET is not set")
def test_the_independent_judge_is_as_good_as_its_authors_say():
    net = MADE.ResNet.open(Path(os.environ["CFGDISTILL_RESNET"]))
    x, labels = load_data("cifar10", "test").batch(torch.arange(1000))
    with torch.no_grad():
        right = (net.head(net(x)).argmax(1) == labels).double().mean().item()
    assert right > 0.9  # 0.9173 to 0.9339 on all 10,000
