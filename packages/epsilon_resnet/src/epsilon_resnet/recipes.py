"""One configuration for each experiment of the paper (Yu et al., CVPR 2018, section 4), and `smoke`. Free of torch.

Error %, ε-ResNet against the plain network, and blocks dropped, layers 110 / 200 / 500 / 752 (n 18 / 33 / 83 / 125):
CIFAR-10    5.24 5.46 5.21 5.22  against   6.05  5.73  5.92  5.47, dropped 12 48 187 311
CIFAR-100  26.70 24.21 24.02 23.80 against 27.44 25.47 24.67 24.84, dropped  0 15 143 256
SVHN (110, 200, 302 layers) 1.68 1.66 1.59 against 1.77 1.82 1.72, dropped 8 28 71
ImageNet, top-1: 101 layers 22.7 plain, 23.3 at ε 2.0 (20.12 % smaller), 22.7 at 2.1 (25.60 %); 152 at 1.8 about 22.8
(36.23 %).

Milestones count epochs that are done. The learning rate of CIFAR is 0.1, 0.01 from the 82nd epoch on, 0.001 from the
123rd and 0.0002 from the 300th; once a block was lost in epoch t it is 0.1 again from epoch t+1 on, 0.01 from t+41,
0.001 from t+61 and 0.0002 from t+150.
"""

from __future__ import annotations

from dataclasses import replace

from resless.config import DataConfig

from epsilon_resnet.config import Optim, Run, TrainConfig

_FAST = Run(mixed_precision="auto", channels_last=True)

_CIFAR10 = TrainConfig(
    n=18,
    epsilon=2.5,
    data=DataConfig(dataset="cifar10", pad=4, flip=True, normalize="pixel"),
    optim=Optim(
        lr=0.1,
        weight_decay=2e-4,
        batch_size=128,
        epochs=1000,
        milestones=(81, 122, 299),
        restart_milestones=(41, 61, 150),
        factors=(0.1, 0.01, 0.002),
    ),
    run=_FAST,
)
_CIFAR100 = replace(_CIFAR10, data=replace(_CIFAR10.data, dataset="cifar100"))
_SVHN = replace(
    _CIFAR10,
    epsilon=1.5,
    data=DataConfig(dataset="svhn", train_split="train+extra", pad=4, brightness=0.1, contrast=0.2, normalize="pixel"),
    optim=replace(_CIFAR10.optim, epochs=200, milestones=(19, 27, 49), restart_milestones=(10, 14, 25), factors=()),
)
_IMAGENET = TrainConfig(
    depth=101,
    epsilon=2.0,
    data=DataConfig(
        dataset="imagenet", stream=True, workers=8, brightness=0.4, contrast=0.4, saturation=0.4, lighting=0.1
    ),
    optim=Optim(
        lr=0.1,
        nesterov=True,
        weight_decay=1e-4,
        batch_size=256,
        epochs=110,
        milestones=(29, 59, 84, 94),
    ),
    run=replace(_FAST, checkpoint_steps=1000),
)

# Deviation: half an hour on one core. In so few epochs, smaller batches and a stronger weight decay take a discarded
# block's weights down in time; fewer layers need a larger ε, since each of them has more to say; the learning rate
# never starts anew, as on ImageNet, or a run would end at a high one; and no block goes in the last epoch before it
# falls, nor after, for the others could not make up for it any more.
_SHORT = replace(
    _CIFAR10,
    n=5,
    epsilon=5.5,
    epsilon_stop=4,
    retire_after=1,
    optim=Optim(
        lr=0.1,
        weight_decay=1e-3,
        batch_size=64,
        epochs=8,
        milestones=(5, 7),
    ),
)

TRAIN: dict[str, TrainConfig] = {
    **{f"cifar10_n{n}": replace(_CIFAR10, n=n) for n in (18, 33, 83, 125)},
    **{f"cifar100_n{n}": replace(_CIFAR100, n=n) for n in (18, 33, 83, 125)},
    **{f"svhn_n{n}": replace(_SVHN, n=n) for n in (18, 33, 50)},
    "imagenet_101_e2.0": _IMAGENET,
    "imagenet_101_e2.1": replace(_IMAGENET, epsilon=2.1),
    "imagenet_152_e1.8": replace(_IMAGENET, depth=152, epsilon=1.8),
    "cifar10_short": _SHORT,
    # The same for the paper's 110 layers, with more epochs; not yet run to its end.
    "cifar10_n18_short": replace(
        _SHORT,
        n=18,
        epsilon=2.5,
        epsilon_stop=17,
        optim=replace(_SHORT.optim, batch_size=128, epochs=30, milestones=(19, 26)),
    ),
    # Deviation: a weight decay that takes a discarded block's weights to nothing within a few epochs of 22 steps; and
    # blocks that go in the first two thirds of the run only, so that the rest settles.
    "smoke": TrainConfig(
        n=3,
        epsilon=3.0,
        epsilon_stop=24,
        retire_after=3,
        data=DataConfig(pad=1),
        optim=Optim(
            lr=0.1,
            weight_decay=8e-3,
            batch_size=64,
            epochs=36,
            milestones=(28, 33),
            restart_milestones=(9, 11),
        ),
    ),
}
