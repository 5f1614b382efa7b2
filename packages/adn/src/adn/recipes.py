"""One configuration for each published network (Kang and Lee, NeurIPS 2024, section 4), and `smoke`. Free of torch.

ImageNet top-1 %, nothing skipped and everything skipped (F runs a stage in full, T skips its last blocks):
resnet50 77.6 (TFFF 77.1, TTFF 76.5) 76.1; resnet50_v2 80.5 (80.4, 79.9, TTTF 78.7) 78.4; mobilenet_v2 72.5, 70.6;
swin_t 81.6 (80.8, 80.0) 78.0; vit_b_16 81.4 (FFFT 81.2, TTFF 80.9, TTFT 80.7) 80.6.
Networks trained alone: resnet50 76.7, and its base-net 75.0.

The CIFAR ResNets are not the paper's: schedule and augmentation are those of `resless-train --recipe resnet20`.
"""

from __future__ import annotations

from dataclasses import replace

from resless.config import DataConfig

from adn.config import Optim, Run, TrainConfig

_IMAGENET = DataConfig(dataset="imagenet", stream=True, workers=8)
_FAST = Run(mixed_precision="auto", channels_last=True, checkpoint_steps=1000)

_RESNET50 = TrainConfig(
    model="resnet50",
    test_all=False,
    data=_IMAGENET,
    optim=Optim(
        lr=0.1,
        weight_decay=1e-4,
        norm_weight_decay=0.0,
        bias_weight_decay=0.0,
        batch_size=256,
        epochs=150,
        milestones=(60, 100, 140),
    ),
    run=_FAST,
)
_TRANSFORMER = Optim(
    optimizer="adamw",
    schedule="cosine",
    batch_size=1024,
    epochs=300,
    model_ema=True,
)
_CIFAR = TrainConfig(
    data=DataConfig(dataset="cifar10", pad=4, flip=True),
    optim=Optim(lr=0.1, weight_decay=1e-4, batch_size=128, epochs=164, milestones=(81, 122)),
    run=Run(mixed_precision="auto", channels_last=True),
)

TRAIN: dict[str, TrainConfig] = {
    "resnet50": _RESNET50,
    "resnet50_v2": replace(
        _RESNET50,
        mixup_alpha=0.2,
        cutmix_alpha=1.0,
        data=replace(
            _IMAGENET,
            auto_augment="ta_wide",
            random_erase=0.1,
            train_crop_size=176,
            val_resize_size=232,
            repeats=4,
        ),
        optim=Optim(
            lr=0.5,
            schedule="cosine",
            lr_warmup_epochs=5,
            weight_decay=2e-5,
            norm_weight_decay=0.0,
            batch_size=1024,
            epochs=600,
            model_ema=True,
        ),
    ),
    "resnet101": replace(_RESNET50, model="resnet101"),
    "mobilenet_v2": replace(
        _RESNET50,
        model="mobilenet_v2",
        optim=replace(_RESNET50.optim, weight_decay=1e-5, epochs=300, milestones=(150, 225, 285)),
    ),
    "swin_t": replace(
        _RESNET50,
        model="swin_t",
        mixup_alpha=0.8,
        cutmix_alpha=1.0,
        data=replace(
            _IMAGENET,
            auto_augment="ta_wide",
            random_erase=0.25,
            interpolation="bicubic",
            val_resize_size=224,
            repeats=4,
        ),
        optim=replace(
            _TRANSFORMER,
            lr=1e-3,
            lr_min=1e-5,
            lr_warmup_epochs=20,
            lr_warmup_decay=0.01,
            weight_decay=0.05,
            norm_weight_decay=0.0,
            bias_weight_decay=0.0,
            transformer_embedding_decay=0.0,
            label_smoothing=0.1,
            clip_grad_norm=5.0,
        ),
    ),
    "vit_b_16": replace(
        _RESNET50,
        model="vit_b_16",
        mixup_alpha=0.2,
        cutmix_alpha=1.0,
        data=replace(_IMAGENET, auto_augment="ra", repeats=3),
        optim=replace(
            _TRANSFORMER,
            lr=7.5e-4,
            lr_warmup_epochs=30,
            lr_warmup_decay=0.033,
            weight_decay=0.2,
            label_smoothing=0.11,
            clip_grad_norm=1.0,
        ),
    ),
    **{f"resnet{depth}": replace(_CIFAR, model=f"resnet{depth}") for depth in (20, 32, 56, 110)},
    # 51 minutes on one busy core with bf16 units: few epochs, along a cosine, and the weight decay of short schedules.
    "resnet20_short": replace(
        _CIFAR,
        model="resnet20",
        optim=Optim(lr=0.1, weight_decay=5e-4, batch_size=128, epochs=12, schedule="cosine"),
    ),
    # The same for a deeper network, with more epochs: some minutes of a GPU.
    "resnet56_short": replace(
        _CIFAR,
        model="resnet56",
        optim=Optim(lr=0.1, weight_decay=5e-4, batch_size=128, epochs=30, schedule="cosine"),
    ),
    "smoke": TrainConfig(
        model="resnet20",
        data=DataConfig(pad=1),
        optim=Optim(optimizer="adam", lr=3e-3, batch_size=64, epochs=10, schedule="cosine"),
    ),
}
