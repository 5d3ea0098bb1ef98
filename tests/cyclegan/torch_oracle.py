"""CycleGAN's networks and one step of its training in PyTorch, in float64, on the weights of ours.

Weights are dicts {name: tensor in TensorFlow's layout}, so that gradients compare as they are. Pictures are
[B, 3, H, W].
"""

import torch
import torch.nn.functional as F

from common import training


def weights_of(model):
    """{path: float64 leaf} of a Keras model."""
    return {name: torch.tensor(variable.numpy(), dtype=torch.float64, requires_grad=True)
            for name, variable in training.named_variables(model).items()}


def part(weights, prefix):
    """The weights of one of the networks in a model of two."""
    return {name.removeprefix(f"{prefix}/"): weight for name, weight in weights.items()
            if name.startswith(f"{prefix}/")}


def pictures(images):
    """[B, H, W, 3] as float64 [B, 3, H, W]."""
    return torch.tensor(images, dtype=torch.float64).permute(0, 3, 1, 2)


def conv(w, name, x, strides=1, same=False):
    kernel = w[f"{name}/kernel"].permute(3, 2, 0, 1)
    if same:  # TensorFlow puts the odd row and column at the bottom and on the right
        pads = []
        for side in (x.shape[3], x.shape[2]):
            total = max((-(-side // strides) - 1) * strides + kernel.shape[-1] - side, 0)
            pads += [total // 2, total - total // 2]
        x = F.pad(x, pads)
    return F.conv2d(x, kernel, w.get(f"{name}/bias"), strides)


def norm(w, name, x):
    return F.instance_norm(x, weight=w[f"{name}_norm/gamma"], bias=w[f"{name}_norm/beta"], eps=1e-5)


def reflect(x, padding):
    return F.pad(x, [padding] * 4, mode="reflect")


def generator(w, x, num_blocks, upsample="transpose"):
    x = torch.relu(norm(w, "first", conv(w, "first", reflect(x, 3))))
    for name in ("down_1", "down_2"):
        x = torch.relu(norm(w, name, conv(w, name, x, 2, same=True)))
    for number in range(1, num_blocks + 1):
        name = f"residual_{number}"
        y = torch.relu(norm(w, f"{name}_1", conv(w, f"{name}_1", reflect(x, 1))))
        x = x + norm(w, f"{name}_2", conv(w, f"{name}_2", reflect(y, 1)))
    for name in ("up_1", "up_2"):
        if upsample == "transpose":
            height, width = 2 * x.shape[2], 2 * x.shape[3]
            x = F.conv_transpose2d(x, w[f"{name}/kernel"].permute(3, 2, 0, 1), stride=2)[..., :height, :width]
        else:
            x = conv(w, name, reflect(F.interpolate(x, scale_factor=2, mode="nearest"), 1))
        x = torch.relu(norm(w, name, x))
    return torch.tanh(conv(w, "last", reflect(x, 3)))


def discriminator(w, x):
    x = F.leaky_relu(conv(w, "conv_1", x, 2, same=True), 0.2)
    for number, strides in ((2, 2), (3, 2), (4, 1)):
        name = f"conv_{number}"
        x = F.leaky_relu(norm(w, name, conv(w, name, x, strides, same=True)), 0.2)
    return conv(w, "patches", x, same=True)


def step(generators, discriminators, a, b, *, num_blocks, shown=None):
    """(parts, total of the generators, total of the discriminators) as the article spells a step, six passes.

    generators, discriminators: `weights_of` the models of two. shown: {"a", "b"}, what the discriminators get in
    place of the fakes of this step.
    """
    def network(way):
        return lambda x: generator(part(generators, f"generator_{way}"), x, num_blocks)

    def judge(side):
        return lambda x: discriminator(part(discriminators, f"discriminator_{side}"), x)

    a2b, b2a, judge_a, judge_b = network("a2b"), network("b2a"), judge("a"), judge("b")
    fake_b, fake_a = a2b(a), b2a(b)
    mse, mae = F.mse_loss, F.l1_loss
    parts = {"gan_a2b": mse(judge_b(fake_b), torch.ones_like(judge_b(fake_b))),
             "gan_b2a": mse(judge_a(fake_a), torch.ones_like(judge_a(fake_a))),
             "cycle_a": mae(b2a(fake_b), a), "cycle_b": mae(a2b(fake_a), b),
             "identity_a2b": mae(a2b(b), b), "identity_b2a": mae(b2a(a), a)}
    generator_total = (parts["gan_a2b"] + parts["gan_b2a"] + 10 * (parts["cycle_a"] + parts["cycle_b"])
                       + 5 * (parts["identity_a2b"] + parts["identity_b2a"]))
    shown = shown or {"a": fake_a.detach(), "b": fake_b.detach()}
    for side, real, judged in (("a", a, judge_a), ("b", b, judge_b)):
        yes, no = judged(real), judged(shown[side])
        parts[f"discriminator_{side}"] = (mse(yes, torch.ones_like(yes)) + mse(no, torch.zeros_like(no))) * 0.5
    return parts, generator_total, parts["discriminator_a"] + parts["discriminator_b"]
