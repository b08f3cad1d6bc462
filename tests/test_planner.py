"""The planner: bytes, operations and parameters that can be worked out by hand."""

import gc
import json

import pytest
import torch
from torch.nn import functional as F

from cfgdistill import cli, get_recipe
from cfgdistill.course import planner
from cfgdistill.course.planner import GIB, Live, _as_on_a_gpu, configuration, plan
from cfgdistill.teachers.stable_diffusion import tiny_pipeline


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return configuration(tiny_pipeline(tmp_path_factory.mktemp("tiny")))


def recipe(**changes):
    return get_recipe("sd", "colab", **changes)


def test_a_tensor_counts_while_somebody_holds_it_and_a_view_of_it_counts_nothing():
    net = torch.nn.Linear(10, 10, device="meta")
    with Live(net) as live:
        one = torch.empty(1000, device="meta")  # 4000 bytes
        view = one.reshape(10, 100).T
        two = one.double()  # 8000
        assert live.now == live.most == 12_000
        del one, view
        assert live.now == 8000
        del two
        net.weight.T.reshape(100)  # a copy: 400
        net(torch.empty(5, 10, device="meta")).sum().backward()
    assert live.now == net.weight.grad.nbytes + net.bias.grad.nbytes and live.most == 12_000


def test_attention_keeps_no_scores():
    given = [torch.empty(1, 2, 512, 8, device="meta", requires_grad=True) for _ in range(3)]
    with _as_on_a_gpu(torch.float32), Live(torch.nn.Identity()) as live:
        F.scaled_dot_product_attention(*given).sum().backward()
    scores, each = 2 * 512 * 512 * 4, 2 * 512 * 8 * 4
    assert 4 * each <= live.most < scores
    assert F.scaled_dot_product_attention(*given).device.type == "meta"


def test_activations_are_the_same_whenever_garbage_is_collected(tiny):
    found = set()
    try:
        for change in (gc.disable, gc.enable):
            planner._count.cache_clear()
            change()
            found.add(plan(recipe(), tiny).gib["activations"])
    finally:
        gc.enable()
    assert len(found) == 1


def test_stable_diffusion_1_5_is_what_it_is_known_to_be():
    needs = plan(recipe())
    assert needs.gib["frozen weights"] == 2 * 859_520_964 / GIB
    assert needs.gib["what is trained"] == 4 * 67_252_224 / GIB
    # 0.80 TFLOP an evaluation is what its users count: 401 GMAC at 512 x 512 pixels.
    pictures = 2 * 10 * 1000 * 2 * 0.401 / 11.5 / 3600
    assert needs.hours["pictures of its own"] == pytest.approx(pictures, rel=0.01)
    # The student: forwards, the same again, and backwards through weights that are frozen.
    one = 4000 * 4 * (2 + 3.5) * 2 * 0.401 / 11.5 / 3600
    assert needs.hours["stage one"] == pytest.approx(one, rel=0.03)
    assert needs.hours["stage two"] / needs.hours["stage one"] == pytest.approx(3300 / 4000)
    assert 2.5 < sum(needs.gib.values()) < 14.6


def test_what_is_left_out_is_saved_and_what_is_asked_for_costs(tiny):
    how = dict(size=128, batch=4, lora=8)
    needs = plan(recipe(**how), tiny)

    def other(**changes):
        return plan(recipe(**how | changes), tiny)

    kept = other(checkpointing=False)
    assert kept.gib["activations"] > needs.gib["activations"]
    assert kept.hours["stage one"] < needs.hours["stage one"]
    assert other(batch=8).gib["activations"] == 2 * needs.gib["activations"]
    assert other(eight_bit=False).gib["Adam's moments"] == 4 * needs.gib["Adam's moments"]
    assert other(lora=16).gib["what is trained"] == 2 * needs.gib["what is trained"]
    every = other(lora=0).gib
    assert every["what is trained"] == every["frozen weights"] == 2 * needs.gib["frozen weights"]
    assert plan(recipe(**how), tiny, tflops=23.0).hours["stage one"] == needs.hours["stage one"] / 2
    assert other(data_free=0).hours["pictures of its own"] == 0


def test_the_command_prints_sums_and_reads_the_base_it_is_given(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = tiny_pipeline(tmp_path / "tiny")
    asked = f"plan --dataset sd --profile smoke --set base={base} --json"
    assert cli.main(asked.split()) == 0
    said = json.loads(capsys.readouterr().out)
    assert [*said] == ["gib", "hours"] and 0 < said["gib"]["sum"] < 0.1
    assert cli.main([*asked.split()[:-2], f"base={tmp_path / 'none'}"]) == 1
    assert "name the folder of a pipeline" in capsys.readouterr().err


def test_the_shipped_base_is_planned_for_with_all_its_latents(capsys):
    assert cli.main("plan --dataset sd --profile laptop --json".split()) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["hours"]["pictures of its own"] == 0 < said["hours"]["stage two"]
    row, unet = get_recipe("sd", "laptop"), configuration("emoji/eps-base")
    assert unet["sample_size"] == 16  # its autoencoder halves once, not three times
    gib = plan(row, unet).gib["activations"]
    assert gib > 3 * plan(row, {**unet, "sample_size": 8}).gib["activations"]
    # Without a number, its own pictures are those for all captions.
    own = {"data_free": 3, "source": "prompts"}
    some, every = (plan(get_recipe("sd", "laptop", images=n, **own), unet) for n in (1000, None))
    assert every.hours["pictures of its own"] == 4 * some.hours["pictures of its own"]


@pytest.mark.parametrize("track", ["digits", "emoji"])
def test_plans_are_for_stable_diffusion(track):
    with pytest.raises(ValueError, match="^Plans are for Stable Diffusion"):
        plan(get_recipe(track, "laptop"))
    with pytest.raises(ValueError, match="^tflops=0.0 does not fit"):
        plan(recipe(), tflops=0.0)
