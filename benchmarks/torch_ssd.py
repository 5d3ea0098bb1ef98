"""SSD300 with the same layers in PyTorch: a peer to measure against, not a part of the zoo.

The variant `caffe`, whose paddings PyTorch can spell. B batch, A anchors, C classes.
"""

import torch
from torch import nn

MEAN = (123.0, 117.0, 104.0)
ANCHORS_PER_CELL = (4, 6, 6, 6, 4, 4)


def conv(inputs, filters, kernel_size, stride=1, padding="same", dilation=1):
    """Convolution and ReLU."""
    if padding == "same":
        padding = dilation * (kernel_size // 2)
    return nn.Sequential(nn.Conv2d(inputs, filters, kernel_size, stride, padding, dilation), nn.ReLU(inplace=True))


def stage(inputs, filters, num_convolutions):
    return nn.Sequential(conv(inputs, filters, 3), *(conv(filters, filters, 3) for _ in range(num_convolutions - 1)))


class L2Normalization(nn.Module):
    def __init__(self, channels, scale=20.0):
        super().__init__()
        self.scale = nn.Parameter(torch.full([channels], scale))

    def forward(self, x):
        x = x.float()
        return x * torch.rsqrt((x * x).sum(1, keepdim=True) + 1e-10) * self.scale[:, None, None]


class Ssd300(nn.Module):
    """Images [B, 3, 300, 300] in 0..1 -> (logits [B, A, 1 + C], offsets [B, A, 4])."""

    def __init__(self, num_classes):
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])
        pool = [nn.MaxPool2d(2, 2, ceil_mode=True) for _ in range(4)]
        self.to_conv4_3 = nn.Sequential(stage(3, 64, 2), pool[0], stage(64, 128, 2), pool[1], stage(128, 256, 3),
                                        pool[2], stage(256, 512, 3))
        self.to_fc7 = nn.Sequential(pool[3], stage(512, 512, 3), nn.MaxPool2d(3, 1, 1),
                                    conv(512, 1024, 3, dilation=6), conv(1024, 1024, 1))
        self.norm = L2Normalization(512)
        self.extra = nn.ModuleList([
            nn.Sequential(conv(1024, 256, 1), conv(256, 512, 3, 2, 1)),
            nn.Sequential(conv(512, 128, 1), conv(128, 256, 3, 2, 1)),
            nn.Sequential(conv(256, 128, 1), conv(128, 256, 3, padding=0)),
            nn.Sequential(conv(256, 128, 1), conv(128, 256, 3, padding=0))])
        maps = list(zip((512, 1024, 512, 256, 256, 256), ANCHORS_PER_CELL))
        self.classes = nn.ModuleList([nn.Conv2d(filters, n * (1 + num_classes), 3, padding=1) for filters, n in maps])
        self.boxes = nn.ModuleList([nn.Conv2d(filters, n * 4, 3, padding=1) for filters, n in maps])

    def forward(self, images):
        x = self.to_conv4_3(images * 255 - self.mean)
        maps = [self.norm(x), self.to_fc7(x)]
        for layers in self.extra:
            maps.append(layers(maps[-1]))
        # float32, as in our network.
        with torch.autocast("cpu", enabled=False):
            maps = [x.float() for x in maps]
            return tuple(torch.cat([flat(head(x), n) for head, x, n in zip(heads, maps, ANCHORS_PER_CELL)], dim=1)
                         for heads in (self.classes, self.boxes))


def flat(x, num_anchors):
    """[B, n * values, h, w] -> [B, h * w * n, values]."""
    batch, channels = x.shape[:2]
    return x.permute(0, 2, 3, 1).reshape(batch, -1, channels // num_anchors)


def build(num_classes=20):
    """The network with channels last, the fastest layout of PyTorch on a CPU."""
    return Ssd300(num_classes).to(memory_format=torch.channels_last)


def copy_weights(net, model):
    """Gives the network the weights of our `vgg300(variant="caffe")`."""
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    layers = [layer for layer in model.layers if layer.name.startswith(("conv", "fc")) and hasattr(layer, "kernel")]
    layers += [model.get_layer(f"{name}_{i}") for name in ("classes", "boxes") for i in range(len(net.classes))]
    with torch.no_grad():
        for convolution, layer in zip(convolutions, layers, strict=True):
            convolution.weight.copy_(torch.from_numpy(layer.kernel.numpy().transpose(3, 2, 0, 1).copy()))
            convolution.bias.copy_(torch.from_numpy(layer.bias.numpy()))
        net.norm.scale.copy_(torch.from_numpy(model.get_layer("conv4_norm").gamma.numpy()))


def ssd_loss(outputs, classes, offsets, negatives_per_positive=3):
    """The article's loss of a batch, divided by its positives; the usual spelling, with two sorts for the ranks."""
    logits, predicted = (output.float() for output in outputs)
    positive = classes > 0
    entropy = nn.functional.cross_entropy(logits.transpose(1, 2), classes, reduction="none")
    order = entropy.detach().masked_fill(positive, -1.0).argsort(dim=1, descending=True)
    negative = order.argsort(dim=1) < negatives_per_positive * positive.sum(1, keepdim=True)
    localization = nn.functional.smooth_l1_loss(predicted[positive], offsets[positive], reduction="sum")
    return ((entropy * (positive | negative)).sum() + localization) / positive.sum()
