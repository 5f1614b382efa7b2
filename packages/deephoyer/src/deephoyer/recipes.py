"""Recipes: one named pair of configurations, for `deephoyer-train` and `deephoyer-prune`, for each published row.

| recipe | the paper (Tables 1 to 4) | regulariser, strength, weight decay | cut |
|---|---|---|---|
| lenet-300-100-element | 98.4 %, 4.6k weights | Hoyer-Square 1e-4, 1e-4 | standard deviations, to 4,600 weights |
| lenet5-element | 99.2 %, 3.5k weights | Hoyer-Square 1e-4, 1e-4 | standard deviations, to 3,500 weights |
| lenet-300-100-structural | 98.2 %, 16.5k MACs | Group-HS 2e-3, 1e-3 | one group norm, to 16,500 MACs |
| lenet5-structural | 99.0 %, 169.9k MACs | Group-HS 4e-3, 1e-3 | group norms by use, to 153,000 MACs |

Strengths were not published; these were found on 10,000 images held out of the training set. The recipes themselves
hold out nothing and select nothing: they train on all 60,000 images and report the last epoch. On one core with bf16
units, LeNet-300-100 took 2 to 3 minutes for both commands, LeNet-5 4 to 9.
`smoke` is seconds on the embedded digits: Group-HS takes LeNet-300-100 from 64-300-100 to about 56-23-17.

Convolution networks start from a dense one, which `--pretrained` names:

| recipe | network and data | training, then fine-tuning | cut |
|---|---|---|---|
| cifar10 | ResNet-20, CIFAR-10 | the paper's: 164 epochs, 0.1, x0.1 after 81 and 122 | fixed threshold |
| imagenet | ResNet-50, ImageNet | the paper's: 90 epochs, 0.1 (then 0.01), x0.1 every 30 | threshold 1e-4 |
| resnet20_short | ResNet-20, CIFAR-10 | 8 and 6 epochs along a cosine | to half of the MACs |
| smoke_resnet | ResNet-8, digits | 8 and 4 epochs, seconds | to 300,000 MACs |

Their strengths were not published either, and have not been searched for: sweep them (`--sweep`). The last two cut
channels of a whole stage, and regularise them as a whole (`--tied`).
"""

from __future__ import annotations

from dataclasses import replace

from resless.config import DataConfig, OptimConfig, RunConfig

from deephoyer.config import PruneConfig, TrainConfig

# Deviation: images move by up to one pixel, weight decay is larger than the paper's, and epochs are fewer, on a cosine
# instead of 250 + 100 at a constant rate; fine-tuning starts at 2e-3, the paper's at 1e-4. Without weight decay a few
# weights grow without end: that lowers, for free, a ratio which does not depend on scale.
_MNIST = DataConfig(dataset="mnist", pad=1)
_TRAIN = OptimConfig("adam", lr=1e-3, batch_size=100, epochs=40, schedule="cosine")
_TUNE = OptimConfig("adam", lr=2e-3, batch_size=100, epochs=30, schedule="cosine")
_CIFAR = DataConfig(dataset="cifar10", pad=4, flip=True)
_CIFAR_OPTIM = OptimConfig(lr=0.1, weight_decay=1e-4, batch_size=128, epochs=164, milestones=(81, 122))
_IMAGENET = DataConfig(dataset="imagenet", stream=True, workers=8)
_IMAGENET_OPTIM = OptimConfig(lr=0.1, weight_decay=1e-4, batch_size=256, epochs=90, milestones=(30, 60))
_SHORT_OPTIM = OptimConfig(lr=0.02, nesterov=True, weight_decay=5e-4, batch_size=128, epochs=8, schedule="cosine")
_DIGITS_OPTIM = OptimConfig("adam", lr=3e-3, weight_decay=1e-4, batch_size=64, epochs=8, schedule="cosine")


def _run(name: str) -> RunConfig:
    """Folders by name, so that the two commands of a recipe find each other without being told."""
    return RunConfig(run_dir=f"runs/{name}", checkpoint_epochs=5)


def _fast_run(name: str) -> RunConfig:
    """The same in the precision and layout in which convolutions run twice as fast, on processors with bf16 units."""
    return replace(_run(name), mixed_precision="auto", channels_last=True)


def _trained(name: str) -> tuple[str]:
    return (f"runs/{name}/model",)


