"""An OpenAI-compatible endpoint: one question, one reply, with time-outs and retries. Standard library only.

The key comes from an environment variable, goes into the ``Authorization`` header, and nowhere else: redirects, which
would carry it to another host, are not followed, and a server's text is stripped of it before anyone reads it.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import os
import random
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from loracle.base.errors import LoracleError, SpecError
from loracle.base.version import __version__
from loracle.evaluate.judging.items import Message

TRIES = 6  # requests for one reply
BACKOFF_S, LONGEST_BACKOFF_S = 1.0, 60.0
LONGEST_RETRY_AFTER_S = 300.0  # a server that asks for more is not waited for
LARGEST_REPLY = 1 << 24  # bytes
_AGAIN = frozenset({408, 429, *range(500, 600)})
_THIS_QUESTION = frozenset({400, 413, 422})  # too long, or filtered: another question may well be answered


class JudgeError(LoracleError):
    """The judge cannot be asked at all: a wrong address, model or key."""


class Refused(LoracleError):
    """The endpoint refuses this question; asking again would not help. ``attempts`` requests were sent."""

    def __init__(self, message: str, attempts: int) -> None:
        super().__init__(message)
        self.attempts = attempts


class Unavailable(LoracleError):
    """No reply after all tries: overload, time-outs, an endpoint that is down. Asking later may help."""


class _TryAgain(Exception):
    """A try failed in a way that may pass; ``after_s`` is what the server asked for."""

    def __init__(self, message: str, after_s: float = 0.0) -> None:
        super().__init__(message)
        self.after_s = after_s


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass(frozen=True)
class Reply:
    """``text`` is null where there is none, and ``reason`` says why; ``usage`` is null where none was reported."""

    text: str | None
    reason: str | None
    usage: dict[str, int] | None
    attempts: int


def key_from(variable: str, required: bool) -> str | None:
    """The key in the environment variable of that name; no message ever holds its value."""
    value = os.environ.get(variable, "").strip()
    if not value:
        if required:
            raise SpecError(f"the environment variable {variable[:60]} is not set", "--judge-key-env")
        return None
    if not value.isascii() or not value.isprintable() or " " in value:
        raise SpecError(f"the value of {variable[:60]} cannot be a key: it holds spaces or odd characters")
    return value


class Endpoint:
    """``chat`` may be called from several threads; ``close`` ends all waiting. ``url`` is the base, as ``…/v1``."""

    def __init__(
        self,
        url: str,
        model: str,
        key: str | None = None,
        *,
        timeout_s: float = 120.0,
        tries: int = TRIES,
        backoff_s: float = BACKOFF_S,
    ) -> None:
        self.url, self.model, self.timeout_s, self.tries, self.backoff_s = (
            checked(url),
            model,
            timeout_s,
            tries,
            backoff_s,
        )
        self._key = key
        self._closed = threading.Event()
        self._open = urllib.request.build_opener(_NoRedirect).open

    @property
    def in_the_open(self) -> bool:
        """Whether the key would go unencrypted to another machine."""
        parts = urlsplit(self.url)
        near = parts.hostname in ("localhost", "::1") or (parts.hostname or "").startswith("127.")
        return self._key is not None and parts.scheme == "http" and not near

    def close(self) -> None:
        """No further try begins, and no wait goes on."""
        self._closed.set()

    def chat(self, messages: Sequence[Message], *, max_tokens: int, seed: int) -> Reply:
        """The reply at temperature 0. Raises ``Refused``, ``Unavailable`` or ``JudgeError``."""
        body = {
            "model": self.model,
            "messages": list(messages),
            "temperature": 0,
            "max_tokens": max_tokens,
            "seed": seed,
        }
        data = json.dumps(body).encode()
        for attempt in range(1, self.tries + 1):
            if self._closed.is_set():
                raise Unavailable("stopped")
            try:
                return reply_of(self._post(data, attempt), attempt)
            except _TryAgain as error:
                problem = str(error)
                if error.after_s > LONGEST_RETRY_AFTER_S:
                    raise Unavailable(f"{problem}; it asks to wait {error.after_s:,.0f} s") from None
                if attempt < self.tries:
                    backoff = min(LONGEST_BACKOFF_S, self.backoff_s * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)
                    self._closed.wait(max(error.after_s, backoff))
        raise Unavailable(f"{problem} ({self.tries} tries)")

    def _post(self, data: bytes, attempt: int) -> dict[str, Any]:
        """The JSON object that the endpoint answers with."""
        headers = {"Content-Type": "application/json", "User-Agent": f"loracle/{__version__}"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(f"{self.url}/chat/completions", data, headers, method="POST")
        try:
            with self._open(request, timeout=self.timeout_s) as response:
                raw = response.read(LARGEST_REPLY)
        except urllib.error.HTTPError as error:
            raise self._judged(error, attempt) from None
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error) from None
        try:
            value = json.loads(self._plain(raw))
        except (ValueError, RecursionError):
            raise _TryAgain(f"the reply is not whole JSON ({len(raw):,} bytes)") from None
        if not isinstance(value, dict):
            raise _TryAgain("the reply is not a JSON object")
        return value

    def _judged(self, error: urllib.error.HTTPError, attempt: int) -> Exception:
        """What an HTTP status means for this question and for the others."""
        with error:
            try:
                said = _said(self._plain(error.read(1 << 16)))
            except (OSError, http.client.HTTPException):
                said = ""
        message = f"HTTP {error.code}{': ' + said if said else ''}"
        if error.code in _AGAIN:
            return _TryAgain(message, _retry_after(error.headers.get("Retry-After")))
        if error.code in _THIS_QUESTION:
            return Refused(message, attempt)
        if 300 <= error.code < 400:
            return JudgeError(f"{self.url} redirects ({message}), which is not followed: give the final address")
        if error.code in (401, 403) and self._key is None:
            message += "; no key was sent: name the environment variable that holds it (--judge-key-env)"
        return JudgeError(f"{self.url}: {message}")

    def _broken(self, error: Exception) -> Exception:
        """A connection that failed: to be tried again, unless its certificate is wrong."""
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, ssl.SSLCertVerificationError):
            return JudgeError(f"{self.url}: the certificate cannot be trusted ({cause.verify_message})")
        if isinstance(cause, TimeoutError):
            return _TryAgain(f"no reply within {self.timeout_s:g} s")
        name = getattr(cause, "strerror", None) or type(cause).__name__
        return _TryAgain(f"the connection failed ({name})")

    def _plain(self, raw: bytes) -> str:
        """The server's text without the key, should it repeat it (words as short as EMPTY are no secrets)."""
        text = raw.decode("utf-8", "replace")
        return text.replace(self._key, "[key]") if self._key and len(self._key) >= 8 else text


