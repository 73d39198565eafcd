"""Which samples, and in which order: functions of the samples' keys, so the same on every machine.

Every choice hangs on a hash of the key and a purpose of its own: a shard of a limited set is still a fair draw, and
adding or reordering samples moves no other sample.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from ironclip.data.contract import Dataset, Sample
from ironclip.data.fingerprints import fingerprint
from ironclip.errors import DataError, UnreadableSampleError, ValueRangeError
from ironclip.randomness import rank_of

# Batches decoded ahead: enough to bridge a slow file, few enough to keep memory flat.
_AHEAD = 2


class Subset:
    """Some samples of a data set, possibly under other labels; itself a `Dataset`.

    Attributes:
        parent: The data set they are taken from.
        positions: Their positions there, in the order here.
        problems: What was lost when the parent was opened.

    Args:
        parent: A data set.
        positions: Positions in it, each at most once.
        labels: One label a position in place of the parent's.
        class_names: Names in place of the parent's.
        templates: Prompt templates in place of the parent's.
    """

    def __init__(
        self,
        parent: Dataset,
        positions: Sequence[int],
        *,
        labels: Sequence[int] | None = None,
        class_names: Sequence[str] | None = None,
        templates: Sequence[str] | None = None,
    ) -> None:
        self.parent = parent
        self.positions = list(positions)
        self.source = parent.source
        self.keys: Sequence[str] = [parent.keys[position] for position in self.positions]
        kept = None if parent.labels is None else [parent.labels[position] for position in self.positions]
        self.labels: Sequence[int] | None = kept if labels is None else list(labels)
        self.class_names = parent.class_names if class_names is None else class_names
        self.templates = parent.templates if templates is None else templates
        self.problems: tuple[str, ...] = parent.problems
        whole = self.positions == list(range(len(parent))) and self.labels == kept
        self.fingerprint = (
            parent.fingerprint if whole else fingerprint([parent.fingerprint, *self.keys, str(self.labels)])
        )

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, position: int) -> Sample:
        """Return the sample under its label here.

        Raises:
            UnreadableSampleError: The parent cannot decode it.
        """
        sample = self.parent[self.positions[position]]
        label = None if self.labels is None else self.labels[position]
        return Sample(sample.key, sample.pixels, label, sample.captions)


def epoch_order(keys: Sequence[str], seed: int, epoch: int) -> list[int]:
    """Return the positions of the keys in the order of one epoch.

    The sequence of keys that it gives is a function of seed, epoch and the set of keys: not of their order here.
    """
    return _ranked(keys, "order", seed, epoch)


def limit(dataset: Dataset, n: int) -> Subset:
    """Take the n samples with the lowest hash of their key, in canonical order; all if there are no more.

    The same samples on every machine, and nested: those of limit 100 are among those of limit 1000.

    Raises:
        ValueRangeError: n is below 1.
    """
    if n < 1:
        raise ValueRangeError(f"limit is {n}, expected at least 1.", "Leave the limit out to take all samples.")
    return Subset(dataset, sorted(_ranked(dataset.keys, "limit")[:n]))


def hold_out(dataset: Dataset, n: int) -> tuple[Subset, Subset]:
    """Split off n samples by another hash of their key.

    Returns:
        The rest, and the n held out; both in canonical order, no sample in both.

    Raises:
        ValueRangeError: n is below 1 or leaves nothing.
    """
    if not 1 <= n < len(dataset):
        raise ValueRangeError(
            f"{n} of {len(dataset)} samples are to be held out, expected 1 to {len(dataset) - 1}.",
            "Hold out fewer samples, or give more data.",
        )
    ranked = _ranked(dataset.keys, "hold out")
    return Subset(dataset, sorted(ranked[n:])), Subset(dataset, sorted(ranked[:n]))


def few_shot(dataset: Dataset, shots: int, seed: int) -> Subset:
    """Take `shots` samples of each class, all of a class that has no more: a function of the seed and the keys.

    Nested: those of 4 shots are among those of 16.

    Raises:
        DataError: There are no labels.
    """
    if dataset.labels is None:
        raise DataError(f"{dataset.source} has no labels to take {shots} shots a class by.", "Leave data.shots out.")
    taken: dict[int, list[int]] = {}
    for position in _ranked(dataset.keys, "few shot", seed):
        of_class = taken.setdefault(dataset.labels[position], [])
        if len(of_class) < shots:
            of_class.append(position)
    return Subset(dataset, sorted(position for positions in taken.values() for position in positions))


def shard(dataset: Dataset, i: int, n: int) -> Subset:
    """Take part i of n, counted from 0: the samples whose hash of the key is i modulo n; possibly none.

    Raises:
        ValueRangeError: i is not in 0 .. n-1.
    """
    if not 0 <= i < n:
        raise ValueRangeError(f"shard {i}/{n}, expected i/n with i from 0 to n-1.", "The first of 4 shards is 0/4.")
    return Subset(dataset, [position for position, key in enumerate(dataset.keys) if rank_of("shard", key) % n == i])


def keep_labels(dataset: Dataset, labels: Sequence[int], *, relabel: bool) -> Subset:
    """Keep the samples of some classes.

    Args:
        dataset: A data set with labels.
        labels: The labels to keep, each once.
        relabel: Count the kept classes anew, in the order of `labels`, and keep only their names (for "20-way");
            otherwise labels and names stay (for some classes against all names).

    Raises:
        DataError: There are no labels, a label is given twice, or no sample has it.
    """
    if dataset.labels is None:
        raise DataError(f"{dataset.source} has no labels to choose by.", "Give a data set with labels.")
    new_label = {label: index for index, label in enumerate(labels)}
    if len(new_label) < len(labels):
        raise DataError(f"{len(labels) - len(new_label)} labels to keep are given twice.", "Give each label once.")
    absent = sorted(new_label.keys() - set(dataset.labels))
    if absent:
        raise DataError(
            f"{dataset.source} has no sample of label {', '.join(map(str, absent[:5]))}.",
            f"Its labels run from {min(dataset.labels)} to {max(dataset.labels)}.",
        )
    positions = [position for position, label in enumerate(dataset.labels) if label in new_label]
    if not relabel:
        return Subset(dataset, positions)
    names = dataset.class_names
    return Subset(
        dataset,
        positions,
        labels=[new_label[dataset.labels[position]] for position in positions],
        class_names=None if names is None else [names[label] for label in labels],
    )


def read_batches(
    dataset: Dataset, positions: Sequence[int], batch_size: int, *, strict: bool, unreadable: dict[str, str]
) -> Iterator[list[Sample]]:
    """Read samples in batches, decoded ahead in one background thread; the order is that of `positions`.

    Args:
        dataset: Any data set.
        positions: What to read, in order.
        batch_size: Positions a batch, at least 1.
        strict: Raise at the first unreadable sample.
        unreadable: Receives key and reason of each unreadable sample when its batch is handed out.

    Yields:
        The samples of each `batch_size` positions, fewer where some are unreadable (no sample moves to another batch)
        and in the last batch; an empty list where nothing is left of a batch, so that batches can be counted.

    Raises:
        ValueRangeError: `batch_size` is below 1.
        UnreadableSampleError: Under `strict`.
    """
    if batch_size < 1:
        raise ValueRangeError(f"batch_size is {batch_size}, expected at least 1.", "Give a batch size from 1.")
    chunks = [positions[start : start + batch_size] for start in range(0, len(positions), batch_size)]
    return _read_ahead(dataset, chunks, strict, unreadable)


def _read_ahead(
    dataset: Dataset, chunks: Sequence[Sequence[int]], strict: bool, unreadable: dict[str, str]
) -> Iterator[list[Sample]]:
    waiting: deque[Future[tuple[list[Sample], dict[str, str]]]] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode") as decoder:
        try:
            for index in range(len(chunks) + _AHEAD):
                if index < len(chunks):
                    waiting.append(decoder.submit(_read, dataset, chunks[index], strict))
                if index >= _AHEAD:
                    samples, failed = waiting.popleft().result()
                    unreadable.update(failed)
                    yield samples
        finally:
            for future in waiting:
                future.cancel()


def _read(dataset: Dataset, positions: Sequence[int], strict: bool) -> tuple[list[Sample], dict[str, str]]:
    samples, failed = [], {}
    for position in positions:
        try:
            samples.append(dataset[position])
        except UnreadableSampleError as error:
            if strict:
                raise
            failed[error.key] = error.reason
    return samples, failed


def _ranked(keys: Sequence[str], *purpose: object) -> list[int]:
    return sorted(range(len(keys)), key=lambda position: (rank_of(*purpose, keys[position]), keys[position]))
