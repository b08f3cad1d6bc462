"""The table of recipes."""

import dataclasses
import json

import pytest

from cfgdistill import Recipe, get_recipe
from cfgdistill.config import PROFILES, RECIPES, one_of


def test_there_is_one_recipe_for_each_data_set_and_profile():
    names = [recipe.name for recipe in RECIPES]
    assert len(set(names)) == len(names)
    assert set(names) == {f"{d}-{p}" for d in ("digits", "cifar10") for p in PROFILES}
    assert PROFILES == ("smoke", "laptop", "colab", "paper")


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_every_recipe_can_be_run(recipe):
    assert recipe.start & (recipe.start - 1) == 0 and recipe.start >= 1  # it is halved down to 1
    assert 1024 % (2 * recipe.start) == 0  # every grid time is a whole training step of diffusers
    assert all(channels % 8 == 0 for channels in recipe.channels)  # groups of the normalisation
    counts = (recipe.classifier, recipe.teacher, recipe.stage_one, recipe.halving, recipe.samples)
    assert min(counts) > 0 and recipe.w_max > 0 and 0 < recipe.drop < 1 and 0 <= recipe.ema < 1


@pytest.mark.parametrize("dataset", ["digits", "cifar10"])
def test_a_bigger_profile_trains_longer(dataset):
    updates = [get_recipe(dataset, profile).teacher for profile in PROFILES]
    assert updates == sorted(set(updates))


def test_single_values_are_changed_by_name_and_the_table_stays_as_it_is():
    changed = get_recipe("digits", "smoke", teacher=7, seed=3)
    plain = get_recipe("digits", "smoke")
    assert (changed.teacher, changed.seed) == (7, 3)
    assert dataclasses.replace(changed, teacher=plain.teacher, seed=plain.seed) == plain
    assert plain in RECIPES and changed not in RECIPES


def test_a_recipe_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_recipe("digits", "smoke").seed = 1


def test_the_printed_recipe_names_itself_and_every_value():
    recipe = get_recipe("digits", "laptop")
    assert str(recipe).startswith("digits-laptop: ")
    for field in dataclasses.fields(Recipe):
        if field.name not in ("dataset", "profile"):
            assert f"{field.name} {getattr(recipe, field.name)}" in str(recipe)


def test_a_recipe_survives_json():
    recipe = get_recipe("cifar10", "paper")
    back = json.loads(json.dumps(dataclasses.asdict(recipe)))
    assert Recipe(**{**back, "channels": tuple(back["channels"])}) == recipe


def test_one_of_gives_back_a_name_that_exists():
    assert one_of("profile", "smoke", PROFILES) == "smoke"
