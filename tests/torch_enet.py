"""ENet in PyTorch, as its paper describes it; names are those of `jaxunpool.models.ENet`."""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional

SECTION = [
    (3, 1, False),  # window, dilation, asymmetric
    (3, 2, False),
    (5, 1, True),
    (3, 4, False),
    (3, 1, False),
    (3, 8, False),
    (5, 1, True),
    (3, 16, False),
]


def block(conv, features, activation=None):
    named = {"conv": conv, "norm": nn.BatchNorm2d(features)}
    if activation is not None:
        named["activation"] = activation()
    return nn.Sequential(OrderedDict(named))


def conv(i, o, window, **options):
    return nn.Conv2d(i, o, window, bias=False, **options)


class Initial(nn.Module):
    def __init__(self, features, activation):
        super().__init__()
        self.conv = conv(3, features - 3, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(features)
        self.activation = activation()

    def forward(self, x):
        pooled = functional.max_pool2d(x, 3, 2, 1)
        return self.activation(self.norm(torch.cat([self.conv(x), pooled], 1)))


class Bottleneck(nn.Module):
    def __init__(self, features, activation, rate, window, dilation, asymmetric):
        super().__init__()
        inner = features // 4
        self.reduce = block(conv(features, inner, 1), inner, activation)
        span = dilation * (window - 1) // 2
        shapes = [((window, window), (span, span))]
        if asymmetric:
            shapes = [((window, 1), (span, 0)), ((1, window), (0, span))]
        self.convs = nn.Sequential(
            *(
                block(conv(inner, inner, w, padding=p, dilation=dilation), inner, activation)
                for w, p in shapes
            )
        )
        self.expand = block(conv(inner, features, 1), features, activation)
        self.dropout = nn.Dropout2d(rate)
        self.activation = activation()

    def forward(self, x):
        return self.activation(x + self.dropout(self.expand(self.convs(self.reduce(x)))))


class Downsampling(nn.Module):
    def __init__(self, i, o, activation, rate):
        super().__init__()
        inner, self.more = i // 4, o - i
        self.reduce = block(conv(i, inner, 2, stride=2), inner, activation)
        self.conv = block(conv(inner, inner, 3, padding=1), inner, activation)
        self.expand = block(conv(inner, o, 1), o, activation)
        self.dropout = nn.Dropout2d(rate)
        self.activation = activation()

    def forward(self, x):
        self.size = x.shape[2:]
        pooled, self.indices = functional.max_pool2d(x, 2, return_indices=True)
        y = self.dropout(self.expand(self.conv(self.reduce(x))))
        zeros = pooled.new_zeros(len(x), self.more, *pooled.shape[2:])
        return self.activation(torch.cat([pooled, zeros], 1) + y)


class Upsampling(nn.Module):
    def __init__(self, i, o, activation, rate):
        super().__init__()
        inner = i // 4
        self.main = block(conv(i, o, 1), o)
        self.reduce = block(conv(i, inner, 1), inner, activation)
        transposed = nn.ConvTranspose2d(inner, inner, 2, stride=2, bias=False)
        self.conv = block(transposed, inner, activation)
        self.expand = block(conv(inner, o, 1), o)
        self.dropout = nn.Dropout2d(rate)
        self.activation = activation()

    def forward(self, x, down):
        main = self.main(x)
        u = functional.max_unpool2d(main, down.indices, 2, output_size=down.size)
        y = self.reduce(x)
        y = self.conv.conv(y, output_size=down.size)
        y = self.conv.activation(self.conv.norm(y))
        return self.activation(u + self.dropout(self.expand(y)))


class Encoder(nn.Module):
    def __init__(self, features, first, section, rates):
        super().__init__()
        half, fourth, eighth = features
        low, high = rates
        self.stages = nn.ModuleList(
            [
                nn.ModuleList([Initial(half, nn.PReLU)]),
                nn.ModuleList(
                    [
                        Downsampling(half, fourth, nn.PReLU, low),
                        *(Bottleneck(fourth, nn.PReLU, low, *each) for each in first),
                    ]
                ),
                nn.ModuleList(
                    [
                        Downsampling(fourth, eighth, nn.PReLU, high),
                        *(Bottleneck(eighth, nn.PReLU, high, *each) for each in 2 * section),
                    ]
                ),
            ]
        )


class ENet(nn.Module):
    """After a call `seen` holds what each block gave, in order."""

    def __init__(
        self,
        classes,
        features=(16, 64, 128),
        first=4 * SECTION[:1],
        section=SECTION,
        rates=(0.01, 0.1),
    ):
        super().__init__()
        half, fourth, eighth = features
        high = rates[1]
        self.encoder = Encoder(features, first, section, rates)
        regular = lambda width: Bottleneck(width, nn.ReLU, high, 3, 1, False)
        self.stages = nn.ModuleList(
            [
                nn.ModuleList(
                    [Upsampling(eighth, fourth, nn.ReLU, high), regular(fourth), regular(fourth)]
                ),
                nn.ModuleList([Upsampling(fourth, half, nn.ReLU, high), regular(half)]),
            ]
        )
        self.last = nn.ConvTranspose2d(half, classes, 3, stride=2, padding=1, bias=False)

    def forward(self, x):
        size, self.seen = x.shape[2:], []
        for stage in self.encoder.stages:
            for each in stage:
                x = each(x)
                self.seen.append(x)
        downs = [stage[0] for stage in self.encoder.stages][:0:-1]
        for stage, down in zip(self.stages, downs):
            x = stage[0](x, down)
            self.seen.append(x)
            for each in stage[1:]:
                x = each(x)
                self.seen.append(x)
        return self.last(x, output_size=size)
