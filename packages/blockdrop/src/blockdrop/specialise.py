"""The plain network of one policy, as a model folder: `blockdrop-eval --specialise`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resless import weights
from resless.errors import check
from resless.models.folded import check_unfolded
from torch import Tensor

from blockdrop.config import EvalConfig
from blockdrop.model import BlockDropNet


def check_specialise(config: EvalConfig, net: BlockDropNet) -> None:
    """Refuse what `specialise` could not do, before the evaluation whose result would be lost with it.

    Raises:
        InputError: a policy of another length than K, a folder that is not to be overwritten, a folded network.
    """
    if config.policy is not None:
        length = len(config.policy)
        check(length == net.num_blocks, "--policy", config.policy, f"{net.num_blocks} digits, not {length}")
    if config.specialise is not None:
        check_unfolded(net, "specialised")
        weights.check_target(Path(config.specialise), config.overwrite)


def specialise(
    net: BlockDropNet,
    config: EvalConfig,
    most_frequent: str,
    metrics: dict[str, Any],
    preprocessing: dict[str, Any],
    example: Tensor,
    class_names: Sequence[str] | None = None,
) -> None:
    """Write the network of `--policy`, or of the most frequent policy, where `--specialise` asks for it.

    Args:
        net: the network to take it from.
        config: of the evaluation.
        most_frequent: K digits; `metrics` is what was measured with it, if anything was.
        preprocessing, example, class_names: for the model folder.
    """
    if config.specialise is None:
        return
    policy = config.policy or most_frequent
    weights.save_pretrained(
        net.specialised([digit == "1" for digit in policy]).cpu(),
        config.specialise,
        preprocessing=preprocessing,
        metrics=metrics if config.policy is None else {},
        description=f"The network of BlockDrop's policy {policy}: the blocks of digit 1, first block first.",
        example=example,
        class_names=class_names,
        overwrite=config.overwrite,
    )
    print(f"wrote {config.specialise}: {policy.count('1')} of {net.num_blocks} blocks, policy {policy}")
