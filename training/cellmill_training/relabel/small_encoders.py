"""Encoders for patches of 32 x 32 px, which timm does not have: RCCNet, and ResNet-18 with a stem for small images.

Maps normalised images (B, 3, 32, 32) to logits (B, classes), as timm's networks do; known to `classifier` by name.
"""

from collections.abc import Callable

from torch import Tensor, nn

__all__ = ["SMALL_ENCODERS", "RccNet"]

_SIDE_PX = 32


class RccNet(nn.Module):
    """RCCNet: four 3 x 3 convolutions in two stages, then three linear layers.

    Basha et al. 2018, "RCCNet: An Efficient Convolutional Neural Network for Histological Routine Colon Cancer Nuclei
    Classification" (ICARCV): 32 x 32 x 3 in; 32, 32, 64, 64 features, the first convolution of a stage padded, the
    second not; pooling by 2 after each stage; 512 and 512 units. With batch norm after every hidden layer it has the
    1,512,868 learnable parameters that the paper states for four classes. Dropout lies before the last layer.
    """

    default_cfg = {"classifier": "classifier"}  # noqa: RUF012 - as timm's networks name their last layer
    """Which layer depends on the number of classes."""

    def __init__(self, *, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_convolution(3, 32, padding=1),
            *_convolution(32, 32, padding=0),
            nn.MaxPool2d(2),
            *_convolution(32, 64, padding=1),
            *_convolution(64, 64, padding=0),
            nn.MaxPool2d(2),
        )
        self.hidden = nn.Sequential(nn.Flatten(), *_linear(64 * 6 * 6, 512), *_linear(512, 512), nn.Dropout(dropout))
        self.classifier = nn.Linear(512, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, 32, 32) to logits (B, classes).

        Raises:
            ValueError: when images are of another size.
        """
        if tuple(images.shape[-2:]) != (_SIDE_PX, _SIDE_PX):
            raise ValueError(
                f"rccnet takes {_SIDE_PX} x {_SIDE_PX} px, got {images.shape[-1]} x {images.shape[-2]}: set side_px of "
                f"the crops to {_SIDE_PX}, or take another encoder."
            )
        return self.classifier(self.hidden(self.features(images)))


def _convolution(inputs: int, outputs: int, *, padding: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=padding), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)


def _linear(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU(inplace=True)


def _rccnet(num_classes: int, dropout: float) -> nn.Module:
    return RccNet(num_classes=num_classes, dropout=dropout)


def _resnet18_patch32(num_classes: int, dropout: float) -> nn.Module:
    """timm's ResNet-18 whose first convolution is 3 x 3 without stride: a 32 px patch keeps 2 x 2 cells in the end.

    With the usual stem (7 x 7, stride 2) one cell is left, and a nucleus of 12 px is 3 px when the first block sees it.
    """
    import timm

    network = timm.create_model("resnet18", pretrained=False, num_classes=num_classes, drop_rate=dropout)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return network


SMALL_ENCODERS: dict[str, Callable[[int, float], nn.Module]] = {
    "rccnet": _rccnet,
    "resnet18_patch32": _resnet18_patch32,
}
"""By name: number of classes and dropout to a network with random weights."""
