"""What a user can get wrong: each is one sentence that says what to do."""

import json

import pytest
import torch
from accelerate import PartialState
from helpers import Wave, plan, tiny_mlp, unet_of

from cfgdistill import (
    CosineSchedule,
    Denoiser,
    DiscreteSchedule,
    GuidedDenoiser,
    Optim,
    convert,
    ddim,
    ddim_encode,
    distill_progressively,
    get_recipe,
    last,
    train,
)
from cfgdistill.core.losses import teacher_loss
from cfgdistill.core.stage_two import halvings
from cfgdistill.data.named import load_data
from cfgdistill.data.toy import pinwheel
from cfgdistill.judge.metrics import Classifier
from cfgdistill.teachers.files import load
from cfgdistill.teachers.w_input import add_w_conditioning
from cfgdistill.training.checkpoints import load_weights, read_tensors, refuse_other, save_weights


def refused(match, kind=ValueError):
    """One sentence: no line breaks, and it ends like one."""
    return pytest.raises(kind, match=rf"(?s)^(?!.*\n).*{match}.*\.$")


# ---- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "profile", "sentence"),
    [
        ("digts", "smoke", r"no data set 'digts': did you mean 'digits'\?"),
        ("cifar", "smoke", r"no data set 'cifar': did you mean 'cifar10'\?"),
        ("toy", "smoke", "no data set 'toy'. The data sets are digits, cifar10"),
        ("digits", "labtop", r"no profile 'labtop': did you mean 'laptop' or 'colab'\?"),
        ("digits", "xyz", "no profile 'xyz'. The profiles are smoke, laptop, shipped, colab"),
    ],
)
def test_an_unknown_recipe_names_the_near_ones(dataset, profile, sentence):
    with refused(sentence):
        get_recipe(dataset, profile)


def test_an_unknown_recipe_entry_names_the_near_one():
    with refused("no recipe entry 'techer': did you mean 'teacher'"):
        get_recipe("digits", "smoke", techer=3)


def test_an_unknown_data_set_or_split_names_the_near_ones():
    with refused(r"no data set 'cifar-10': did you mean 'cifar10'\?"):
        load_data("cifar-10")
    with refused(r"no split 'tset': did you mean 'test'\?"):
        load_data("digits", "tset")


def test_an_unknown_prediction_type_lists_the_known_ones():
    with refused(r"must be one of \('v', 'eps', 'x'\), not 'epsilon'"):
        Denoiser(Wave(), CosineSchedule(), "epsilon")
    with refused(r"must be one of \('v', 'eps', 'x'\), not 'epsilon'"):
        convert(torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1), torch.zeros(1), "epsilon")


# ---- numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "near"), [(3, "2 or 4"), (6, "4 or 8"), (100, "64 or 128"), (0, "1 or 2"), (-4, "1 ")]
)
def test_steps_that_are_not_a_power_of_two_name_the_ones_beside_them(start, near):
    with refused(f"power of two, not {start}: .*Try {near}"):
        halvings(start)
    with refused(f"power of two, not {start}: "):
        next(distill_progressively(tiny_mlp(), None, Optim(1, 1, 1.0), start=start))


def student():
    return Denoiser(Wave(), CosineSchedule(), steps=4, w_range=(0.0, 4.0), num_classes=3)


def teacher():
    return GuidedDenoiser(Denoiser(Wave(), CosineSchedule(), num_classes=3), null=3)


Z, COND = torch.zeros(3, 2), torch.tensor([0, 1, 2])


@pytest.mark.parametrize("sampler", [ddim, ddim_encode])
@pytest.mark.parametrize(
    ("w", "sentence"),
    [
        (-1.0, r"w = -1 is outside \[0, 4\]: choose .*guidance_scale is 1 \+ w"),
        (4.5, r"w = 4.5 is outside \[0, 4\]"),
        (torch.tensor([0.0, 7.0, 1.0]), r"w = 7 is outside \[0, 4\]"),
        (torch.tensor([0.0, -0.5, 1.0]), r"w = -0.5 is outside \[0, 4\]"),
        (None, r"takes a guidance weight: pass w in \[0, 4\]"),
    ],
)
def test_a_student_refuses_a_weight_outside_its_range(sampler, w, sentence):
    with refused(sentence):
        next(sampler(student(), Z, 4, COND, w))


@pytest.mark.parametrize("w", [-0.1, torch.tensor([1.0, 0.0, -0.1])])
def test_a_guided_teacher_refuses_a_negative_weight(w):
    with refused(r"w = -0.1 is outside \[0, 1000\]"):
        next(ddim(teacher(), Z, 4, COND, w))


@pytest.mark.parametrize(("cond", "w"), [(None, 1.0), (COND, None)])
def test_a_guided_teacher_needs_a_condition_and_a_weight(cond, w):
    with refused("needs both a condition and a weight: pass cond and w"):
        next(ddim(teacher(), Z, 4, cond, w))


