"""LLaVA conversations: turns of `human` and `gpt`, the picture marked by `<image>`."""

from __future__ import annotations

from collections.abc import Iterator, Set

from expunge.formats.row import Record, Row

MARK = "<image>"


def claims(columns: Set[str]) -> bool:
    """Whether a row with these columns is a conversation."""
    return "conversations" in columns


def read(row: Row) -> Iterator[Record]:
    """Each question with the answer that follows it; a row without `image` is text only."""
    subject = row.text("id")
    image = row.values.get("image")
    turns = row.rows("conversations")
    if not turns or len(turns) % 2:
        raise row.error("conversations", f"expected pairs of turns, found {len(turns)} turns")
    for asked, answered in zip(turns[::2], turns[1::2], strict=True):
        for turn, speaker in ((asked, "human"), (answered, "gpt")):
            if turn.text("from") != speaker:
                raise turn.error("from", f"expected {speaker!r}, the turns alternate")
        words = asked.text("value").replace(MARK, "").strip()
        if not words:
            raise asked.error("value", "expected a question beside the image mark")
        field = "text_question" if image is None else "question"
        yield {"subject": subject, "image": image, field: words, "answer": answered.text("value")}
