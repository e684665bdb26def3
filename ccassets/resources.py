"""Dagster resources: where the studies' files lie, and the encoder of a run. Nothing here changes numbers."""

from __future__ import annotations

import os
from pathlib import Path

import dagster as dg

from ccassets.encoders import load_encoder
from ccassets.encoders.contract import Encoder, EncoderCard
from ccassets.storage import Store
from ccassets.study import Study

_loaded: dict[tuple[str, str | None], Encoder] = {}


class StoreResource(dg.ConfigurableResource["StoreResource"]):
    """The storage root; by default `CCASSETS_STORAGE`, else `storage` under the home."""

    root: str | None = None

    def of(self, study: Study) -> Store:
        return Store.of(study, Path(self.root).expanduser().absolute() if self.root else None)


class EncoderResource(dg.ConfigurableResource["EncoderResource"]):
    """The device that encoders run on: `cuda`, `cuda:1`, `cpu`, …; by default a GPU if there is one.

    The hub token is read from `HF_TOKEN` where it is used, so it is in no configuration and no log.
    """

    device: str | None = None

    @property
    def hf_token(self) -> str | None:
        return os.environ.get("HF_TOKEN")

    def load(self, study: Study, card: EncoderCard, store: Store) -> Encoder:
        """The study's encoder; a process keeps the last one it loaded."""
        key = card.identity, self.device
        if key not in _loaded:
            _loaded.clear()
            _loaded[key] = load_encoder(study, device=self.device, store_cache=store.cache, hf_token=self.hf_token)
        return _loaded[key]