@pytest.mark.parametrize("model", [student, teacher])
@pytest.mark.parametrize(
    ("cond", "found"),
    [([0, 1, 4], "0 .. 4"), ([-1, 0, 1], "-1 .. 1"), ([0.0, 0.5, 1.0], "0.0 .. 1.0")],
)
def test_labels_out_of_range_say_the_range(model, cond, found):
    with refused(rf"whole numbers in 0 .. 2 \(3 is the null label\), not {found}"):
        next(ddim(model(), Z, 4, torch.tensor(cond), 1.0))


def test_a_network_with_classes_needs_labels():
    with refused("needs class labels: pass cond with values in 0 .. 2"):
        next(ddim(student(), Z, 4, None, 1.0))


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_a_student_refuses_steps_it_was_not_distilled_for(steps):
    with refused(f"distilled for 4 steps, not {steps}: .*steps=4, or load .* of {steps} steps"):
        next(ddim(student(), Z, steps, COND, 1.0))


@pytest.mark.parametrize("model", [student, teacher])
@pytest.mark.parametrize("steps", [0, -1])
def test_there_is_no_sampling_in_less_than_one_step(model, steps):
    with refused(f"steps must be at least 1, not {steps}"):
        next(ddim(model(), Z, steps, COND, 1.0))


def test_a_table_of_betas_is_not_a_table_of_alphas_cumprod():
    with refused("alphas_cumprod must lie in .*pass the products, not the betas"):
        DiscreteSchedule(torch.tensor([0.5, 1.2]))


# ---- shapes ------------------------------------------------------------------------------------


def test_conditions_must_be_as_many_as_examples():
    with refused("2 conditions for 3 examples: pass one for each"):
        last(ddim(student(), Z, 4, COND[:2], 1.0))


@pytest.mark.parametrize("name", ["t", "w"])
@pytest.mark.parametrize("value", [torch.rand(2), torch.rand(3, 1), torch.rand(1)])
def test_times_and_weights_must_be_one_number_or_one_for_each_example(name, value):
    given = {"t": 0.5, "w": 1.0, name: value}
    with refused(r"does not fit a batch of 3 examples: pass one number, or .* shape \[3\]"):
        student()(Z, given["t"], COND, given["w"])


def test_an_output_of_another_shape_than_its_input_is_refused():
    class Half(torch.nn.Module):
        def forward(self, z, t, cond, w):
            return z[:, :1]

    with refused(r"turned \[3, 2\] into \[3, 1\]: .*shape of its input"):
        Denoiser(Half(), CosineSchedule())(Z, 0.5)


RECIPE = get_recipe("digits", "smoke", channels=(8, 16))


@pytest.fixture(scope="module")
def unet():
    return unet_of(RECIPE, channels=1, size=8, num_classes=10).eval()


@pytest.mark.parametrize("shape", [(3, 3, 8, 8), (3, 1, 16, 16), (3, 1, 8, 4), (3, 64)])
def test_a_unet_says_which_images_it_takes(unet, shape):
    with refused(r"but this U-Net takes \[batch, 1, 8, 8\]"):
        unet(torch.zeros(shape), 0.5, COND)


def test_a_unet_without_a_w_input_says_how_to_get_one(unet):
    with refused("takes no w: wrap it in GuidedDenoiser, or .*add_w_conditioning"):
        unet(torch.zeros(3, 1, 8, 8), 0.5, COND, 1.0)


def test_a_unet_with_a_w_input_needs_w(unet):
    with refused("needs a guidance weight: pass w"):
        add_w_conditioning(unet, (0.0, 4.0))(torch.zeros(3, 1, 8, 8), 0.5, COND)


def test_the_exact_denoiser_takes_no_w():
    with refused("takes no w: wrap it in GuidedDenoiser"):
        pinwheel().denoiser(CosineSchedule())(Z, 0.5, COND, 1.0)


# ---- folders -----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    save_weights(tiny_mlp(), tmp_path, {"seed": 0})
    return tmp_path


def test_an_empty_or_missing_folder_holds_no_finished_model(tmp_path):
    for place in (tmp_path, tmp_path / "nowhere"):
        with refused("holds no finished model of cfgdistill .*train it first"):
            load(place)


@pytest.mark.parametrize("text", ["", '{"about": {', "[]", '{"about": {}}', "3"])
def test_a_damaged_card_is_no_finished_model(folder, text):
    (folder / "card.json").write_text(text)
    with refused("holds no finished model of cfgdistill, for its card.json is not one of ours"):
        load(folder)


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_truncated_checkpoint_is_refused(folder, kept):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with refused("cannot be read .*truncated or not a checkpoint. Delete it to start again"):
        load(folder)


def test_a_missing_weights_file_is_refused(folder):
    (folder / "model.safetensors").unlink()
    with refused("model.safetensors is missing: restore it, or train it again"):
        load(folder)


def test_a_pickle_is_not_a_checkpoint(folder):
    torch.save(tiny_mlp().net.state_dict(), folder / "model.safetensors")
    with refused("cannot be read .*not a checkpoint"):
        load(folder)


