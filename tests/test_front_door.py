"""load and sample: everything that sampling needs travels with a model."""

import importlib
import json
import shutil
import tomllib
from pathlib import Path

import pytest
import torch
from helpers import Wave, tiny_mlp
from torch import nn

import cfgdistill as cd
from cfgdistill.course import stages
from cfgdistill.teachers import shipped
from cfgdistill.training.randomness import random_at

STUDENT = "digits/stage-two/steps-4"


@pytest.fixture(scope="module")
def student():
    return cd.load(STUDENT, device="cpu")


@pytest.fixture
def no_data(monkeypatch):
    def refuse(*given, **more):
        raise AssertionError("data are loaded")

    for name in ("named.load_data", "captioned.load_captioned"):
        monkeypatch.setattr(f"cfgdistill.data.{name}", refuse)
    for name in ("load_data", "load_captioned"):
        monkeypatch.setattr(stages, name, refuse)


def test_a_shipped_student_draws_what_ddim_draws_from_the_noise_of_each_image(student, no_data):
    assert (student.shape, student.steps, student.w_range) == ((1, 8, 8), 4, (0.0, 4.0))
    images = cd.sample(student, [3, 3, 7], w=2.0, seed=5)
    noise = [torch.randn(1, 8, 8, generator=random_at(5, "sample", i)) for i in range(3)]
    z = cd.last(cd.ddim(student, torch.stack(noise), 4, torch.tensor([3, 3, 7]), 2.0))
    assert torch.allclose(images, z.clamp(-1, 1), atol=1e-6)
    assert not torch.allclose(images[0], images[1], atol=0.1)  # a generator for each image


def test_image_i_is_the_same_whatever_is_drawn_with_it_and_classes_have_names(student):
    alone = cd.sample(student, [3])
    together = cd.sample(student, ["3", 1, torch.tensor(9)])
    assert torch.allclose(alone[0], together[0], atol=1e-5)
    assert torch.allclose(alone, cd.sample(student, 3, w=1.0), atol=1e-6)  # w = 1 where it may be


def test_a_teacher_is_guided_with_its_null_at_two_evaluations_a_step():
    teacher = cd.load("digits/teacher", device="cpu")
    images = cd.sample(teacher, [3, 5], w=1.5, steps=3)
    assert teacher.nfe == 6
    guided = cd.GuidedDenoiser(teacher, 10)
    assert torch.equal(images, cd.sample(guided, [3, 5], w=1.5, steps=3))


def test_a_negative_prompt_is_the_difference_of_two_unguided_answers(student):
    z, t, w = torch.randn(2, 1, 8, 8, generator=random_at(0)), 0.7, 2.0
    cond, other = torch.tensor([4, 7]), torch.tensor([9, 9])
    known = 3 * student(z, t, cond, 0.0).v - 2 * student(z, t, other, 0.0).v
    assert torch.allclose(cd.GuidedDenoiser(student, 9)(z, t, cond, w).v, known, atol=1e-5)
    student.nfe = 0
    images = cd.sample(student, [4, 7], w=w, negative="9")
    assert student.nfe == 8
    assert not torch.allclose(images, cd.sample(student, [4, 7], w=w), atol=0.1)


@pytest.mark.parametrize(
    "what, said",
    [
        (dict(cond=["three"]), "There is no class 'three'"),
        (dict(cond=[10]), r"whole numbers in 0 \.\. 9, or names such as '0', not 10"),
        (dict(cond=[0.5]), "whole numbers"),
        (dict(cond=[]), "nothing to draw"),
        (dict(cond=[0], w=9.0), r"w = 9 is outside \[0, 4\]"),
        (dict(cond=[0], steps=8), "distilled for 4 steps, not 8"),
        (dict(cond=[0], sampler="euler"), "There is no sampler 'euler'"),
        (dict(cond=[0], negative=12), "whole numbers"),
    ],
)
def test_what_a_model_does_not_know_is_refused_in_one_sentence(student, what, said):
    student.nfe = 0
    with pytest.raises(ValueError, match=said):
        cd.sample(student, **what)
    assert student.nfe == 0


