"""Configurations and recipes: what the paper gives, and values that cannot be."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from adn.config import EvalConfig, ExtractConfig, Optim, Run, TrainConfig
from adn.recipes import TRAIN
from resless.config import DataConfig
from resless.errors import InputError

TEST_ONLY = {"test_only": True, "run": Run(resume="x")}


def test_the_loss_is_the_papers_unless_asked_for() -> None:
    config = TrainConfig()
    assert (config.alpha, config.temperature, config.top_classes) == (0.5, 1.0, 500)
    assert (config.distill, config.second_norms, config.fpn, config.two_passes) == (True, True, False, False)
    assert (config.alone, config.mixup_alpha, config.cutmix_alpha) == (None, 0, 0)


def test_recipes_are_the_papers() -> None:
    """methods.md, section 4."""
    rows = {
        name: (c.model, c.optim.batch_size, c.optim.lr, c.optim.epochs, c.optim.weight_decay, c.optim.milestones)
        for name, c in TRAIN.items()
    }
    assert rows["resnet50"] == ("resnet50", 256, 0.1, 150, 1e-4, (60, 100, 140))
    assert rows["resnet101"] == ("resnet101", *rows["resnet50"][1:])
    assert rows["resnet50_v2"] == ("resnet50", 1024, 0.5, 600, 2e-5, ())
    assert rows["mobilenet_v2"] == ("mobilenet_v2", 256, 0.1, 300, 1e-5, (150, 225, 285))
    assert rows["swin_t"] == ("swin_t", 1024, 1e-3, 300, 0.05, ())
    assert rows["vit_b_16"] == ("vit_b_16", 1024, 7.5e-4, 300, 0.2, ())
    decays = {
        name: (c.optim.norm_weight_decay, c.optim.bias_weight_decay, c.optim.transformer_embedding_decay)
        for name, c in TRAIN.items()
    }
    assert decays["resnet50"] == decays["mobilenet_v2"] == (0, 0, None)
    assert decays["resnet50_v2"] == (0, None, None)
    assert decays["swin_t"] == (0, 0, 0)
    for name in ("resnet50", "resnet101", "mobilenet_v2"):
        assert (TRAIN[name].optim.optimizer, TRAIN[name].optim.momentum) == ("sgd", 0.9)
        assert not TRAIN[name].optim.model_ema
    v2, swin, vit = (TRAIN[name] for name in ("resnet50_v2", "swin_t", "vit_b_16"))
    assert [c.optim.optimizer for c in (v2, swin, vit)] == ["sgd", "adamw", "adamw"]
    assert [(c.mixup_alpha, c.cutmix_alpha) for c in (v2, swin, vit)] == [(0.2, 1.0), (0.8, 1.0), (0.2, 1.0)]
    assert [c.data.auto_augment for c in (v2, swin, vit)] == ["ta_wide", "ta_wide", "ra"]
    assert [c.data.random_erase for c in (v2, swin, vit)] == [0.1, 0.25, 0]
    assert [c.data.repeats for c in (v2, swin, vit)] == [4, 4, 3]
    assert [c.optim.label_smoothing for c in (v2, swin, vit)] == [0, 0.1, 0.11]
    assert [c.optim.clip_grad_norm for c in (v2, swin, vit)] == [None, 5, 1]
    assert [(c.optim.lr_warmup_epochs, c.optim.lr_warmup_decay) for c in (v2, swin, vit)] == [
        (5, 0.01),
        (20, 0.01),
        (30, 0.033),
    ]
    assert [c.optim.lr_min for c in (v2, swin, vit)] == [0, 1e-5, 0]
    assert all(c.optim.model_ema and c.optim.schedule == "cosine" for c in (v2, swin, vit))
    assert (v2.data.train_crop_size, v2.data.val_resize_size) == (176, 232)
    assert (swin.data.interpolation, swin.data.val_resize_size) == ("bicubic", 224)
    for name in ("resnet50", "resnet50_v2", "resnet101", "mobilenet_v2", "swin_t", "vit_b_16"):
        assert (TRAIN[name].data.dataset, TRAIN[name].data.stream) == ("imagenet", True)
    for depth in (20, 32, 56, 110):
        assert TRAIN[f"resnet{depth}"].data == DataConfig(dataset="cifar10", pad=4, flip=True)
        assert rows[f"resnet{depth}"] == (f"resnet{depth}", 128, 0.1, 164, 1e-4, (81, 122))
    assert TRAIN["smoke"].data.dataset == "digits"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alpha": 1.1}, "--alpha is 1.1, but must be from 0 to 1"),
        ({"alpha": math.nan}, "--alpha is nan"),
        ({"temperature": 0.0}, "--temperature is 0.0, but must be above 0"),
        ({"top_classes": 0}, "--top-classes is 0, but must be 1 or more"),
        ({"mixup_alpha": -0.1}, "--mixup-alpha is -0.1, but must be 0 or more"),
        ({"cutmix_alpha": math.inf}, "--cutmix-alpha is inf"),
        ({"fpn": True, "distill": False}, "--fpn is True, but must be left out with --no-distill"),
        *(
            ({"fpn": True, "model": model}, f"--fpn is True, but must be left out for {model}: only ResNets have")
            for model in ("mobilenet_v2", "swin_t", "swin_v2_t", "vit_b_16", "vit_b_32")
        ),
        ({"alone": "base", "fpn": True}, "--alone is 'base', but must be left out with --fpn and --two-passes"),
        ({"alone": "super", "two_passes": True}, "--alone is 'super', but must be left out with"),
        ({"test_only": True}, "--resume is missing: give the model folder, or the checkpoint, that --test-only"),
        ({"test_only": True, "run": Run(resume="auto")}, "--resume is missing"),
        ({"skip_cfg": (True, True, True)}, "--skip-cfg is (True, True, True), but must be given with --test-only"),
        ({"alone": "base", **TEST_ONLY}, "--alone is 'base', but must be left out with --test-only"),
        ({"pretrained": "y", **TEST_ONLY}, "--pretrained is 'y', but must be left out with --test-only"),
    ],
)
def test_trainings_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as refusal:
        TrainConfig(**fields)
    assert message in str(refusal.value)


def test_trainings_that_can_be() -> None:
    for model in ("resnet20", "resnet50", "resnet101d"):
        assert TrainConfig(model=model, fpn=True).fpn
    assert TrainConfig(skip_cfg=(True,), **TEST_ONLY).skip_cfg == (True,)
    assert TrainConfig(alone="base", distill=False).alone == "base"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr": 0.1, "lr_min": 0.2}, "--lr-min is 0.2, but must be from 0 to the learning rate, 0.1"),
        ({"lr_min": -1.0}, "--lr-min is -1.0"),
        ({"lr_min": 0.01}, "--lr-min is 0.01, but must be left out with milestones, or given with --schedule cosine"),
        (
            {"epochs": 5, "lr_warmup_epochs": 6},
            "--lr-warmup-epochs is 6, but must be from 0 to the number of epochs, 5",
        ),
        ({"lr_warmup_epochs": -1}, "--lr-warmup-epochs is -1"),
        ({"lr_warmup_decay": 0.0}, "--lr-warmup-decay is 0.0, but must be above 0 and at most 1"),
        ({"norm_weight_decay": -0.1}, "--norm-weight-decay is -0.1, but must be 0 or more"),
        ({"bias_weight_decay": math.nan}, "--bias-weight-decay is nan"),
        ({"transformer_embedding_decay": math.inf}, "--transformer-embedding-decay is inf"),
        ({"label_smoothing": 1.0}, "--label-smoothing is 1.0, but must be at least 0 and below 1"),
        ({"clip_grad_norm": 0.0}, "--clip-grad-norm is 0.0, but must be above 0"),
        ({"model_ema_steps": 0}, "--model-ema-steps is 0, but must be 1 or more"),
        ({"model_ema_decay": 1.0}, "--model-ema-decay is 1.0, but must be at least 0 and below 1"),
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"milestones": (3, 2)}, "--milestones is (3, 2), but must be increasing epochs"),
    ],
)
def test_schedules_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as refusal:
        Optim(**fields)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 0}, "--batch-size is 0, but must be 1 or more"),
        ({"recalibrate_bn": -1}, "--recalibrate-bn is -1, but must be 0 (off) or a number of images"),
        ({"repeats": 1}, "--repeats is 1, but must be 0, or 2 or more"),
        ({"latency_batches": (1, 0)}, "--latency-batches is (1, 0), but must be 1 or more each"),
        ({"ema": True}, "--ema is True, but must be given with --weights"),
        ({"output": "nowhere/x.json"}, "--output is 'nowhere/x.json', but must be a file in a folder that exists"),
        ({"plot": "x.pdf"}, "--plot is 'x.pdf', but must be a .png file"),
    ],
)
def test_evaluations_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as refusal:
        EvalConfig(model="x", **fields)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"recalibrate_bn": -1}, "--recalibrate-bn is -1, but must be 0 (off) or a number of images"),
        ({"repeats": 1}, "--repeats is 1, but must be 0, or 2 or more"),
        ({"onnx": "nowhere/x.onnx"}, "--onnx is 'nowhere/x.onnx', but must be a file in a folder that exists"),
        ({"onnx": "."}, "--onnx is '.', but must be a file"),
    ],
)
def test_extractions_that_cannot_be(
    fields: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good = ExtractConfig(model="x", skip_cfg=(True,), output="y", onnx="x.onnx")
    with pytest.raises(InputError) as refusal:
        replace(good, **fields)
    assert message in str(refusal.value)


def test_configurations_and_recipes_need_no_torch() -> None:
    code = "import sys, adn.recipes, adn.cli; assert not {'torch', 'torchvision', 'accelerate'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
