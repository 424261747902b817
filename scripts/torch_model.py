"""ZMAR-SNFlow in PyTorch, written from the specification alone, to compare zmar_jax with.

It computes everything as the release does, nothing folded and nothing hoisted: the dense
3d -> 3d convolution of which two thirds are thrown away, grouped depthwise convolutions, one
convolution of the condition per flow step and net, an inversion of every 1x1 matrix per call.
Arrays are NCHW. The tensors that are published but never used are here, so that a published
state dict loads strictly.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn  # pyright: ignore[reportMissingImports]
from torch_encoder import Encoder, Sizes, conv

QUANTIZATION = 32


def network_input(x: Tensor) -> tuple[Tensor, Tensor]:
    """RGB [B, 3, H, W] in [0, 1] -> log image [B, 3, H, W] and mask of lost pixels [B, 1, H, W]."""
    fractions = x / (x.sum(1, keepdim=True) + 1e-4)
    mask = 1 - (fractions > 0.1).all(1, keepdim=True).float()
    return torch.log(torch.clamp(x + 1e-3, min=1e-3)), mask


class ActNorm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, width, 1, 1))
        self.logs = nn.Parameter(torch.zeros(1, width, 1, 1))

    def forward(self, z: Tensor) -> Tensor:
        return (z + self.bias) * torch.exp(self.logs)

    def reverse(self, z: Tensor) -> Tensor:
        return z * torch.exp(-self.logs) - self.bias

    def logdet(self, z: Tensor) -> Tensor:
        return z.shape[2] * z.shape[3] * self.logs.sum()


class InvConv(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.linalg.qr(torch.randn(width, width))[0])

    def forward(self, z: Tensor) -> Tensor:
        return F.conv2d(z, self.weight[:, :, None, None])

    def reverse(self, z: Tensor) -> Tensor:
        inverse = torch.linalg.inv(self.weight.double()).float()
        return F.conv2d(z, inverse[:, :, None, None])

    def logdet(self, z: Tensor) -> Tensor:
        return z.shape[2] * z.shape[3] * torch.linalg.slogdet(self.weight)[1]


class NormedConv(nn.Conv2d):
    """A convolution without bias and its actnorm."""

    def __init__(self, c_in: int, c_out: int, size: int):
        super().__init__(c_in, c_out, size, padding=size // 2, bias=False)
        nn.init.normal_(self.weight, 0, 0.05)
        self.actnorm = ActNorm(c_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.actnorm(super().forward(x))


class ZeroConv(nn.Conv2d):
    def __init__(self, c_in: int, c_out: int):
        super().__init__(c_in, c_out, 3, padding=1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
        self.logs = nn.Parameter(torch.zeros(c_out, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.exp(3 * self.logs)


def coupling_net(c_in: int, hidden: int, c_out: int) -> nn.Sequential:
    first, second = NormedConv(c_in, hidden, 3), NormedConv(hidden, hidden, 1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), ZeroConv(hidden, c_out))


def scale_and_shift(h: Tensor) -> tuple[Tensor, Tensor]:
    return torch.sigmoid(h[:, 1::2] + 2) + 1e-4, h[:, 0::2]


class Coupling(nn.Module):
    def __init__(self, width: int, condition: int, hidden: int):
        super().__init__()
        self.fAffine = coupling_net(width // 2 + condition, hidden, width)
        self.fAffine2 = coupling_net(width // 2, hidden, width)
        self.fFeatures = coupling_net(condition, hidden, 2 * width)

    def forward(self, z: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        s0, t0 = scale_and_shift(self.fFeatures(c))
        z1, z2 = ((z + t0) * s0).chunk(2, 1)
        s1, t1 = scale_and_shift(self.fAffine(torch.cat([z1, c], 1)))
        s2, t2 = scale_and_shift(self.fAffine2(z1))
        z = torch.cat([z1, ((z2 + t1) * s1 + t2) * s2], 1)
        return z, sum_log(s0) + sum_log(s1) + sum_log(s2)

    def reverse(self, z: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        z1, z2 = z.chunk(2, 1)
        s2, t2 = scale_and_shift(self.fAffine2(z1))
        s1, t1 = scale_and_shift(self.fAffine(torch.cat([z1, c], 1)))
        z = torch.cat([z1, (z2 / s2 - t2) / s1 - t1], 1)
        s0, t0 = scale_and_shift(self.fFeatures(c))
        return z / s0 - t0, -(sum_log(s0) + sum_log(s1) + sum_log(s2))


def sum_log(s: Tensor) -> Tensor:
    return torch.log(s).sum((1, 2, 3))


class FlowStep(nn.Module):
    def __init__(self, width: int, coupling: Coupling | None):
        super().__init__()
        self.actnorm = ActNorm(width)
        self.invconv = InvConv(width)
        self.affine = coupling

    def forward(self, z: Tensor, logdet: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        logdet = logdet + self.actnorm.logdet(z) + self.invconv.logdet(z)
        z = self.invconv(self.actnorm(z))
        if self.affine is not None:
            z, more = self.affine(z, c)
            logdet = logdet + more
        return z, logdet

    def reverse(self, z: Tensor, logdet: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        if self.affine is not None:
            z, more = self.affine.reverse(z, c)
            logdet = logdet + more
        logdet = logdet - self.actnorm.logdet(z) - self.invconv.logdet(z)
        return self.actnorm.reverse(self.invconv.reverse(z)), logdet


class Squeeze(nn.Module):
    def forward(self, z: Tensor, logdet: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return F.pixel_unshuffle(z, 2), logdet

    def reverse(self, z: Tensor, logdet: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return F.pixel_shuffle(z, 2), logdet


class Flow(nn.Module):
    def __init__(self, sizes: Sizes):
        super().__init__()
        condition = 6 * sizes.dim
        layers: list[nn.Module] = []
        for width in (12, 48, 192):
            layers.append(Squeeze())
            layers += [FlowStep(width, None) for _ in range(sizes.flow_additional_steps)]
            for _ in range(sizes.flow_steps):
                layers.append(FlowStep(width, Coupling(width, condition, sizes.flow_hidden)))
        self.layers = nn.ModuleList(layers)
        self.f = nn.Sequential(conv(320, 384, 3, bias=True))  # never used

    def _layers(self, conditions: tuple[Tensor, ...]) -> list[tuple[Any, Tensor]]:
        length = len(self.layers) // 3
        return [(layer, conditions[i // length]) for i, layer in enumerate(self.layers)]

    def forward(self, x: Tensor, logdet: Tensor, conditions: tuple[Tensor, ...]) -> Any:
        for layer, c in self._layers(conditions):
            x, logdet = layer(x, logdet, c)
        return x, logdet

    def reverse(self, z: Tensor, logdet: Tensor, conditions: tuple[Tensor, ...]) -> Any:
        for layer, c in reversed(self._layers(conditions)):
            z, logdet = layer.reverse(z, logdet, c)
        return z, logdet


class ZmarSNFlow(nn.Module):
    """The whole model; attributes are named as the published keys are."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.RRDB = Encoder(sizes)
        self.flowUpsamplerNet = Flow(sizes)

    def forward(
        self, gt: Tensor, lr: Tensor, mask: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """-> z [B, 192, H/8, W/8], logdet [B] in nats (-log(32) H W included), nll [B]."""
        return self.encode(gt, noise, self.RRDB(lr, mask))

    def encode(
        self, gt: Tensor, noise: Tensor, conditions: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`forward`, given what the encoder made of the image."""
        pixels = gt.shape[2] * gt.shape[3]
        logdet = gt.new_full((gt.shape[0],), -math.log(QUANTIZATION) * pixels)
        z, logdet = self.flowUpsamplerNet(gt + noise / QUANTIZATION, logdet, conditions)
        logprob = -0.5 * (z.float() ** 2 + math.log(2 * math.pi)).sum((1, 2, 3))
        return z, logdet, -(logdet + logprob) / (math.log(2) * pixels)

    def reverse(self, z: Tensor, lr: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """z [B, 192, H/8, W/8] -> x [B, 3, H, W], logdet [B] (from log(32) H W on)."""
        return self.decode(z, self.RRDB(lr, mask))

    def decode(self, z: Tensor, conditions: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """`reverse`, given what the encoder made of the image."""
        pixels = 64 * z.shape[2] * z.shape[3]
        logdet = z.new_full((z.shape[0],), math.log(QUANTIZATION) * pixels)
        return self.flowUpsamplerNet.reverse(z, logdet, conditions)

    def restore(self, image: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> the restoration at heat 0, in [0, 1]."""
        b, _, h, w = image.shape
        z = torch.zeros(b, 192, h // 8, w // 8, device=image.device)
        return self.reverse(z, *network_input(image / 255))[0].clamp(0, 1)


def loaded(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> ZmarSNFlow:
    """The model of these sizes with these weights; those that are not there stay as they begin."""
    model = ZmarSNFlow(Sizes.of(config))
    model.load_state_dict({key: state.get(key, own) for key, own in model.state_dict().items()})
    return model
