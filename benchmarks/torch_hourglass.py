"""The stacked hourglass in PyTorch, the peer of the benchmarks and of the tests; follows the Lua code of the paper."""

import torch
from torch import nn
from torch.nn import functional


class Bottleneck(nn.Module):
    def __init__(self, inputs, filters):
        super().__init__()
        self.skip = nn.Conv2d(inputs, filters, 1) if inputs != filters else None
        half = filters // 2
        self.steps = nn.Sequential(
            nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, half, 1),
            nn.BatchNorm2d(half), nn.ReLU(), nn.Conv2d(half, half, 3, padding=1),
            nn.BatchNorm2d(half), nn.ReLU(), nn.Conv2d(half, filters, 1))

    def forward(self, x):
        return (x if self.skip is None else self.skip(x)) + self.steps(x)


def bottlenecks(filters, count):
    return nn.Sequential(*[Bottleneck(filters, filters) for _ in range(count)])


class Module(nn.Module):
    """One hourglass of `order` levels; `extra` more blocks in the upper branch."""

    def __init__(self, order, filters, extra):
        super().__init__()
        self.upper = bottlenecks(filters, 1 + extra)
        self.down = bottlenecks(filters, 1)
        self.inner = Module(order - 1, filters, extra) if order > 1 else bottlenecks(filters, 1)
        self.up = bottlenecks(filters, 1)

    def forward(self, x):
        low = self.up(self.inner(self.down(functional.max_pool2d(x, 2))))
        return self.upper(x) + functional.interpolate(low, scale_factor=2, mode="nearest")


class Stem(nn.Module):
    def __init__(self, filters, same):
        super().__init__()
        self.pad = (2, 3, 2, 3) if same else (3, 3, 3, 3)  # (left, right, top, bottom)
        self.first = nn.Sequential(nn.Conv2d(3, filters // 4, 7, 2), nn.BatchNorm2d(filters // 4), nn.ReLU(),
                                   Bottleneck(filters // 4, filters // 2), nn.MaxPool2d(2),
                                   Bottleneck(filters // 2, filters // 2), Bottleneck(filters // 2, filters))

    def forward(self, x):
        return self.first(functional.pad(x, self.pad))


class Stack(nn.Module):
    def __init__(self, joints, filters, order, extra, last):
        super().__init__()
        self.features = nn.Sequential(
            Module(order, filters, extra), Bottleneck(filters, filters),
            nn.Conv2d(filters, filters, 1), nn.BatchNorm2d(filters), nn.ReLU())
        self.heatmaps = nn.Conv2d(filters, joints, 1)
        self.remap = None if last else nn.ModuleList([nn.Conv2d(filters, filters, 1), nn.Conv2d(joints, filters, 1)])

    def forward(self, x):
        features = self.features(x)
        heatmaps = self.heatmaps(features)
        if self.remap is not None:
            x = x + self.remap[0](features) + self.remap[1](heatmaps)
        return x, heatmaps


class Hourglass(nn.Module):
    """Arguments as those of hourglass.model.hourglass; NCHW in, a list over stacks of heatmaps out."""

    def __init__(self, joints=16, stacks=4, filters=256, order=4, variant="article"):
        super().__init__()
        extra = 1 if variant == "article" else 0
        self.stem = Stem(filters, same=variant == "article")
        self.stacks = nn.ModuleList(
            [Stack(joints, filters, order, extra, last=i == stacks - 1) for i in range(stacks)])

    def forward(self, x):
        x, found = self.stem(x), []
        for stack in self.stacks:
            x, heatmaps = stack(x)
            found.append(heatmaps)
        return found


def copy_weights(layers, net):
    """Copies Keras layers, convolutions and batch norms in the order of their creation, into a PyTorch net."""
    modules = [module for module in net.modules() if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))]
    with torch.no_grad():
        for layer, module in zip(layers, modules, strict=True):
            values = [torch.from_numpy(value) for value in layer.get_weights()]
            if isinstance(module, nn.Conv2d):
                module.weight.copy_(values[0].permute(3, 2, 0, 1))
                module.bias.copy_(values[1])
            else:
                for target, value in zip((module.weight, module.bias, module.running_mean, module.running_var), values):
                    target.copy_(value)
