"""From what is evaluated to what is recorded of it: the builders of records."""

from __future__ import annotations

import dataclasses
import hashlib
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime

from torch import Tensor

from ironclip.attacks.autoattack import AttackList
from ironclip.attacks.base import Attack
from ironclip.attacks.driver import DriverSettings
from ironclip.attacks.sequence import Member
from ironclip.attacks.threat_model import ThreatModel
from ironclip.data.classes import colliding_names, words_sha256
from ironclip.errors import ConfigError
from ironclip.evaluation.records import AttackInfo, DatasetInfo, SampleIds, Session, ThreatInfo, UnitRecord
from ironclip.models.zero_shot import Classifier, ZeroShotClassifier
from ironclip.provenance import versions
from ironclip.suites.suite import SuiteDataset


def acting_pixels(pixels: Tensor, classifier: Classifier, threat: ThreatModel) -> Tensor:
    """Return the image on which the adversary acts, `[3, H, W]`: as it is, or as the model's input.

    Raises:
        ConfigError: `acting: model_input` with a classifier that has no known input resolution.
    """
    if threat.acting == "native":
        return pixels
    if not isinstance(classifier, ZeroShotClassifier):
        raise ConfigError(
            "the threat model acts at the model's input, whose size is unknown here.", "Use acting: native."
        )
    return classifier.model.spec.preprocessing.resize(pixels[None])[0]


def game_hash(threat: ThreatModel, size: tuple[int, int]) -> str:
    """Hash what decides whether two results may share a column: the rules, and the size at which the adversary acts."""
    return hashlib.sha256(f"{threat.hash} {size[0]}x{size[1]}".encode()).hexdigest()


def unit_record(
    info: SuiteDataset,
    classifier: Classifier,
    attack: Attack | AttackList,
    threat: ThreatModel,
    *,
    image: Tensor,
    keys: Sequence[str],
    search_dtype: str,
    model_sha256: str,
    seed: int,
) -> UnitRecord:
    """Describe one data set under one threat model and attack.

    Args:
        info: The data set as the suite describes it.
        classifier: Over its classes.
        attack: Or a list of attacks.
        threat: The game.
        image: `[3, H, W]`, one of its images, which tells the size at which the adversary acts.
        keys: Of the samples that are evaluated, over all shards.
        search_dtype: Precision of the search.
        model_sha256: Of the weights.
        seed: Of the run.
    """
    height, width = acting_pixels(image, classifier, threat).shape[-2:]
    rules = threat.record() | {"acting_size": [height, width], "search_dtype": search_dtype}
    if isinstance(classifier, ZeroShotClassifier):
        rules["preprocess"] = classifier.model.spec.preprocessing.record()
        rules["logit_scale"] = classifier.model.logit_scale.item()
    return UnitRecord(
        dataset=info.name,
        dataset_fingerprint=info.dataset.fingerprint,
        class_list_sha256=words_sha256(info.class_names),
        prompt_set_sha256=words_sha256(info.templates),
        duplicates=tuple(name for name, _ in colliding_names(info.class_names)),
        attack=attack_info(attack),
        threat=ThreatInfo(
            record=rules, hash=game_hash(threat, (height, width)), caption=threat.caption((height, width))
        ),
        model_sha256=model_sha256,
        seed=seed,
        sample_ids=SampleIds.of(keys),
        n_total=len(info.dataset),
    )


def members_of(attack: Attack | AttackList) -> tuple[Member, ...]:
    """Return the attacks of a list, or the one attack with its name for a label."""
    return attack.members if isinstance(attack, AttackList) else (Member(attack.name, attack),)


def attack_info(attack: Attack | AttackList) -> AttackInfo:
    """Describe an attack with all its settings, or a list."""
    if isinstance(attack, AttackList):
        members = (dataclasses.replace(attack_info(member.attack), title=member.label) for member in attack.members)
        return AttackInfo(name=attack.name, title=attack.title, members=tuple(members))
    return AttackInfo(name=attack.name, settings=dataclasses.asdict(attack))  # type: ignore[call-overload]  # every attack is a dataclass


def dataset_info(info: SuiteDataset) -> DatasetInfo:
    """Describe a data set for readers of the run."""
    return DatasetInfo(
        title=info.title,
        source=info.dataset.source,
        class_names=tuple(info.class_names),
        metric=info.metrics[-1],
        problems=info.dataset.problems,
    )


def session(command: Sequence[str], device: str, settings: DriverSettings, invariance: float) -> Session:
    """Describe this sitting."""
    return Session(
        command=shlex.join(command),
        versions=versions(),
        device=device,
        tile=settings.tile,
        row_invariance=invariance,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
