"""YOLOv3 with the same layers in PyTorch: a peer to measure against, not a part of the zoo.

B batch, h, w grid, A anchors per scale, C classes.
"""

import copy

import torch
from torch import nn


class Conv(nn.Sequential):
    """Convolution, batch normalisation, leaky ReLU."""

    def __init__(self, inputs, filters, kernel_size, stride=1):
        super().__init__(
            nn.Conv2d(inputs, filters, kernel_size, stride, kernel_size // 2, bias=False),
            nn.BatchNorm2d(filters, eps=1e-5, momentum=0.01),
            nn.LeakyReLU(0.1, inplace=True))


class Residual(nn.Module):
    def __init__(self, filters):
        super().__init__()
        self.body = nn.Sequential(Conv(filters, filters // 2, 1), Conv(filters // 2, filters, 3))

    def forward(self, x):
        return x + self.body(x)


def stage(inputs, filters, num_blocks):
    return nn.Sequential(Conv(inputs, filters, 3, 2), *(Residual(filters) for _ in range(num_blocks)))


def neck(inputs, filters):
    return nn.Sequential(
        Conv(inputs, filters, 1),
        Conv(filters, 2 * filters, 3),
        Conv(2 * filters, filters, 1),
        Conv(filters, 2 * filters, 3),
        Conv(2 * filters, filters, 1),
    )


class YoloV3(nn.Module):
    """Images [B, 3, H, W] -> logits [B, A * (5 + C), h, w] at strides 8, 16, 32."""

    def __init__(self, num_classes, num_anchors=3):
        super().__init__()
        outputs = num_anchors * (5 + num_classes)
        self.to_stride8 = nn.Sequential(
            Conv(3, 32, 3), stage(32, 64, 1), stage(64, 128, 2), stage(128, 256, 8)
        )
        self.to_stride16 = stage(256, 512, 8)
        self.to_stride32 = stage(512, 1024, 4)
        self.neck_large, self.neck_medium, self.neck_small = neck(1024, 512), neck(768, 256), neck(384, 128)
        self.up_large, self.up_medium = Conv(512, 256, 1), Conv(256, 128, 1)
        self.head_large = nn.Sequential(Conv(512, 1024, 3), nn.Conv2d(1024, outputs, 1))
        self.head_medium = nn.Sequential(Conv(256, 512, 3), nn.Conv2d(512, outputs, 1))
        self.head_small = nn.Sequential(Conv(128, 256, 3), nn.Conv2d(256, outputs, 1))

    def forward(self, images):
        stride8 = self.to_stride8(images)
        stride16 = self.to_stride16(stride8)
        large = self.neck_large(self.to_stride32(stride16))
        up = nn.functional.interpolate(self.up_large(large), scale_factor=2)
        medium = self.neck_medium(torch.cat([up, stride16], dim=1))
        up = nn.functional.interpolate(self.up_medium(medium), scale_factor=2)
        small = self.neck_small(torch.cat([up, stride8], dim=1))
        return self.head_small(small), self.head_medium(medium), self.head_large(large)


def build(num_classes=80, num_threads=None):
    """The network with channels last, the fastest layout of PyTorch on a CPU."""
    if num_threads:
        torch.set_num_threads(num_threads)
    return YoloV3(num_classes).to(memory_format=torch.channels_last)


def copy_weights(net, model):
    """Gives the network the weights of our `yolov3`."""
    # In Darknet's order, in which our layers are numbered: each scale's neck, head and way up to the next.
    parts = (net.to_stride8, net.to_stride16, net.to_stride32, net.neck_large, net.head_large, net.up_large,
             net.neck_medium, net.head_medium, net.up_medium, net.neck_small, net.head_small)
    modules = [module for part in parts for module in part.modules()]
    for kind, prefix, names in (
            (nn.Conv2d, "conv_", {"weight": "kernel", "bias": "bias"}),
            (nn.BatchNorm2d, "bn_", {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean",
                                     "running_var": "moving_variance"})):
        mine = [module for module in modules if isinstance(module, kind)]
        layers = [layer for layer in model.layers if layer.name.startswith(prefix)]
        layers.sort(key=lambda layer: layer.name)
        for module, layer in zip(mine, layers, strict=True):
            for name, other in names.items():
                if getattr(module, name) is not None:
                    value = getattr(layer, other).numpy()
                    value = value.transpose(3, 2, 0, 1).copy() if other == "kernel" else value
                    getattr(module, name).data.copy_(torch.from_numpy(value))


def inference(model, images, *, bfloat16=False, float32=()):
    """Returns a function that runs the network once on images [B, H, W, 3] (NumPy, 0..1).

    bfloat16: the weights are converted here, as those of our bundle are when it is written; autocast alone would do it
    in every run. float32: names of the parts of the network that keep theirs.
    """
    model = model.eval()
    if bfloat16:
        model = copy.deepcopy(model)
        for name, part in model.named_children():
            if name not in float32:
                part.to(torch.bfloat16)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).to(memory_format=torch.channels_last)

    def run():
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return model(x)

    return run


def article_loss(outputs, grids, truth_xyxy, anchors, image_size, ignore_threshold=0.5):
    """The article's loss of a batch, summed; outputs of `YoloV3`, grids [B, h, w, A, 5 + C], anchors [3, A, 2]."""
    bce = nn.functional.binary_cross_entropy_with_logits
    total = 0.0
    for output, grid, scale_anchors in zip(outputs, grids, anchors):
        batch, cells, _, num_anchors, depth = grid.shape
        logits = output.float().permute(0, 2, 3, 1).reshape(batch, cells, cells, num_anchors, depth)
        obj = grid[..., 4]
        sizes = torch.exp(grid[..., 2:4]) * scale_anchors / image_size
        weight = obj * (2 - sizes[..., 0] * sizes[..., 1])
        with torch.no_grad():
            steps = torch.arange(cells, dtype=torch.float32)
            corners = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1)[:, :, None]
            centers = (torch.sigmoid(logits[..., :2]) + corners) / cells
            halves = torch.exp(logits[..., 2:4]) * scale_anchors / image_size / 2
            predicted = torch.cat([centers - halves, centers + halves], -1).reshape(batch, -1, 1, 4)
            truth = truth_xyxy[:, None]
            shared = (torch.minimum(predicted[..., 2:], truth[..., 2:])
                      - torch.maximum(predicted[..., :2], truth[..., :2])).clamp(min=0).prod(-1)
            areas = [(boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (predicted, truth)]
            iou = (shared / (areas[0] + areas[1] - shared)).amax(-1).reshape(obj.shape)
            keep = (iou <= ignore_threshold).float()
        objectness = bce(logits[..., 4], obj, reduction="none")
        total = total + 5 * (weight * ((grid[..., :2] - torch.sigmoid(logits[..., :2])) ** 2).sum(-1)).sum()
        total = total + 5 * (weight * ((grid[..., 2:4] - logits[..., 2:4]) ** 2).sum(-1)).sum()
        total = total + (obj * objectness).sum() + 0.5 * ((1 - obj) * keep * objectness).sum()
        total = total + (obj * bce(logits[..., 5:], grid[..., 5:], reduction="none").sum(-1)).sum()
    return total
