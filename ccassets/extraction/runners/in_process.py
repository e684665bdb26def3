"""The contract of runners, and the runner of this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from ccassets.datasets.manifest import Shard
from ccassets.encoders import load_encoder
from ccassets.encoders.encoder_contract import Encoder
from ccassets.extraction.image_shards import ImagePart, WorkerSetup, encode_shards
from ccassets.progress import BatchListener


class Runner(Protocol):
    """Encodes shards somewhere, in any order, and gives the parts as they are finished.

    A runner neither plans nor locks, and its parts do not depend on it. It takes shards one at a time, a few more than
    are being encoded. The shards of a worker that died are encoded by another. `listener` is called in the process of
    the caller.
    """

    def run(self, setup: WorkerSetup, shards: Iterable[Shard], listener: BatchListener) -> Iterator[ImagePart]:
        """Encode shards into parts.

        Args:
            setup: Study, encoder card and store: what a worker needs to encode on its own.
            shards: The shards to encode.
            listener: Called after every batch with the rows encoded since the last call, and the time they took.

        Yields:
            The part of each shard, as soon as its file is written.

        Raises:
            EncoderError: The encoder cannot be loaded, its features are not finite, its workers died repeatedly, or
                Ray or its cluster is missing.
            DatasetError: An image is no longer the one in the manifest.
            StorageError: The disk refuses, or the nodes of a cluster do not share the storage.
        """


class InThisProcess(Runner):
    """The runner of one device.

    Args:
        load: Gives the encoder, by default the study's own.
    """

    def __init__(self, load: Callable[[], Encoder] | None = None) -> None:
        self._load = load

    def run(self, setup: WorkerSetup, shards: Iterable[Shard], listener: BatchListener) -> Iterator[ImagePart]:
        encoder = self._load() if self._load else load_encoder(setup.study, cache=setup.store.cache)
        yield from encode_shards(setup, encoder, shards, listener)
