"""Networks of convolutions, pooling, joined and resampled images, of every awkward shape."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from float64_networks import Model, check, conv, image
from torch import nn

# The channels of the input, its size, and convolutions [out channels, kernel] with their options.
CONVOLUTIONS = {
    "strides": (5, (13, 11), [
        (11, 3, {"stride": 2}), (7, 3, {"stride": 3, "padding": 1}), (4, 1, {"stride": 2}), (4, 2, {"stride": 2}),
        (3, 5, {"stride": 4, "padding": 2}), (6, (3, 1), {"stride": (2, 1), "padding": (1, 0)}),
        (6, 3, {"stride": (1, 2), "padding": 1}), (3, 3, {"stride": 5}),
    ]),
    "padding": (5, (9, 6), [
        (11, 3, {"padding": (2, 0)}), (7, (1, 5), {"padding": (0, 2)}), (4, (7, 1), {"padding": (3, 0)}),
        (4, 2, {"padding": "same"}), (3, 4, {"padding": "same", "dilation": 2}), (3, (2, 3), {"padding": (1, 4)}),
        (3, 3, {"padding": 3}), (3, 3, {"padding": "valid"}), (3, 3, {"padding": 1, "padding_mode": "reflect"}),
        (3, 3, {"padding": 1, "padding_mode": "circular"}),
    ]),
    "dilation and groups": (6, (10, 7), [
        (11, 3, {"padding": 2, "dilation": 2}), (7, 3, {"dilation": (3, 1)}), (4, 1, {"groups": 2}),
        (4, 3, {"padding": 4, "dilation": 4, "stride": 2}), (9, 3, {"groups": 3, "padding": 1}),
        (12, 3, {"groups": 6, "padding": 1}), (6, 5, {"groups": 6, "stride": 2, "padding": 2}),
        (6, 3, {"groups": 6, "padding": 2, "dilation": 2}), (9, 3, {"groups": 3, "stride": 3}),
    ]),
    "single positions": (17, (1, 1), [
        (11, 1, {}), (5, 3, {"padding": 1}), (6, 3, {"padding": 1, "stride": 2}), (17, 3, {"padding": 1, "groups": 17}),
        (3, 1, {"padding": 1, "stride": 2}), (3, 5, {"padding": 2}), (17, 1, {"bias": False}),
    ]),
    "single rows": (3, (1, 19), [
        (11, (1, 3), {}), (5, (1, 3), {"padding": (0, 1)}), (6, (1, 3), {"stride": (1, 2)}), (6, 3, {"padding": 1}),
    ]),
    "single columns": (3, (19, 1), [
        (11, (3, 1), {}), (5, (3, 1), {"padding": (1, 0)}), (6, (3, 1), {"stride": (2, 1)}), (6, 3, {"padding": 1}),
    ]),
    "kernels as large as the image": (3, (7, 6), [
        (11, (7, 6), {}), (5, 7, {"padding": 2}), (4, (7, 6), {"padding": 1}), (3, 9, {"padding": 4}),
        (3, 5, {"padding": 9}),
    ]),
    "single channels": (1, (8, 8), [(1, 3, {}), (33, 3, {"padding": 1}), (17, 1, {}), (1, 1, {"stride": 2})]),
}  # fmt: skip


SLOW = ("strides", "padding", "dilation and groups")  # kernels of many shapes to compile


@pytest.mark.parametrize(
    ("name", "batch"),
    [
        ("single positions", 1),
        *(pytest.param(name, 3, marks=pytest.mark.slow if name in SLOW else ()) for name in CONVOLUTIONS),
    ],
)
def test_convolutions_of_every_shape_are_compiled_to_kernels(name, batch):
    channels, size, cases = CONVOLUTIONS[name]
    layers = {
        f"{index}": nn.Conv2d(channels, out, kernel, **options) for index, (out, kernel, options) in enumerate(cases)
    }
    compiled = check(Model(lambda m, x: {key: m[key](x) for key in layers}, **layers), (image(batch, channels, *size),))
    assert compiled.report.products == len(cases)
    assert name == "padding" or compiled.report.fallbacks == ()  # two pad by an operator of their own


def test_convolutions_follow_each_other_with_every_change_of_the_image():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2),
        nn.Conv2d(8, 9, 5, padding=2), nn.SiLU(), nn.Conv2d(9, 16, 2, stride=2), nn.Conv2d(16, 17, 3, bias=False),
        nn.BatchNorm2d(17), nn.ReLU6(), nn.Conv2d(17, 5, 1),
    )  # fmt: skip
    assert check(model, (image(2, 3, 15, 17),)).report.fallbacks == ()


def test_mobile_blocks_are_compiled_to_kernels():
    def block(inputs, outputs, stride, kernel):
        wide = inputs * 3
        depthwise = nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=wide, bias=False)
        norms = [nn.BatchNorm2d(channels) for channels in (wide, wide, outputs)]
        return nn.Sequential(
            nn.Conv2d(inputs, wide, 1, bias=False), norms[0], nn.ReLU6(inplace=True), depthwise, norms[1],
            nn.Hardswish(inplace=True), nn.Conv2d(wide, outputs, 1, bias=False), norms[2],
        )  # fmt: skip

    def forward(m, x):
        x = m["b"](m["a"](x))
        x = x + m["c"](x)
        return m["l"](x.mean((2, 3)))

    layers = {"a": block(3, 6, 2, 3), "b": block(6, 7, 1, 5), "c": block(7, 7, 1, 3), "l": nn.Linear(7, 4)}
    assert check(Model(forward, **layers), (image(2, 3, 11, 9),)).report.fallbacks == ()


POOLS = [
    lambda y: F.max_pool2d(y, 2),
    lambda y: F.max_pool2d(y, 3, 2, 1),
    lambda y: F.max_pool2d(y, 3, 2, 1, ceil_mode=True),
    lambda y: F.max_pool2d(y, 2, 3, dilation=2),
    lambda y: F.max_pool2d(y, (3, 2), stride=(1, 2), padding=(1, 0)),
    lambda y: F.max_pool2d(y, 3, 1, 1),
    lambda y: F.avg_pool2d(y, 2),
    lambda y: F.avg_pool2d(y, 3, 2, 1),
    lambda y: F.avg_pool2d(y, 3, 2, 1, count_include_pad=False),
    lambda y: F.avg_pool2d(y, 3, 2, 1, ceil_mode=True),
    lambda y: F.avg_pool2d(y, 3, 2, 1, ceil_mode=True, count_include_pad=False),
    lambda y: F.avg_pool2d(y, 3, divisor_override=2),
    lambda y: F.adaptive_avg_pool2d(y, (3, 5)),
    lambda y: F.adaptive_avg_pool2d(y, 1),
    lambda y: F.adaptive_avg_pool2d(y, (None, 4)),
    lambda y: F.adaptive_avg_pool2d(y, (20, 20)),
    lambda y: y.mean((-2, -1), keepdim=True),
    lambda y: y.mean((2, 3)),
]
OTHER_POOLS = [
    lambda y: F.adaptive_max_pool2d(y, 1),
    lambda y: F.lp_pool2d(y, 2, 2),
    lambda y: y.amax((2, 3)),
    lambda y: (y.mean(2), y.mean(1), y.mean(), y.sum((2, 3)), y.std((2, 3))),
    lambda y: y.permute(0, 2, 3, 1).mean((2, 3)),
    lambda y: y.flatten(2).mean(-1),
]


def test_pooling_of_every_kind_is_compiled_to_kernels():
    model = Model(lambda m, x: [pool(m["a"](x)) for pool in POOLS], a=conv(3, 5))
    assert check(model, (image(2, 3, 14, 9),)).report.fallbacks == ()


def test_reductions_without_a_kernel_are_right():
    check(Model(lambda m, x: [pool(m["a"](x)) for pool in OTHER_POOLS], a=conv(3, 5)), (image(2, 3, 14, 9),))


def test_pooling_of_the_input_and_of_single_positions_is_right():
    def forward(m, x):
        y = m["a"](F.max_pool2d(x, 3, 2, 1))
        return F.max_pool2d(y, 3, 1, 1), F.avg_pool2d(y, 3, 2, 1), F.adaptive_avg_pool2d(y, (2, 2)), F.avg_pool2d(x, 2)

    check(Model(forward, a=conv(3, 5)), (image(2, 3, 2, 2),))


def test_single_images_without_a_batch_are_pooled():
    def forward(m, x):
        y = m["a"](x)
        return F.max_pool2d(y, 2), F.avg_pool2d(y, 3, 2, 1), m["l"](F.adaptive_avg_pool2d(y, 1).flatten())

    assert check(Model(forward, a=conv(3, 5), l=nn.Linear(5, 2)), (image(3, 14, 9),)).report.fallbacks == ()


def test_joined_images_are_right():
    def forward(m, x):
        a, b, last = m["a"](x), m["b"](x), partial(torch.permute, dims=(0, 2, 3, 1))
        return {
            "read by a convolution": m["d"](torch.cat([a, b], 1)),
            "with the input": torch.cat([x, a, x], 1),
            "one twice": torch.cat([a, a, b], dim=-3),
            "channels last": torch.cat([last(a), last(b)], 3),
            "rows": torch.cat([a, b], 2),
            "columns": torch.cat([a, b], -1),
            "images": torch.cat([a, b], 0),
            "stacked": torch.stack([a, b]),
            "with a constant": torch.cat([a, torch.ones(2, 1, 7, 7)], 1),
            "one alone": torch.cat([a], 1),
        }

    check(Model(forward, a=conv(3, 5), b=conv(3, 5), d=conv(10, 4)), (image(2, 3, 7, 7),))


def test_a_dense_block_is_compiled_to_kernels():
    def forward(m, x):
        features = [m["a"](x)]
        for name in "bc":
            features.append(m[name](torch.cat(features, 1)))
        return m["d"](F.avg_pool2d(torch.cat(features, 1), 2))

    layers = {
        name: nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), conv(channels, outputs))
        for name, channels, outputs in (("b", 8, 5), ("c", 13, 5), ("d", 18, 4))
    }
    assert check(Model(forward, a=conv(3, 8), **layers), (image(2, 3, 9, 7),)).report.fallbacks == ()


RESAMPLED = {
    "nearest": lambda y: F.interpolate(y, scale_factor=2),
    "bilinear": lambda y: F.interpolate(y, size=(9, 7), mode="bilinear"),
    "pixel shuffle": lambda y: F.pixel_shuffle(torch.cat([y] * 4, 1), 2),
    "padded": lambda y: F.pad(y, (1, 2, 0, 3)),
    "rolled": lambda y: y.roll((1, -1), (2, 3)),
    "cropped": lambda y: y[:, :, 1:-1, ::2],
    "flipped": lambda y: y.flip(3),
    "channels shuffled": lambda y: F.channel_shuffle(y, 2),
    "split": lambda y: torch.cat(y.chunk(2, 1)[::-1], 1),
    "transposed convolution": lambda y: F.conv_transpose2d(y, y.new_ones(6, 6, 2, 2) / 9, stride=2),
    "windows": lambda y: F.unfold(y, 3, padding=1).view(2, 54, 5, 4)[:, :6],
}


def test_images_that_other_operators_change_between_convolutions_are_right():
    def forward(m, x):
        y = F.relu(m["a"](x))
        return {name: m[name](change(y)) for name, change in RESAMPLED.items()}

    model = Model(forward, a=conv(3, 6), **{name: conv(6, 4, 1) for name in RESAMPLED})
    assert check(model, (image(2, 3, 5, 4),)).report.products == 1 + len(RESAMPLED)


def test_a_small_u_net_is_right():
    def forward(m, x):
        a = F.relu(m["a"](x))
        b = F.relu(m["b"](F.max_pool2d(a, 2)))
        return m["c"](torch.cat([a, F.interpolate(b, size=a.shape[-2:], mode="nearest")], 1))

    check(Model(forward, a=conv(3, 5), b=conv(5, 4), c=conv(9, 2)), (image(1, 3, 9, 7),))


class Block(nn.Module):
    """ConvNeXt's: channels are moved to the end for a norm and two linear layers."""

    def __init__(self, channels):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.wide, self.narrow = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.narrow(F.gelu(self.wide(y)))).permute(0, 3, 1, 2)


class NormFirst(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("shape", "fallbacks"), [((2, 3, 8, 8), 0), ((1, 3, 7, 5), None)])
def test_a_small_convnext_is_right(shape, fallbacks):
    def forward(m, x):
        return m["head"](m["norm"](m["body"](x).mean([-2, -1])))

    body = nn.Sequential(
        nn.Conv2d(3, 12, 2, stride=2),
        NormFirst(12),
        Block(12),
        NormFirst(12),
        nn.Conv2d(12, 20, 2, stride=2),
        Block(20),
    )
    compiled = check(Model(forward, body=body, norm=nn.LayerNorm(20), head=nn.Linear(20, 5)), (image(*shape),))
    assert fallbacks in (None, len(compiled.report.fallbacks))
