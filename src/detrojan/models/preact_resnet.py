"""Pre-activation ResNet for small images (arXiv:1603.05027), its parameters named as in BackdoorBench's checkpoints."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, relu


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after batch norm and ReLU, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, inputs, height, width)."""
        out = relu(self.bn1(x))
        short = self.shortcut(out) if hasattr(self, "shortcut") else x
        return self.conv2(relu(self.bn2(self.conv1(out)))) + short


class PreActResNet(nn.Module):
    """Stages of pre-activation blocks, average pooling and a linear layer; width 64, blocks 2, 2, 2, 2 is ResNet-18."""

    def __init__(
        self, classes: int, channels: int = 3, width: int = 64, blocks: tuple[int, ...] = (2, 2, 2, 2)
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        inputs = width
        for k, count in enumerate(blocks):
            outputs = width * 2**k
            stage = [
                PreActBlock(inputs if b == 0 else outputs, outputs, 2 if b == 0 and k else 1)
                for b in range(count)
            ]
            self.add_module(f"layer{k + 1}", nn.Sequential(*stage))
            inputs = outputs
        self.stages = len(blocks)
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, channels, height, width); returns logits (batch, classes)."""
        out = self.conv1(x)
        for k in range(self.stages):
            out = self.get_submodule(f"layer{k + 1}")(out)
        return self.linear(adaptive_avg_pool2d(out, 1).flatten(1))
