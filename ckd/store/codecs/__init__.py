"""Codecs: how a batch's log-scores become bytes. One file each, found by its file name."""

from __future__ import annotations

from ckd.registry import Registry

CODECS = Registry(kind="codec", package="ckd.store.codecs", attribute="CODEC", helpers=frozenset({"base"}))
