"""The columns of stored rows of tasks beyond classification, one list a task.

All begin with `sample_id`, `image_id` (the image that the row is about: what is drawn again in intervals), `norm` (the
distance spent, in the norm of the threat model; 0 where no image was changed), `forwards` and `backwards` (passes, what
is generated not counted).
"""

from __future__ import annotations

import pyarrow as pa

_TEXT, _TRUTH, _NUMBER = pa.string(), pa.bool_(), pa.float64()

_SHARED = (
    ("sample_id", _TEXT),
    ("image_id", _TEXT),
    ("norm", _NUMBER),
    ("forwards", pa.int32()),
    ("backwards", pa.int32()),
)


def _schema(*columns: tuple[str, pa.DataType]) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in (*_SHARED, *columns)])


_SPEECH = _schema(
    ("prompt", _TEXT),
    ("references", pa.list_(_TEXT)),
    ("text_clean", _TEXT),
    ("text_attacked", _TEXT),
    ("score_clean", _NUMBER),  # CIDEr-D times 100, or an accuracy in [0, 1]
    ("score_attacked", _NUMBER),
    ("stage", _TEXT),  # of the attack, that found the text; "clean" where none is worse
)
_SENTENCE = _schema(
    ("prompt", _TEXT),
    ("target", _TEXT),
    ("text_clean", _TEXT),
    ("text_attacked", _TEXT),
    ("text_rounded", _TEXT),  # of the attacked image once its pixels are multiples of 1/255
    *(
        (f"{when}_{how}", _TRUTH)
        for when in ("clean", "attacked", "rounded")
        for how in ("contains", "begins", "equals")
    ),
    ("iterations", pa.int32()),  # to the break that float32 confirmed; -1: none
)
_RETRIEVAL = _schema(
    ("direction", _TEXT),  # "image to text" or "text to image"
    ("query", _TEXT),  # the caption of a query by text, else empty
    ("query_attacked", _TEXT),
    ("rank_clean", pa.int32()),  # of the nearest match, from 1; ties go against it
    ("rank_attacked", pa.int32()),
    ("found_clean", _TEXT),  # what is nearest: a caption, or the key of an image
    ("found_attacked", _TEXT),
)
_SEGMENTATION = _schema(
    ("truth", pa.binary()),  # PNG of the mask, a byte a pixel
    ("said_clean", pa.binary()),
    ("said_attacked", pa.binary()),
    ("loss_clean", _NUMBER),  # mean cross-entropy of the labelled pixels
    ("loss_attacked", _NUMBER),
)

SCHEMAS = {
    "caption": _SPEECH,
    "answer": _SPEECH,
    "targeted": _SENTENCE,
    "retrieval": _RETRIEVAL,
    "segmentation": _SEGMENTATION,
}
