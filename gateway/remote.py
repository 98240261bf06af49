"""Remote: a running gateway as the commands reach it, over HTTP. One call, one answer, or one line why there is none.

It follows no redirect and uses no proxy of the environment: a token goes to the URL that was named, and nowhere else.
"""

import http.client
import json
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import SplitResult, urlencode, urlsplit

_CONNECTIONS: Final = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}


class RemoteError(Exception):
    """The call did not succeed. The message says why, in one line."""


@dataclass(frozen=True, slots=True)
class Remote:
    """`url` is the gateway's root, with the prefix of a proxy where there is one."""

    url: str
    token: str | None = field(default=None, repr=False)

    def call(self, method: str, path: str, *, seconds: float = 30.0, **query: str | None) -> Any:
        """The JSON that the gateway answers, None where it answers nothing.

        `path` is percent-encoded; parameters that are None are left out. Raises RemoteError after `seconds` of
        silence, and for every status but 2xx.
        """
        place = self._place()
        given = {name: value for name, value in query.items() if value is not None}
        target = f"{place.path.rstrip('/')}{path}" + (f"?{urlencode(given)}" if given else "")
        status, body = self._exchange(place, method, target, seconds)
        answer = _parsed(body)
        if not 200 <= status < 300:
            detail = answer.get("detail") if type(answer) is dict else None
            raise RemoteError(
                f"{self.url} answers {status}: {detail or http.client.responses.get(status, '')}"
            )
        return answer

    def _place(self) -> SplitResult:
        try:
            place = urlsplit(self.url)
            if place.scheme in _CONNECTIONS and place.hostname and place.port != 0 and not place.query:
                return place
        except ValueError:
            pass  # as below
        raise RemoteError(f"{self.url} is no URL of a gateway: write http://HOST:PORT")

    def _headers(self) -> dict[str, str]:
        token = (self.token or "").strip()
        if not token.isascii() or not token.isprintable():  # else http.client's error would quote it
            raise RemoteError("the token has characters that no token has")
        return {"Accept": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}

    def _exchange(self, place: SplitResult, method: str, target: str, seconds: float) -> tuple[int, bytes]:
        headers = self._headers()
        connection = _CONNECTIONS[place.scheme](place.hostname or "", place.port, timeout=seconds)
        try:
            connection.request(method, target, headers=headers)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise RemoteError(f"{self.url} does not answer: {reason}") from None
        finally:
            connection.close()


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body) if body else None
    except ValueError:
        return None
