"""The gallery: every picture of the results on one page, with what it shows and what made it."""

from __future__ import annotations

from _results import FOLDER, HERE

PAGE = HERE.parent / "docs" / "gallery.md"

# Method -> picture -> what it shows.
PICTURES = {
    "All methods": {
        "methods-at-work": "What each method leaves of a network for CIFAR-10; BlockDrop after its first fine-tuning.",
        "methods-cifar": "CIFAR-10: points lost against multiply-adds and time left, beside each one's dense network.",
    },
    "DeepHoyer": {
        "deephoyer-cifar": "ResNet-20 on CIFAR-10: accuracy against multiply-adds and latency, beside thinner ones.",
        "deephoyer-cifar-resnet56": "ResNet-56: the same, trained on a GPU.",
        "deephoyer-mnist-element": "LeNets on MNIST, single weights cut: accuracy against weights left, three seeds.",
        "deephoyer-mnist-structural": "LeNets on MNIST, whole groups cut: test accuracy against multiply-adds left.",
        "deephoyer-sweep": "LeNet-300-100 on MNIST: held-out error against multiply-adds, four strengths.",
    },
    "BlockDrop": {
        "blockdrop-cifar": "ResNet-32 on CIFAR-10: accuracy against multiply-adds, beside the controls.",
        "blockdrop-cifar-r110": "ResNet-110: the same.",
        "blockdrop-throughput-r32-c10": "ResNet-32: measured speed-up against the blocks that policies keep.",
        "blockdrop-throughput-r110-c10": "ResNet-110: the same.",
        "blockdrop-throughput-pooled-r32-c10": "ResNet-32 with AVX-512, the policy network on images of half the side.",
        "blockdrop-throughput-pooled-r110-c10": "ResNet-110: the same.",
        "blockdrop-policies/keep_rates": "How often each block is kept, over all test images and for each class.",
        "blockdrop-policies/blocks_used": "How many blocks images use.",
        "blockdrop-policies/policies": "The most frequent policies, with images that have them.",
        "blockdrop-policies/easy_hard": "Images that use the fewest and the most blocks.",
        "blockdrop-policies/cost_accuracy": "Accuracy and cost, beside those of the controls and of the dense network.",
        "blockdrop-policies/rewards": "Reward and accuracy while both networks were trained.",
        "blockdrop-policies-r110/keep_rates": "ResNet-110: how often each block is kept, over all images and by class.",
        "blockdrop-policies-r110/blocks_used": "ResNet-110: how many blocks images use.",
        "blockdrop-policies-r110/policies": "ResNet-110: the most frequent policies, with images that have them.",
        "blockdrop-policies-r110/easy_hard": "ResNet-110: images that use the fewest and the most blocks.",
        "blockdrop-policies-r110/cost_accuracy": "ResNet-110: accuracy and cost, beside those of the controls.",
        "blockdrop-policies-r110/rewards": "ResNet-110: reward and accuracy while both networks were trained.",
    },
    "ε-ResNet": {
        "epsilon-cifar": "32 layers on CIFAR-10: error against multiply-adds and measured latency for five ε.",
        "epsilon-blocks/blocks": "Which blocks are discarded, epoch by epoch.",
        "epsilon-blocks/responses": "The largest response of each block, epoch by epoch.",
        "epsilon-blocks/errors": "Training error of the network and of its side head, epoch by epoch.",
        "epsilon-blocks/learning_rate": "The learning rate, which can start anew when blocks are lost.",
    },
    "ADN": {
        "adn-cifar": "ResNet-20 on CIFAR-10: all eight configurations of one network, against networks trained alone.",
        "adn-cifar-resnet56": "ResNet-56: the same.",
    },
}


def gallery() -> str:
    """The page, with every picture that is there.

    Raises:
        ValueError: a picture among the results has no description.
    """
    known = {picture for pictures in PICTURES.values() for picture in pictures}
    there = {path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.png")}
    if there - known:
        raise ValueError(f"the gallery does not say what these show: {', '.join(sorted(there - known))}")
    lines = [
        "# Gallery",
        "",
        "Every picture of what was measured. `python benchmarks/tables.py` makes this page, and most pictures, from",
        "the files in [`benchmarks/results`](../benchmarks/results), which tell device, versions, settings and commit.",
    ]
    for method, pictures in PICTURES.items():
        shown = {picture: text for picture, text in pictures.items() if picture in there}
        lines += ["", f"## {method}"] if shown else []
        for picture, text in shown.items():
            lines += ["", text, "", f"![{text}](../benchmarks/results/{picture}.png)"]
    return "\n".join([*lines, ""])
