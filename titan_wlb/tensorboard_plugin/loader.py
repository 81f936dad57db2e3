"""Entry point ``tensorboard_plugins``. TensorBoard does not start if this module fails to import: it imports nothing
of ours before TensorBoard asks for the plugin, and a plugin that does not load is left out, with a line in the log."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from tensorboard.plugins import base_plugin

STEPS_KEPT = 1000  # per tag; TensorBoard would keep 10 (100 with its fast loader) of a plugin that it does not know


class Loader(base_plugin.TBLoader):
    """Loads the tab."""

    def fix_flags(self, flags: argparse.Namespace) -> None:
        """Keeps ``STEPS_KEPT`` logged steps, unless ``--samples_per_plugin`` names this plugin."""
        kept = getattr(flags, "samples_per_plugin", None)
        if isinstance(kept, dict):
            kept.setdefault("titan_wlb", STEPS_KEPT)
        elif kept is not None:  # "" where the flag was set by a program and not parsed
            flags.samples_per_plugin = {"titan_wlb": STEPS_KEPT}

    def load(self, context: base_plugin.TBContext) -> Any:
        """The plugin; None where it cannot be had."""
        try:
            from titan_wlb.tensorboard_plugin.plugin import ImbalancePlugin

            return ImbalancePlugin(context)
        except Exception:  # whatever it is, the other tabs work without this one
            logging.getLogger("tensorboard").exception("the tab Imbalance of titan_wlb is left out")
            return None