def checked(url: str) -> str:
    """The base address without a slash at its end; a ``SpecError`` for one that cannot be or that holds a secret."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise SpecError("not an address: http(s)://HOST/v1 is needed", "--judge-url") from None
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise SpecError("must hold no user, password or query: a key goes into an environment variable", "--judge-url")
    if parts.scheme not in ("http", "https") or not host or any(c.isspace() for c in url):
        raise SpecError("not an address: http(s)://HOST/v1 is needed", "--judge-url")
    return url.rstrip("/").removesuffix("/chat/completions")


def reply_of(value: dict[str, Any], attempts: int) -> Reply:
    """Text and token counts of a chat completion."""
    counts = value.get("usage")
    usage = None
    if isinstance(counts, dict):
        found = {name: counts.get(name) for name in ("prompt_tokens", "completion_tokens")}
        if all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in found.values()):
            usage = {name: int(count) for name, count in found.items() if count is not None}
    choices = value.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        return Reply(None, "the reply has no choices", usage, attempts)
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else None
    if not isinstance(text, str) or not text.strip():
        return Reply(None, f"the reply has no text (finish_reason {choice.get('finish_reason')!r})", usage, attempts)
    return Reply(text.encode("utf-8", "replace").decode(), None, usage, attempts)  # half of a surrogate pair is no text


def _said(text: str) -> str:
    """The server's own words about an error, on one line."""
    try:
        value = json.loads(text)
        error = value.get("error", value)
        text = str(error.get("message", error)) if isinstance(error, dict) else str(error)
    except (ValueError, AttributeError, RecursionError):
        pass
    line = " ".join(text.split())
    return line if len(line) <= 200 else line[:199] + "…"


def _retry_after(value: str | None) -> float:
    """Seconds from a ``Retry-After`` header: a number or a date; 0 for none."""
    if not value:
        return 0.0
    try:
        return max(0.0, float(value)) if value.strip().isdigit() else _until(value)
    except (TypeError, ValueError):
        return 0.0


def _until(date: str) -> float:
    return max(0.0, email.utils.parsedate_to_datetime(date).timestamp() - time.time())
