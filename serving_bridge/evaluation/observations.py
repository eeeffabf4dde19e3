"""Messages of an environment as token ids: harmless, and cut where they are too long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from rewards.contracts import Message
from serving_bridge.text import Tokenizer

_CUT = " [cut]"
#: Characters that are kept of a message before it is encoded at all: no token of a usual vocabulary is longer.
_CHARACTERS_PER_TOKEN = 64
_ROUNDS = 8


def fitted(
    messages: Sequence[Message],
    encode: Callable[[Sequence[Message]], list[int]],
    tokenizer: Tokenizer,
    *,
    limit: int,
) -> list[int]:
    """Token ids of the messages; the longest are cut until all of them have at most `limit`.

    What is around the texts is never cut: where it alone has more than `limit`, so has the result.
    """
    most = limit * _CHARACTERS_PER_TOKEN
    clean = [
        replace(m, content=tokenizer.harmless(m.content[:most]), name=tokenizer.harmless(m.name)) for m in messages
    ]
    ids = encode(clean)
    if len(ids) <= limit:
        return ids
    texts = [tokenizer.encode_observation(message.content, chat=False, after=-1) for message in clean]
    room = limit - len(encode([replace(message, content=_CUT) for message in clean]))
    for _ in range(_ROUNDS):
        share = _share([len(text) for text in texts], max(0, room))
        shorter = [
            message if len(text) <= share else replace(message, content=_beginning(text, share, tokenizer))
            for message, text in zip(clean, texts, strict=True)
        ]
        ids = encode(shorter)
        if len(ids) <= limit or room <= 0:
            break
        room -= len(ids) - limit  # tokens merge otherwise at the borders
    return ids


def _share(lengths: Sequence[int], room: int) -> int:
    """The largest length to which all can be cut so that together they have at most `room` tokens."""
    left = room
    for number, length in enumerate(sorted(lengths)):
        share = left // (len(lengths) - number)
        if length > share:
            return share
        left -= length
    return max(lengths, default=0)


def _beginning(ids: Sequence[int], length: int, tokenizer: Tokenizer) -> str:
    return tokenizer.harmless(tokenizer.decode(ids[:length]).rstrip("\ufffd") + _CUT)
