"""Cursors: a place in the log, as text that every transport shares.

`EPOCH.OFFSET`, and within a snapshot `EPOCH.OFFSET-START`. With a key they are sealed by
AES-SIV (RFC 5297), which is deterministic: one place has one text, so shared bytes stay shared.
"""

import base64
import hashlib
import re
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

_PLAIN = re.compile(r"([0-9a-z]{1,16})\.(0|[1-9][0-9]{0,18})(?:-(0|[1-9][0-9]{0,18}))?", re.ASCII)
_SEALED = re.compile(r"[a-z2-7]{77}", re.ASCII)
_NO_START = (1 << 64) - 1
_MAX_OFFSET = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the log. `start` is set within a snapshot: the snapshot as of `start`, told up to `offset`."""

    epoch: str
    offset: int
    start: int | None = None


class Cursors:
    """Encodes and decodes cursors, sealed when there is a key."""

    def __init__(self, key: str | None = None) -> None:
        # AES-SIV with a 512 bit key; any text is a key, as for every other secret of the settings.
        self._siv = AESSIV(hashlib.sha512(key.encode()).digest()) if key else None

    def encode(self, epoch: str, offset: int, start: int | None = None) -> str:
        if self._siv is None:
            return f"{epoch}.{offset}" if start is None else f"{epoch}.{offset}-{start}"
        packed = (
            epoch.encode().ljust(16, b"\0")
            + offset.to_bytes(8, "big")
            + (_NO_START if start is None else start).to_bytes(8, "big")
        )
        return base64.b32encode(self._siv.encrypt(packed, None)).decode().rstrip("=").lower()

    def encode_place(self, place: Place) -> str:
        return self.encode(place.epoch, place.offset, place.start)

    def decode(self, text: str) -> Place:
        """The place that `text` names. Raises ValueError where it is malformed or wrongly sealed."""
        return self._decode_plain(text) if self._siv is None else self._unseal(self._siv, text)

    @staticmethod
    def _decode_plain(text: str) -> Place:
        match = _PLAIN.fullmatch(text)
        if match is None:
            raise ValueError("not a cursor")
        epoch, offset, start = match.groups()
        place = Place(epoch, int(offset), None if start is None else int(start))
        if place.offset > _MAX_OFFSET or (place.start or 0) > _MAX_OFFSET:
            raise ValueError("the cursor's offset is out of range")
        return place

    @staticmethod
    def _unseal(siv: AESSIV, text: str) -> Place:
        if _SEALED.fullmatch(text) is None:
            raise ValueError("not a sealed cursor")
        sealed = base64.b32decode(text.upper() + "===")
        # Base32 of 48 bytes leaves bits over in its last letter: only the canonical text is the cursor.
        if base64.b32encode(sealed).decode().rstrip("=").lower() != text:
            raise ValueError("not a sealed cursor")
        try:
            packed = siv.decrypt(sealed, None)
        except InvalidTag:
            raise ValueError("the cursor's seal does not hold") from None
        start = int.from_bytes(packed[24:], "big")
        return Place(
            packed[:16].rstrip(b"\0").decode(),
            int.from_bytes(packed[16:24], "big"),
            None if start == _NO_START else start,
        )