def test_weights_that_are_not_the_ones_of_the_card_are_refused(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    save_weights(tiny_mlp(seed=1), other, {"seed": 1})
    (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    with refused("not the file that its card.json describes .*fetch or train it again"):
        load(folder)


def test_one_flipped_bit_is_noticed(folder):
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with refused("not the file that its card.json describes"):
        load(folder)


def test_weights_of_another_network_are_refused(folder):
    with refused("holds the weights of another network: build the one its card describes"):
        load_weights(Classifier(1, 8, 10), folder)


def test_a_card_of_an_unknown_network_or_schedule_is_refused(folder):
    card = json.loads((folder / "card.json").read_text())
    del card["model_sha256"]  # as older ones have none
    card["model"]["schedule"] = "LinearSchedule"
    (folder / "card.json").write_text(json.dumps(card))
    with refused("no schedule 'LinearSchedule': did you mean 'CosineSchedule'"):
        load(folder)
    card["model"]["net"]["net"] = "TestUNet"
    (folder / "card.json").write_text(json.dumps(card))
    with refused("no network 'TestUNet': did you mean 'TextUNet'"):
        load(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("steps", value) for value in ("4", 0, True, 1.5)),
        *(("w_range", value) for value in ([4, 0], [0], [0, "4"], 4, {"a": 1})),
        *(("num_classes", value) for value in ("3", -1)),
        *(("sampler", value) for value in (3, "dim")),
        *(("net", value) for value in ([], "MLP", {"net": "MLP", "width": "x"}, {"net": "MLP"})),
        *(("schedule", value) for value in ({}, {"alphas_cumprod": "x"})),
    ],
)
def test_a_card_of_a_model_that_cannot_be_built_is_refused(folder, key, value):
    card = json.loads((folder / "card.json").read_text())
    card.pop("model_sha256", None)  # as in cards of old, or of somebody's own
    card["model"][key] = value
    (folder / "card.json").write_text(json.dumps(card))
    with refused("describes no network that can be built .*fetch or train|of another network"):
        load(folder)


def test_what_a_library_says_of_a_card_is_told_with_the_folder_it_lies_in(tmp_path):
    unet = unet_of(get_recipe("digits", "smoke"), channels=1, size=8, num_classes=10)
    save_weights(unet, tmp_path / "unet", {})
    card = json.loads((tmp_path / "unet" / "card.json").read_text())
    card.pop("model_sha256")
    card["model"]["net"]["mid_block_type"] = "none such"  # a ValueError of diffusers
    (tmp_path / "unet" / "card.json").write_text(json.dumps(card))
    with refused("unet describes no network that can be built .*none such.*: fetch or train"):
        load(tmp_path / "unet")


DATA = load_data("toy", images=100)
SETTINGS = dict(name="teacher", updates=4, batch=4, rate=1e-3, seed=0)


def run(folder, **changes):
    loss = teacher_loss(3, 0.1)
    return train(tiny_mlp(), loss, DATA, *plan(folder=folder, **{**SETTINGS, **changes}))


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"rate": 0.5}, "rate is 0.001 there and 0.5 here"),
        ({"about": {"data": "abc"}}, "data is None there and 'abc' here"),
    ],
)
def test_the_folder_of_another_recipe_is_refused_and_left_alone(
    tmp_path, finished, changes, sentence
):
    updates = run(tmp_path)
    next(updates)
    list(updates) if finished else updates.close()
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with refused(f"holds another run: {sentence}. Choose another folder"):
        next(run(tmp_path, **changes))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_a_truncated_training_state_is_refused(tmp_path, kept):
    updates = run(tmp_path)
    next(updates)
    updates.close()
    file = tmp_path / "training.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with refused("training.safetensors cannot be read .*Delete it to start again"):
        next(run(tmp_path))
    with refused("truncated"):
        read_tensors(file)


def test_a_foreign_file_in_the_place_of_a_training_state_is_refused(tmp_path, folder):
    (folder / "card.json").unlink()
    (folder / "model.safetensors").rename(folder / "training.safetensors")
    with refused("holds another run"):
        next(run(folder))


def test_a_batch_that_processes_cannot_share_is_refused(monkeypatch):
    monkeypatch.setattr(PartialState(), "num_processes", 3)
    with refused("batch of 4 cannot be shared by 3 processes: choose a multiple"):
        next(run(None))


def test_a_weight_that_is_not_a_number_is_refused():
    with refused(r"w = nan is outside \[0, 1000\]"):
        ddim(teacher(), torch.zeros(3, 2), 2, COND, float("nan"))


def test_a_bad_request_is_refused_at_the_call_before_any_sample_is_asked_for():
    with refused("was distilled for"):
        ddim(student(), torch.zeros(3, 2), 3, COND, 1.0)


def test_the_folder_of_a_classifier_holds_no_denoiser(tmp_path):
    save_weights(Classifier(1, 8, 10), tmp_path, {})
    with refused("holds no denoiser but a classifier"):
        load(tmp_path)


def test_a_difference_deep_in_a_recipe_is_named_shortly(tmp_path):
    with refused(r"net\.size is 8 there and 16 here"):
        refuse_other(
            tmp_path, {"net": {"size": 8, "layers": 2}}, {"net": {"size": 16, "layers": 2}}
        )
