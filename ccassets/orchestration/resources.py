"""Dagster resources: where the studies' files lie, and the encoder of a run. Nothing here changes numbers."""

from __future__ import annotations

import os
from pathlib import Path

import dagster as dg

from ccassets.encoders import load_encoder
from ccassets.encoders.encoder_contract import Encoder, EncoderCard
from ccassets.extraction.runners import Runner, choose_runner
from ccassets.study.schema import Study
from ccassets.study.storage import Store

_loaded: dict[tuple[str, str | None], Encoder] = {}


class StoreResource(dg.ConfigurableResource["StoreResource"]):
    """The folder below which the files of all studies lie.

    Attributes:
        root: The folder; by default `CCASSETS_STORAGE`, else `storage` under the home.
    """

    root: str | None = None

    def of(self, study: Study) -> Store:
        """Give the paths of a study's files.

        Args:
            study: The study.

        Returns:
            The paths; nothing is opened or made.
        """
        return Store.of(study, Path(self.root).expanduser().absolute() if self.root else None)


class EncoderResource(dg.ConfigurableResource["EncoderResource"]):
    """Where encoders run; it changes no number.

    The hub token is read from `HF_TOKEN` where it is used, so that it is in no configuration and no log.

    Attributes:
        device: `cuda`, `cuda:1`, `cpu`, …; by default a GPU if there is one. Images are by default encoded on all
            visible GPUs.
        runner: `local` (a worker for every device), `local:N`, or `ray:N` (N workers on an existing Ray cluster) encode
            images; by default what `CCASSETS_RUNNER` says, else `local`.
    """

    device: str | None = None
    runner: str | None = None

    @property
    def hf_token(self) -> str | None:
        """The token for the hub; None where `HF_TOKEN` is not set, or empty as in a container."""
        return os.environ.get("HF_TOKEN") or None

    def load(self, study: Study, card: EncoderCard, store: Store) -> Encoder:
        """Load the encoder of a study; a process keeps the last one that it loaded.

        Args:
            study: The study.
            card: The recorded card of its encoder.
            store: Where digests of weight files are kept.

        Returns:
            The encoder, on the device.
        """
        key = card.identity, self.device
        if key not in _loaded:
            _loaded.clear()
            _loaded[key] = load_encoder(study, device=self.device, cache=store.cache, hf_token=self.hf_token)
        return _loaded[key]

    def choose_runner(self, study: Study, card: EncoderCard, store: Store) -> Runner:
        """Choose the runner that encodes the images of a study.

        Args:
            study: The study.
            card: The recorded card of its encoder.
            store: Where digests of weight files are kept.

        Returns:
            The runner. A runner in this process uses the encoder that `load` gives.
        """
        return choose_runner(self.runner, device=self.device, load=lambda: self.load(study, card, store))
