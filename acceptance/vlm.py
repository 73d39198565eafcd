"""What stands on a tower: metrics, adapters, tiny-vlm, attacks, retrieval and masks; the cheap items first."""

from __future__ import annotations

from acceptance import vlm_attacks, vlm_further, vlm_llava, vlm_metrics, vlm_model, vlm_resume

ITEMS = (
    vlm_metrics.cider,
    vlm_metrics.worked_examples,
    vlm_llava.llava,
    vlm_model.tiny_vlm,
    vlm_model.twin,
    vlm_resume.resume,
    vlm_attacks.ensemble,
    vlm_attacks.drop_in,
    vlm_attacks.stealth,
    vlm_further.retrieval,
    vlm_further.masks,
    vlm_further.joint,
)
