"""Weights on disk: resolve a reference, open lazily, stream, write atomically, keep lineage."""

from zeitgeist.checkpoints.atomic import check_output, new_directory
from zeitgeist.checkpoints.header import TensorSpec
from zeitgeist.checkpoints.lineage import model_card, versions
from zeitgeist.checkpoints.reader import Checkpoint, open_checkpoint
from zeitgeist.checkpoints.writer import CheckpointWriter, plan_shards

__all__ = [
    "Checkpoint",
    "CheckpointWriter",
    "TensorSpec",
    "check_output",
    "model_card",
    "new_directory",
    "open_checkpoint",
    "plan_shards",
    "versions",
]
