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
    """The storage root; by default `CCASSETS_STORAGE`, else `storage` under the home."""

    root: str | None = None

    def of(self, study: Study) -> Store:
        return Store.of(study, Path(self.root).expanduser().absolute() if self.root else None)


class EncoderResource(dg.ConfigurableResource["EncoderResource"]):
    """Where encoders run, which changes no number.

    `device` is `cuda`, `cuda:1`, `cpu`, …; by default a GPU if there is one, and for images all that are visible.
    `runner` says who encodes images: `local` (a worker for every device), `local:N`, or `ray:N` (N workers on an
    existing Ray cluster); by default what `CCASSETS_RUNNER` says, else `local`. The hub token is read from `HF_TOKEN`
    where it is used, so it is in no configuration and no log.
    """

    device: str | None = None
    runner: str | None = None

    @property
    def hf_token(self) -> str | None:
        return os.environ.get("HF_TOKEN")

    def load(self, study: Study, card: EncoderCard, store: Store) -> Encoder:
        """The study's encoder; a process keeps the last one it loaded."""
        key = card.identity, self.device
        if key not in _loaded:
            _loaded.clear()
            _loaded[key] = load_encoder(study, device=self.device, cache=store.cache, hf_token=self.hf_token)
        return _loaded[key]

    def choose_runner(self, study: Study, card: EncoderCard, store: Store) -> Runner:
        """Who encodes the images of a study; where that is this process, it keeps the encoder it loaded."""
        return choose_runner(self.runner, device=self.device, load=lambda: self.load(study, card, store))
