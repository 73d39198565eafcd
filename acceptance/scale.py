"""What growing past one machine and reaching people must show: one item for each group of claims."""

from __future__ import annotations

from acceptance import scale_demo, scale_hardening, scale_hub, scale_watch

ITEMS = (
    scale_hub.hub,
    scale_hub.push_killed,
    scale_watch.watch,
    scale_watch.watch_live,
    scale_demo.demo,
    scale_hardening.mistakes,
    scale_hardening.hostile,
    scale_hardening.fuzzed,
)