def test_a_negative_prompt_needs_four_steps():
    with pytest.raises(
        ValueError, match="student of 2 steps cannot be guided.*student of 4 steps or more"
    ):
        cd.sample(cd.load("digits/stage-two/steps-2", device="cpu"), [0], negative=1)


def test_a_model_without_a_meaning_or_a_shape_says_so():
    with pytest.raises(ValueError, match="does not say what its conditions and samples mean"):
        cd.sample(tiny_mlp(), [0])
    with pytest.raises(ValueError, match="A MLP does not say the shape of its z"):
        _ = tiny_mlp().shape


def test_a_name_that_is_both_and_a_device_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for device in ("cuda:99", "gpu"):
        with pytest.raises(ValueError, match=f"no device '{device}' here: leave it out for "):
            cd.load(STUDENT, device=device)
    with pytest.raises(ValueError, match="holds no finished model"):
        cd.load("digits/stage-two/steps-3")
    shipped.copy_pretrained(STUDENT, STUDENT)
    with pytest.raises(
        ValueError, match=f"is a shipped model and a folder here: write ./{STUDENT}"
    ):
        cd.load(STUDENT)
    assert cd.load(f"./{STUDENT}", device="cpu").steps == 4


@pytest.mark.parametrize("entry", [{"class_names": 3}, {"class_names": [[]]}, {"decoder": 1}])
def test_a_meaning_that_is_none_is_told(entry, tmp_path):
    card = shipped.shipped_card(STUDENT) | {"meaning": entry}
    shipped.copy_pretrained(STUDENT, tmp_path / "model")
    (tmp_path / "model" / "card.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=f"describes no network .*{next(iter(entry))} is"):
        cd.load(tmp_path / "model")


def test_a_text_student_takes_its_decoder_and_its_words_along(tmp_path):
    few = dict(autoencoder=2, classifier=2, teacher=2, stage_one=2, halving=1, start=1)
    recipe = cd.get_recipe("emoji", "smoke", **few)
    data = stages.load_recipe_data(recipe, tmp_path / "run")
    (trained,) = stages.train_stage_two(recipe, data, tmp_path / "run")
    known = cd.sample(trained, ["red heart", "cat face"])
    shutil.copytree(tmp_path / "run" / recipe.name / "stage-two" / "steps-1", tmp_path / "copy")
    shutil.rmtree(tmp_path / "run")
    alone = cd.load(tmp_path / "copy", device="cpu")
    assert torch.equal(alone.meaning.conditions(["cat face"]), data.text.tokens(["cat face"]))
    assert torch.equal(alone.meaning.null, data.null)
    assert known.shape == (2, 3, 32, 32) and known.abs().max() <= 1
    assert torch.allclose(cd.sample(alone, ["red heart", "cat face"]), known, atol=1e-4)
    with pytest.raises(ValueError, match="draws from text: pass prompts, not 3"):
        cd.sample(alone, [3])
    (tmp_path / "copy" / "decoder.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match="is missing or is not what the model was saved with"):
        cd.load(tmp_path / "copy")


@pytest.mark.skipif("emoji/stage-two/steps-4" not in shipped.names(), reason="not shipped")
def test_the_shipped_text_students_speak_in_the_tokens_of_their_training(no_data):
    model = cd.load("emoji/stage-two/steps-4", device="cpu")
    red = cd.sample(model, ["red heart"], w=1.0)[0].mean((1, 2))
    assert red[0] > red[1] + 0.2 and red[0] > red[2] + 0.2  # and it is


# ---- networks of one's own ------------------------------------------------------------------


@cd.network
class Dial(nn.Module):
    """Somebody's network: two conditions, and it knows where a step ends."""

    takes_s, shape = True, (2, 3, 3)

    def __init__(self, size: int):
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.1, 0.9, size))
        self.ends: list = []

    @property
    def config(self) -> dict:
        return {"net": "Dial", "size": len(self.scale)}

    def forward(self, z, t, cond, w, s=None):
        self.ends.append(s)
        pooled, sequence = cond["pooled"], cond["sequence"]
        shift = pooled.mean(1) + sequence.mean((1, 2))
        return z * self.scale.mean() + shift[:, None, None, None]


