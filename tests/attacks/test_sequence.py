"""Lists of attacks: what comes out is what the attacks do one after the other, however it is run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ironclip.attacks.base import Attack
from ironclip.attacks.driver import DriverSettings, Outcome, run_attack
from ironclip.attacks.fgsm import FGSM
from ironclip.attacks.objectives import EmbeddingDistance, Evaluation, Misclassify
from ironclip.attacks.pgd import PGD
from ironclip.attacks.sequence import Member, SequenceOutcome, run_sequence
from ironclip.attacks.square import Square
from ironclip.attacks.threat_model import ThreatModel
from ironclip.errors import ConfigError
from made_up_classifiers import AffineTask

EPS = ThreatModel(eps="10/256")
# Each breaks some that those before it do not, and each comes nearest to some that stand.
MEMBERS = (
    Member("first", PGD(steps=1, rel_step_size=0.3, start_at="zero")),
    Member("second", Square(queries=6)),
    Member("third", PGD(steps=2, rel_step_size=0.3, loss="dlr", restarts=2)),
)


@pytest.fixture(scope="module")
def task() -> AffineTask:
    return AffineTask(4, seed=2, samples=80)


def objective_of(task: AffineTask, rows: Tensor | None = None):
    def objective(attack: Attack) -> Misclassify:
        every = Misclassify(task.classifier, task.labels, loss=attack.loss)
        return every if rows is None else every.take(rows)

    return objective


def run(task: AffineTask, rows: Tensor | None = None, members=MEMBERS, **more) -> SequenceOutcome:
    rows = torch.arange(len(task.keys)) if rows is None else rows
    keys = [task.keys[row] for row in rows.tolist()]
    settings = DriverSettings(**{name: more.pop(name) for name in ("tile", "compact") if name in more})
    return run_sequence(
        members, objective_of(task, rows), task.pixels[rows], keys, EPS, seed=3, settings=settings, **more
    )


def columns(outcome: SequenceOutcome) -> dict[str, Tensor]:
    """Everything save the time it took; `broken` beside the tensors of a file."""
    return {name: column for name, column in outcome.tensors().items() if name != "seconds"} | {
        "broken": outcome.broken
    }


def assert_same(found: SequenceOutcome, expected: SequenceOutcome, rows: Tensor | None = None) -> None:
    others = columns(expected)
    assert columns(found).keys() == others.keys()
    for name, column in columns(found).items():
        other = others[name] if rows is None or name == "finished" else others[name][rows]
        assert torch.equal(column, other), name


@pytest.fixture(scope="module")
def whole(task) -> SequenceOutcome:
    outcome = run(task)
    # Every attack has a part in it, and some samples stand to the end.
    broke = outcome.member[outcome.broken]
    assert set(broke.tolist()) == {-1, 0, 1, 2}
    assert (~outcome.broken).sum() > 4
    assert set(outcome.member[~outcome.broken].tolist()) == {0, 1, 2}
    return outcome


def by_hand(task: AffineTask) -> list[Outcome]:
    """Run each attack on every sample, for itself."""
    return [
        run_attack(
            member.attack,
            Misclassify(task.classifier, task.labels, loss=member.attack.loss),
            task.pixels,
            task.keys,
            EPS,
            seed=3,
        )
        for member in MEMBERS
    ]


def test_the_result_is_that_of_the_attacks_one_after_the_other(task, whole):
    alone = by_hand(task)
    for row in range(len(task.keys)):
        ran = []
        for outcome in alone:
            ran.append(outcome)
            if outcome.broken[row]:
                break
        if whole.clean.broken[row]:
            assert whole.member[row] == -1
            winner = alone[0]
        elif ran[-1].broken[row]:
            assert whole.member[row] == len(ran) - 1
            winner = ran[-1]
        else:
            assert len(ran) == 3
            margins = [outcome.final.margin[row].item() for outcome in ran]
            assert whole.member[row] == margins.index(max(margins))
            winner = ran[margins.index(max(margins))]
        for name in ("broken", "adversarial", "norm", "iterations", "restart", "best_loss"):
            assert torch.equal(getattr(whole, name)[row], getattr(winner, name)[row]), (row, name)
        for name, column in vars(winner.final).items():
            assert torch.equal(getattr(whole.final, name)[row], column[row]), (row, name)
        for name in ("forwards", "backwards", "false_claims"):
            assert getattr(whole, name)[row] == sum(getattr(one, name)[row] for one in ran), (row, name)
    everywhere = torch.stack([outcome.broken for outcome in alone]).any(dim=0)
    assert torch.equal(whole.broken, everywhere)
    assert whole.forwards.sum() < sum(outcome.forwards.sum() for outcome in alone)


@pytest.mark.parametrize("settings", [{"tile": 16}, {"tile": 32}, {"compact": False}], ids=str)
def test_tile_and_compaction_change_no_bit(task, whole, settings):
    assert_same(run(task, **settings), whole)


def test_order_and_shards_change_no_bit(task, whole):
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    assert_same(run(task, order), whole, order)
    for rows in order.split(30):
        assert_same(run(task, rows), whole, rows)


@pytest.mark.parametrize("finished", [1, 2])
def test_going_on_after_an_attack_changes_no_bit(task, whole, finished):
    kept = {}

    def keep(outcome: SequenceOutcome) -> None:
        kept[outcome.finished] = {name: tensor.clone() for name, tensor in outcome.tensors().items()}

    run(task, after=keep)
    assert list(kept) == [1, 2]  # after the last one there is nothing to go on with
    begun = SequenceOutcome.of_tensors(kept[finished])
    assert begun.broken is begun.final.broken
    ran: list[int] = []
    outcome = run(task, begun=begun, after=lambda outcome: ran.append(outcome.finished))
    assert ran == [2][finished - 1 :]
    assert_same(outcome, whole)


def test_a_file_holds_images_of_broken_samples_too(task):
    kept: list[SequenceOutcome] = []
    run(task, after=lambda outcome: kept.append(SequenceOutcome.of_tensors(outcome.tensors())))
    broken = kept[0].broken & ~kept[0].clean.broken
    assert broken.any()
    with torch.no_grad():
        predicted = task.classifier.logits(kept[0].adversarial).argmax(dim=1)
    assert torch.equal(predicted != task.labels, kept[0].broken)


def test_one_attack_is_a_sequence_of_one(task):
    attack = MEMBERS[0].attack
    alone = by_hand(task)[0]
    outcome = run(task, members=MEMBERS[:1])
    for name, column in vars(alone).items():
        if name == "seconds":
            continue
        found = getattr(outcome, name)
        pairs = zip(vars(found).values(), vars(column).values(), strict=True) if name in ("clean", "final") else ()
        assert all(torch.equal(a, b) for a, b in pairs or [(found, column)]), name
    assert torch.equal(outcome.member, torch.where(alone.clean.broken, -1, 0))
    assert attack.restarts == 1


def test_nothing_is_run_where_nothing_stands(task):
    calls = []

    class Never(FGSM):
        def start(self, *args):
            calls.append(args)
            return super().start(*args)

    huge = ThreatModel(eps="1")
    outcome = run_sequence(
        (Member("first", PGD(loss="margin")), Member("never", Never())),
        objective_of(task),
        task.pixels,
        task.keys,
        huge,
        seed=0,
    )
    assert outcome.broken.all()
    assert outcome.finished == 2
    assert not calls
    assert set(outcome.member.tolist()) == {-1, 0}


def test_progress_counts_over_all_samples(task, whole):
    told: list[tuple[int, int]] = []
    run(task, progress=lambda *said: told.append(said))
    assert all(broken + standing == 80 for broken, standing in told)
    assert [broken for broken, _ in told] == sorted(broken for broken, _ in told)
    assert told[-1][0] == whole.broken.sum()


def test_no_samples(task):
    outcome = run(task, torch.arange(0))
    assert outcome.finished == 3
    assert len(outcome.member) == 0


def test_without_margins_the_larger_value_is_nearer():
    class Model:
        def embed_image(self, pixels):
            return pixels.flatten(1)[:, :4]

        def computing(self, dtype):
            return torch.no_grad() if dtype is None else torch.enable_grad()

    pixels = torch.full((4, 3, 2, 2), 0.5)
    distance = EmbeddingDistance(Model(), pixels.flatten(1)[:, :4])
    weak, strong = Member("weak", PGD(steps=1, rel_step_size=1e-3)), Member("strong", PGD(steps=5))
    outcome = run_sequence((weak, strong), lambda attack: distance, pixels, list("abcd"), EPS, seed=0)
    assert (outcome.member == 1).all()
    assert not outcome.broken.any()
    restored = SequenceOutcome.of_tensors(outcome.tensors())
    assert restored.final.margin is None
    assert isinstance(restored.clean, Evaluation)


def test_no_attack_is_refused(task):
    with pytest.raises(ConfigError, match="a sequence of no attacks"):
        run(task, members=())
