"""Dense baselines: one named configuration per published row.

LeNets: Adam 1e-3, batch 100, on MNIST, about 1.6 % (300-100) and 0.8 % (LeNet-5) error.
CIFAR ResNets: SGD 0.1, momentum 0.9, batch 128, 164 epochs, x0.1 after 81 and 122, weight decay 1e-4, pad-crop and
flip; ResNet-110 reaches 6.11 % error on CIFAR-10. `smoke` is a few seconds on the embedded digits, for tests;
`smoke_resnet` is ResNet-20 on them, a network with blocks.
"""

from __future__ import annotations

from dataclasses import replace

from resless.config import DataConfig, OptimConfig, RunConfig, TrainConfig

_MNIST = TrainConfig(
    data=DataConfig(dataset="mnist"),
    optim=OptimConfig(optimizer="adam", lr=1e-3, batch_size=100, epochs=40, schedule="cosine"),
    run=RunConfig(checkpoint_epochs=5),
)
_CIFAR = TrainConfig(
    data=DataConfig(dataset="cifar10", pad=4, flip=True),
    optim=OptimConfig(lr=0.1, weight_decay=1e-4, batch_size=128, epochs=164, milestones=(81, 122)),
    run=RunConfig(mixed_precision="bf16", channels_last=True),
)

TRAIN: dict[str, TrainConfig] = {
    "smoke": TrainConfig(optim=OptimConfig(optimizer="adam", lr=3e-3, batch_size=64, epochs=8)),
    "smoke_resnet": TrainConfig(
        model="resnet20",
        data=DataConfig(pad=1),
        optim=OptimConfig(optimizer="adam", lr=3e-3, batch_size=64, epochs=10, schedule="cosine"),
        run=RunConfig(run_dir="runs/smoke_resnet"),
    ),
    "lenet_300_100": replace(_MNIST, model="lenet_300_100"),
    "lenet5": replace(_MNIST, model="lenet5", run=replace(_MNIST.run, mixed_precision="bf16", channels_last=True)),
    **{f"resnet{depth}": replace(_CIFAR, model=f"resnet{depth}") for depth in (20, 32, 44, 56, 110, 164)},
}
