"""How good are the samples? Frechet distance and class accuracy on a feature net of our own.

A Frechet distance depends on the feature net, the number of samples and the reference; it is
called FID only with the Inception network of 2015. Ours is not, so it is never called that.
"""

import time

import torch
from torch import Tensor, nn

from cfgdistill.data import Data
from cfgdistill.sampling import ddim, last


class Classifier(nn.Module):
    """A small convolutional classifier; calling it gives its 64 pooled features, [b, 64].

    It is the judge of the digits and CIFAR-10 models: `logits` names the class of a sample,
    the features carry the Frechet distance.
    """

    num_features = 64  # torchmetrics asks for it

    def __init__(self, channels: int, size: int, num_classes: int):
        super().__init__()
        self.config = {"channels": channels, "size": size, "num_classes": num_classes}
        body: list[nn.Module] = [nn.Conv2d(channels, 32, 3, padding=1)]
        width = 32
        while size > 4:
            body += [*_block(width, 64, stride=1), *_block(64, 64, stride=2)]
            width, size = 64, size // 2
        body += [*_block(width, 64, stride=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        self.net = nn.Sequential(nn.Sequential(*body), nn.Linear(64, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.net[0](x)

    def logits(self, x: Tensor) -> Tensor:
        return self.net(x)

    def describe(self) -> dict:
        return {"classifier": self.config}


def _block(inner: int, outer: int, stride: int) -> list[nn.Module]:
    return [
        nn.GroupNorm(8, inner),
        nn.SiLU(),
        nn.Conv2d(inner, outer, 3, stride=stride, padding=1),
    ]


def classification_loss(classifier, x, cond, draw) -> Tensor:
    """Cross-entropy, [b], for `training.train`."""
    return nn.functional.cross_entropy(classifier.logits(x), cond, reduction="none")


class Judge:
    """A feature net with the statistics of one reference split; memory does not grow with n.

    judge(x, labels) -> frechet distance, share of samples that are of their class. Any module will
    do that gives features [b, num_features] when called and class logits [b, k] by `logits`.
    """

    def __init__(self, classifier: nn.Module, reference: Data, batch: int = 1000):
        from torchmetrics.classification import MulticlassAccuracy
        from torchmetrics.image.fid import FrechetInceptionDistance

        self.classifier, self.batch = classifier.eval(), batch
        self.name = f"{reference.name} classifier, {classifier.num_features} features"
        self.reference = f"{reference.name} {reference.split}, {len(reference)} images"
        device = next(classifier.parameters()).device
        self.frechet = FrechetInceptionDistance(classifier, reset_real_features=False).to(device)
        self.accuracy = MulticlassAccuracy(reference.num_classes, average="micro").to(device)
        self._update(reference.all()[0], real=True)

    @torch.no_grad()
    def _update(self, x: Tensor, real: bool) -> None:
        for part in x.split(self.batch):
            self.frechet.update(part.to(self.frechet.device), real=real)

    @torch.no_grad()
    def __call__(self, x: Tensor, labels: Tensor) -> tuple[float, float]:
        self.frechet.reset()
        self.accuracy.reset()
        self._update(x, real=False)
        for part, own in zip(x.split(self.batch), labels.split(self.batch), strict=True):
            logits = self.classifier.logits(part.to(self.accuracy.device))
            self.accuracy.update(logits, own.to(self.accuracy.device))
        return self.frechet.compute().item(), self.accuracy.compute().item()


def generate(
    denoiser,
    shape: tuple[int, ...],
    labels: Tensor,
    *,
    steps: int,
    w: int | float | None,
    seed: int = 0,
    batch: int = 125,
    sampler=ddim,
) -> Tensor:
    """One sample for each label, [n, *shape] in [-1, 1], from noise that depends on seed alone.

    The same seed gives every model the same noise.
    """
    device = next(denoiser.parameters(), labels).device  # an exact denoiser has no parameters
    noise = torch.randn(len(labels), *shape, generator=torch.Generator().manual_seed(seed))
    samples = [
        last(sampler(denoiser, z.to(device), steps, cond.to(device), w)).cpu()
        for z, cond in zip(noise.split(batch), labels.split(batch), strict=True)
    ]
    return torch.cat(samples).clamp(-1, 1)


def evaluate(
    denoiser,
    judge: Judge,
    data: Data,
    *,
    model: str,
    steps: int,
    w: int | float,
    n: int,
    seed: int = 0,
    batch: int = 125,
    sampler=ddim,
) -> dict:
    """One row of a results table: quality and cost of n samples, the classes in equal parts."""
    labels = torch.arange(n) % data.num_classes
    denoiser.nfe = 0
    started = time.perf_counter()
    x = generate(
        denoiser, data.shape, labels, steps=steps, w=w, seed=seed, batch=batch, sampler=sampler
    )
    seconds = time.perf_counter() - started
    frechet_distance, class_accuracy = judge(x, labels)
    return {
        "model": model,
        "sampler": sampler.__name__,
        "steps": steps,
        "nfe": denoiser.nfe // len(labels.split(batch)),  # it counts every batch
        "w": w,
        "frechet_distance": round(frechet_distance, 4),
        "class_accuracy": round(class_accuracy, 4),
        "ms_per_image": round(1000 * seconds / n, 3),
    }
