"""Put a streamed chat completion together: server-sent events, each with a piece of the answer.

Source: OpenAI's chat completions with `stream` (objects `chat.completion.chunk`); events of the HTML standard, 9.2.
"""

from __future__ import annotations

import json
from typing import Any

DONE = "[DONE]"
REASONING = ("reasoning_content", "reasoning")  # vLLM, llama.cpp and DeepSeek; Ollama and OpenRouter


class StreamedCompletion:
    """Collects the lines of a stream into the body that an unstreamed reply would have.

    Of several answers only the first counts, as in `dialects.read_reply`. `text` is what was written so far.
    """

    def __init__(self) -> None:
        self.text = ""
        self._reasoning = ""
        self._rest: dict[str, Any] = {}
        self._choice: dict[str, Any] = {}
        self._refusal: str | None = None
        self._tokens: list[Any] = []
        self.finished = False

    @property
    def newest(self) -> str:
        """What is being written: the answer, or the reasoning before it."""
        return self.text or self._reasoning

    def feed(self, line: str) -> None:
        """Read one line of the stream.

        Raises:
            ValueError: its data are not a chunk of the protocol; the message quotes nothing of it.
        """
        field, _, value = line.partition(":")
        if field != "data":
            return  # a comment that keeps the connection open, an event's name or the end of an event
        data = value.strip()
        if data == DONE:
            self.finished = True
            return
        try:
            chunk = json.loads(data)
            if chunk.get("error"):
                self._rest["error"] = chunk["error"]
                self.finished = True
                return
            self._add(chunk)
        except (ValueError, RecursionError, TypeError, AttributeError, KeyError):
            raise ValueError("the reply's stream is not that of a chat completion") from None

    def _add(self, chunk: dict[str, Any]) -> None:
        self._rest |= {name: chunk[name] for name in ("model", "usage") if chunk.get(name) is not None}
        for choice in chunk.get("choices") or ():
            if choice.get("index", 0) != 0:
                continue
            self._choice["index"] = 0
            delta = choice.get("delta") or choice.get("message") or {}
            self.text += joined(delta.get("content"))
            self._reasoning += next((joined(delta[name]) for name in REASONING if delta.get(name)), "")
            self._refusal = delta.get("refusal") or self._refusal
            self._tokens += (choice.get("logprobs") or {}).get("content") or ()
            if choice.get("finish_reason"):
                self._choice["finish_reason"] = choice["finish_reason"]
                self.finished = True

    def body(self) -> dict[str, Any]:
        """The whole reply."""
        if not self._choice:
            return self._rest
        message = {"content": self.text, REASONING[0]: self._reasoning, "refusal": self._refusal}
        logprobs = {"content": self._tokens} if self._tokens else None
        return {**self._rest, "choices": [{**self._choice, "message": message, "logprobs": logprobs}]}


def joined(content: Any) -> str:
    """The text of a message's content, which may be a list of parts; empty if there is none.

    Raises:
        ValueError: it is something else.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(joined(part.get("text")) if isinstance(part, dict) else joined(part) for part in content)
    raise ValueError("the reply's content is not text")