TRAIN: dict[str, TrainConfig] = {
    "lenet-300-100-element": TrainConfig(
        model="lenet_300_100",
        reg="hoyer_square",
        strength=1e-4,
        data=_MNIST,
        optim=replace(_TRAIN, weight_decay=1e-4),
        run=_run("lenet-300-100-element"),
    ),
    "lenet-300-100-structural": TrainConfig(
        model="lenet_300_100",
        structural=True,
        reg="group_hoyer_square",
        strength=2e-3,
        data=_MNIST,
        optim=replace(_TRAIN, weight_decay=1e-3),
        run=_run("lenet-300-100-structural"),
    ),
    "lenet5-element": TrainConfig(
        model="lenet5",
        reg="hoyer_square",
        strength=1e-4,
        data=_MNIST,
        optim=replace(_TRAIN, weight_decay=1e-4, epochs=30),
        run=_fast_run("lenet5-element"),
    ),
    "lenet5-structural": TrainConfig(
        model="lenet5",
        structural=True,
        reg="group_hoyer_square",
        strength=4e-3,
        data=_MNIST,
        optim=replace(_TRAIN, weight_decay=1e-3, epochs=30),
        run=_fast_run("lenet5-structural"),
    ),
    "smoke": TrainConfig(
        model="lenet_300_100",
        structural=True,
        reg="group_hoyer_square",
        strength=3e-2,
        optim=OptimConfig("adam", lr=3e-3, weight_decay=1e-4, batch_size=64, epochs=40, schedule="cosine"),
        run=_run("smoke"),
    ),
    "cifar10": TrainConfig(
        model="resnet20",
        structural=True,
        reg="group_hoyer_square",
        strength=2e-4,
        data=_CIFAR,
        optim=_CIFAR_OPTIM,
        run=_fast_run("deephoyer-cifar10"),
    ),
    "imagenet": TrainConfig(
        model="torchvision/resnet50",
        structural=True,
        reg="group_hoyer_square",
        strength=2e-5,
        data=_IMAGENET,
        optim=_IMAGENET_OPTIM,
        run=_fast_run("deephoyer-imagenet"),
    ),
    "resnet20_short": TrainConfig(
        model="resnet20",
        structural=True,
        reg="group_hoyer_square",
        strength=7.5e-3,
        tied=True,
        data=_CIFAR,
        optim=_SHORT_OPTIM,
        run=_fast_run("deephoyer-resnet20_short"),
    ),
    "smoke_resnet": TrainConfig(
        model="resnet8",
        structural=True,
        reg="group_hoyer_square",
        strength=3e-2,
        tied=True,
        data=DataConfig(pad=1),
        optim=_DIGITS_OPTIM,
        run=_run("smoke_resnet-sparse"),
    ),
}

PRUNE: dict[str, PruneConfig] = {
    "lenet-300-100-element": PruneConfig(
        model=_trained("lenet-300-100-element"),
        rule="elementwise",
        threshold="std",
        target_weights=4_600,
        data=_MNIST,
        optim=_TUNE,
        run=_run("lenet-300-100-element-pruned"),
    ),
    "lenet-300-100-structural": PruneConfig(
        model=_trained("lenet-300-100-structural"),
        rule="group",
        threshold="fixed",
        target_macs=16_500,
        data=_MNIST,
        optim=_TUNE,
        run=_run("lenet-300-100-structural-pruned"),
    ),
    "lenet5-element": PruneConfig(
        model=_trained("lenet5-element"),
        rule="elementwise",
        threshold="std",
        target_weights=3_500,
        data=_MNIST,
        optim=replace(_TUNE, epochs=20),
        run=_fast_run("lenet5-element-pruned"),
    ),
    "lenet5-structural": PruneConfig(
        model=_trained("lenet5-structural"),
        rule="group",
        threshold="macs",
        target_macs=153_000,
        data=_MNIST,
        optim=_TUNE,
        run=_fast_run("lenet5-structural-pruned"),
    ),
    "smoke": PruneConfig(
        model=_trained("smoke"),
        rule="group",
        threshold="fixed",
        sensitivity=0.1,
        optim=OptimConfig("adam", lr=1e-3, batch_size=64, epochs=10),
        run=_run("smoke-pruned"),
    ),
    "cifar10": PruneConfig(
        model=_trained("deephoyer-cifar10"),
        rule="group",
        threshold="fixed",
        sensitivity=1e-2,
        data=_CIFAR,
        optim=_CIFAR_OPTIM,
        run=_fast_run("deephoyer-cifar10-pruned"),
    ),
    "imagenet": PruneConfig(
        model=_trained("deephoyer-imagenet"),
        rule="group",
        threshold="fixed",
        sensitivity=1e-4,
        data=_IMAGENET,
        optim=replace(_IMAGENET_OPTIM, lr=0.01),
        run=_fast_run("deephoyer-imagenet-pruned"),
    ),
    "resnet20_short": PruneConfig(
        model=_trained("deephoyer-resnet20_short"),
        rule="tied",
        threshold="rms",
        target_macs=20_500_000,
        round_to=8,
        data=_CIFAR,
        optim=replace(_SHORT_OPTIM, epochs=6),
        run=_fast_run("deephoyer-resnet20_short-pruned"),
    ),
    "smoke_resnet": PruneConfig(
        model=_trained("smoke_resnet-sparse"),
        rule="tied",
        threshold="rms",
        target_macs=300_000,
        data=DataConfig(pad=1),
        optim=replace(_DIGITS_OPTIM, lr=1e-3, epochs=4),
        run=_run("smoke_resnet-pruned"),
    ),
}
