"""What a run writes besides its metrics: the story of its blocks, and the model folder at its end."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from resless import models
from resless.config import source_options
from resless.data.pipeline import Pipeline
from resless.evaluate import Evaluation
from resless.files import write_text
from resless.report import table
from resless.run import Run

from epsilon_resnet import method
from epsilon_resnet.blocks import BlockRecord, blocks_named
from epsilon_resnet.compress import blocks_of, undecayed
from epsilon_resnet.config import TrainConfig
from epsilon_resnet.loading import BLOCKS, NETWORK
from epsilon_resnet.model import EpsilonResNet
from epsilon_resnet.plot import draw


class Story:
    """The file blocks.json of a run, which says which block was discarded when; and network.json, written at once.

    Args:
        run: the run that they are written for.
        config: of the run.
        net: its network.
        data: the images that the network is for.
    """

    def __init__(self, run: Run, config: TrainConfig, net: EpsilonResNet, data: Pipeline) -> None:
        self._run = run
        self._fixed = {
            "epsilon": config.epsilon,
            "epsilon_start": config.epsilon_start,
            "epsilon_stop": config.epsilon_stop,
            "stages": [len(stage) for stage in net.resnet.stages()],
        }
        network = {
            "model": asdict(models.spec_of(net)),
            "preprocessing": data.preprocessing,
            "image_shape": list(data.train.image_shape),
            "class_names": list(data.train.class_names),
        }
        self._write(NETWORK, network)

    def write(self, record: BlockRecord, schedule: method.AdaptiveSchedule) -> dict[str, Any]:
        """Write blocks.json anew; returns its content."""
        content = {
            **self._fixed,
            "retired": {str(block): epoch for block, epoch in record.retired.items()},
            "restarts": schedule.restarts,
            "epochs": record.history,
        }
        self._write(BLOCKS, content)
        return content

    def _write(self, name: str, content: dict[str, Any]) -> None:
        if self._run.accelerator.is_main_process:
            with self._run.writing("the story of its blocks"):
                write_text(self._run.folder / name, json.dumps(content) + "\n")


def finish(run: Run, net: EpsilonResNet, data: Pipeline, story: dict[str, Any], test: Evaluation) -> Path:
    """Write the model folder and the pictures of a run; returns the model folder."""
    blocks = blocks_of(net)
    discarded = [asdict(block) for block in blocks if block.is_discarded]
    metrics = {
        **asdict(test),
        "num_blocks": net.num_blocks,
        "discarded": discarded,
        "restarts": len(story["restarts"]),
        "retired": sorted(int(block) for block in story["retired"]),
    }
    folder = run.finish(
        net,
        data,
        metrics=metrics,
        description=(
            f"A network whose blocks discard themselves where their responses stay under ε = {story['epsilon']:g} "
            f"(ε-ResNet): {len(discarded)} of {net.num_blocks} are discarded. `epsilon-resnet-compress` writes the "
            "plain network without them."
        ),
    )
    if run.accelerator.is_main_process:
        with run.writing("pictures"):
            draw(run.folder, story, run.history)
        error, share = f"{100 * (1 - test.top1):.2f}", f"{len(discarded)} of {net.num_blocks}"
        table(
            "test images",
            ["images", "error %", "loss", "blocks discarded"],
            [[f"{test.images:,}", error, f"{test.loss:.4f}", share]],
        )
    return folder


def say_next(run: Run, config: TrainConfig, net: EpsilonResNet, epochs: Sequence[Mapping[str, Any]] = ()) -> None:
    """Say which command drops the discarded blocks, with the options that make it do so; or how near the first is to be
    discarded, as the story of the epochs tells."""
    blocks = blocks_of(net)
    if not any(block.is_discarded for block in blocks):
        if config.epsilon and epochs:
            acted = epochs[: config.epsilon_stop]
            largest = acted[-1]["largest"]
            block = min(range(len(largest)), key=largest.__getitem__)
            run.say(
                f"no block is discarded: the weakest is block {block}, whose largest responses in epoch {len(acted)} "
                f"were {largest[block]:.3g}, where --epsilon is {config.epsilon:g}: raise it or train longer"
            )
        return
    command = f"next: epsilon-resnet-compress --model {shlex.quote(str(run.folder))}"
    left = undecayed(blocks)
    if left and not undecayed(blocks, config.weight_bound):
        command += f" --weight-bound {config.weight_bound}"
    elif left:
        named = blocks_named([block.block for block in left])
        run.say(f"{named} discarded, but not gone for good: train for longer, or drop all that is discarded by --force")
        command += f" --force {source_options(config.data)}"
    run.say(command)
