"""CycleGAN's networks and training in PyTorch, the peer of the benchmarks: the same layers, the paper's pool."""

import random

import torch
from torch import nn
from torch.nn import functional


def norm(channels):
    return nn.InstanceNorm2d(channels, affine=True)


class Same(nn.Conv2d):
    """Convolution that pads as TensorFlow does: the odd row and column at the bottom and on the right."""

    def forward(self, x):
        pads = []
        for side, size, stride in zip(x.shape[:1:-1], self.kernel_size, self.stride):
            total = max((-(-side // stride) - 1) * stride + size - side, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(functional.pad(x, pads))


class Up(nn.ConvTranspose2d):
    def forward(self, x):
        return super().forward(x)[..., :2 * x.shape[2], :2 * x.shape[3]]


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.steps = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3, bias=False), norm(channels), nn.ReLU(),
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3, bias=False), norm(channels))

    def forward(self, x):
        return x + self.steps(x)


def generator(num_blocks=9, filters=64):
    """Pictures [B, 3, H, W] in -1..1, in and out."""
    layers = [nn.ReflectionPad2d(3), nn.Conv2d(3, filters, 7, bias=False), norm(filters), nn.ReLU()]
    for channels in (filters, 2 * filters):
        layers += [Same(channels, 2 * channels, 3, 2, bias=False), norm(2 * channels), nn.ReLU()]
    layers += [Residual(4 * filters) for _ in range(num_blocks)]
    for channels in (4 * filters, 2 * filters):
        layers += [Up(channels, channels // 2, 3, 2, bias=False), norm(channels // 2), nn.ReLU()]
    return nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(filters, 3, 7), nn.Tanh())


def discriminator(filters=64):
    """Pictures to logits [B, 1, H / 8, W / 8]."""
    layers, channels = [Same(3, filters, 4, 2), nn.LeakyReLU(0.2)], filters
    for stride in (2, 2, 1):
        layers += [Same(channels, 2 * channels, 4, stride, bias=False), norm(2 * channels), nn.LeakyReLU(0.2)]
        channels *= 2
    return nn.Sequential(*layers, Same(channels, 1, 4))


def copy_weights(net, model):
    """Copies the weights of a Keras network, layer after layer, into the same network of PyTorch."""
    theirs = [module for module in net.modules() if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d,
                                                                        nn.InstanceNorm2d))]
    ours = [layer for layer in model.layers if layer.weights]
    with torch.no_grad():
        for layer, module in zip(ours, theirs, strict=True):
            values = [torch.from_numpy(value) for value in layer.get_weights()]
            if values[0].ndim == 4:
                values[0] = values[0].permute(3, 2, 0, 1)
            for target, value in zip((module.weight, module.bias), values):
                target.copy_(value)


class Pool:
    """The last pictures, one of which stands in for a new one half of the time."""

    def __init__(self, size):
        self.size, self.images = size, []

    def query(self, image):
        if len(self.images) < self.size:
            self.images.append(image)
            return image
        if random.random() < 0.5:
            return image
        place = random.randrange(self.size)
        image, self.images[place] = self.images[place], image
        return image


class Trainer:
    """Both steps as the authors' program does them: six passes of the generators, the fakes made once."""

    def __init__(self, pool_size=50, learning_rate=2e-4):
        self.a2b, self.b2a, self.judge_a, self.judge_b = networks = \
            generator(), generator(), discriminator(), discriminator()
        for net in networks:
            net.to(memory_format=torch.channels_last)

        def adam(*nets):
            weights = [weight for net in nets for weight in net.parameters()]
            return torch.optim.Adam(weights, learning_rate, (0.5, 0.999), fused=True)

        self.generators, self.judges = adam(self.a2b, self.b2a), adam(self.judge_a, self.judge_b)
        self.pools = Pool(pool_size), Pool(pool_size)

    def step(self, a, b, bfloat16=False):
        """One step on pictures [1, 3, S, S]; returns the two totals."""
        def mse(logits, target):
            return ((logits.float() - target) ** 2).mean()

        def mae(x, y):
            return (x.float() - y).abs().mean()

        judges = [*self.judge_a.parameters(), *self.judge_b.parameters()]
        for weight in judges:
            weight.requires_grad_(False)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            fake_b, fake_a = self.a2b(a), self.b2a(b)
            total = mse(self.judge_b(fake_b), 1) + mse(self.judge_a(fake_a), 1) \
                + 10 * (mae(self.b2a(fake_b), a) + mae(self.a2b(fake_a), b)) \
                + 5 * (mae(self.a2b(b), b) + mae(self.b2a(a), a))
        self.generators.zero_grad(set_to_none=True)
        total.backward()
        self.generators.step()
        for weight in judges:
            weight.requires_grad_(True)
        shown_a, shown_b = (pool.query(fake.detach().float()) for pool, fake in zip(self.pools, (fake_a, fake_b)))
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            judged = sum(0.5 * (mse(judge(real), 1) + mse(judge(shown), 0)) for judge, real, shown in (
                (self.judge_a, a, shown_a), (self.judge_b, b, shown_b)))
        self.judges.zero_grad(set_to_none=True)
        judged.backward()
        self.judges.step()
        return total.item(), judged.item()