def some_conditions(n: int) -> dict:
    return {"pooled": torch.ones(n, 4), "sequence": torch.full((n, 5, 2), 0.5)}


def test_a_network_of_ones_own_is_loaded_back(tmp_path):
    from cfgdistill.training.checkpoints import save_weights

    model = cd.Denoiser(Dial(7), cd.CosineSchedule())
    save_weights(model, tmp_path, {})
    back = cd.load(tmp_path, device="cpu")
    assert torch.equal(back.net.scale, model.net.scale)
    z = torch.randn(2, 2, 3, 3)
    assert torch.equal(back(z, 0.5, some_conditions(2)).v, model(z, 0.5, some_conditions(2)).v)


def test_conditions_may_be_a_tree_and_only_who_asks_is_told_where_a_step_ends():
    model = cd.Denoiser(Dial(3), cd.CosineSchedule())
    z, cond = torch.randn(2, 2, 3, 3), some_conditions(2)
    cd.last(cd.ddim(model, z, 2, cond))
    assert [s.tolist() for s in model.net.ends] == [[0.5, 0.5], [0.0, 0.0]]
    with pytest.raises(ValueError, match="3 conditions for 2 examples"):
        model(z, 0.5, {**cond, "pooled": torch.ones(3, 4)})
    null = {"pooled": torch.zeros(4), "sequence": torch.zeros(5, 2)}
    guided = cd.GuidedDenoiser(model, null)
    known = cd.guide(model(z, 0.5, cond).v, model(z, 0.5, {k: 0 * c for k, c in cond.items()}).v, 3)
    assert torch.allclose(guided(z, 0.5, cond, 3.0).v, known, atol=1e-5)
    dropped = cd.drop_condition(cond, null, 0.5, torch.tensor([0.1, 0.9]))
    assert [c.abs().sum((*range(1, c.ndim),)).tolist() for c in dropped.values()] == [
        [0, 4],
        [0, 5],
    ]
    wave = cd.Denoiser(Wave(), cd.CosineSchedule())  # which takes no s: it is called with four
    assert not wave.takes_s and cd.last(cd.ddim(wave, z, 2)).shape == z.shape


# ---- what the package's metadata promise ----------------------------------------------------


def test_the_public_face_is_what_the_contract_names_and_is_typed():
    face = (
        "CosineSchedule DiscreteSchedule Denoiser GuidedDenoiser Prediction Schedule convert "
        "ddim ddim_encode ddim_step delivered_w distill_progressively from_folder from_hub guide "
        "guidance_matching_loss implied_v load network progressive_loss progressive_target sample "
        "stochastic train"
    )
    assert set(face.split()) <= set(cd.__all__) and len(set(cd.__all__)) == len(cd.__all__)
    assert not [name for name in cd.__all__ if name.startswith("_")]
    assert (Path(cd.__file__).parent / "py.typed").exists()
    root = Path(__file__).parents[1]
    said = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    home, _, name = said["project"]["scripts"]["cfgdistill"].partition(":")
    assert callable(getattr(importlib.import_module(home), name))
    assert f"version: {cd.__version__}" in (root / "CITATION.cff").read_text(encoding="utf-8")
    rooms = {p.parent.relative_to(root) for p in (root / "cfgdistill").rglob("*.py")}
    assert {".".join(room.parts) for room in rooms} <= set(said["tool"]["setuptools"]["packages"])
