"""A language model server on a real socket, with a rule for a model, that can be told to misbehave.

It speaks chat completions (json_schema, log-probabilities), System One and decisions, over raw asyncio: nothing between
the client under test and the bytes. Every call is counted by the SHA-256 of its body.

    python tests/llm_server.py [--delay SECONDS]      # prints its port, serves until its standard input closes

POST /faults  {"queue": [fault or null, ...], "first": fault, "always": fault}: the next calls take one each from the
queue; every distinct call meets `first` once; every call meets `always`. A fault is an object with a "kind":
    slow {seconds}, status {status, headers}, reply {status, body}, cut, garbage, drip, flood, twice, reorder,
    refuse {fields, status}, bad_first, bad, refusal, length, loop, pauses {seconds}, whole (not streamed)
GET /counts   {"total", "calls": {hash: count}, "in_flight", "most_in_flight", "connections"}
POST /reset   forgets faults and counts
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import math
import re
import subprocess
import sys
import urllib.request
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any

import llm_judges

MODEL = "rules"
DRIP_SECONDS = 0.02
FORM = "JSON schema:"  # behind these words a client spells out the form of the answer


def digest(*parts: object) -> int:
    """A number that depends on all of its arguments, the same in every process."""
    return int(hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12], 16)


def user_text(messages: Sequence[dict[str, Any]]) -> str:
    """What the user says, without a form spelt out before it."""
    said = "\n".join(message["content"] for message in messages if message["role"] == "user")
    return llm_judges.FORM.sub("", said).strip()


def plain_answer(messages: Sequence[dict[str, Any]]) -> str:
    """What the rule says where no form is asked for: it shows which messages were heard."""
    return f"heard {digest([message['content'] for message in messages]):012x}"


TEXT_FENCE = re.compile(r"^Text:\n<<<DATA (\w+)\n(.*?)\nDATA \1>>>$", re.DOTALL | re.MULTILINE)
NOTE_FENCE = re.compile(r"^Terse note.*:\n<<<DATA (\w+)\n(.*?)\nDATA \1>>>$", re.DOTALL | re.MULTILINE)
ARGUED_FENCE = re.compile(r"^Decision to argue for:\n<<<DATA (\w+)\n(.*?)\nDATA \1>>>$", re.DOTALL | re.MULTILINE)
# What a note makes a teacher do that says "teacher" and one of these words.
BAD_RATIONALES = {
    "empty": " - ",
    "refusal": "I'm sorry, but I cannot help with medical advice.",
    "too_long": " ".join(f"fever {chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(100)),
    "mask_token": "The fever decides, so it is [LABEL].",
    "copied_prompt": "Fever. Use only findings and numbers that the text has. Do not say what else.",
    "another_label": "The fever decides, so see a doctor or call an ambulance or rest by home care.",
    "not_in_text": "The fever of 97 degrees decides.",
    "unsupported": "Somebody of this kind was treated by specialists with antibiotics and recovered after days.",
}


def rationale_for(asked: str, text: str) -> str:
    """What the rule writes as a rationale: the first words of the text, a bad one if told so, or a note rewritten."""
    told = re.search(r"teacher (\w+)", text)
    if told:
        return BAD_RATIONALES[told[1]]
    if ARGUED_FENCE.search(asked):
        return f"It has {' '.join(text.split()[:5])}, which speaks for it; that it is stable speaks against it."
    if note := NOTE_FENCE.search(asked):
        if "editor drops" in text:
            return f"Additionally, so it is at {' '.join(text.split()[:2])}."
        if "editor turns" in text:
            return f"The patient denies {note[2]}."
        return f"The patient reports {note[2]}." + " Pneumonia is likely, in 1 of 40." * ("editor adds" in text)
    return f"It has {' '.join(text.split()[:6])}, which decides."


def filled(schema: dict[str, Any], text: str) -> dict[str, Any]:
    """An object of the schema: an option that the text names, else one by hash; words and numbers by hash.

    Where a rationale is asked for about a fenced text, only that text counts.
    """
    values: dict[str, Any] = {}
    asked = text
    if "rationale" in schema.get("properties", {}) and (fenced := TEXT_FENCE.search(asked)):
        text = fenced[2]
        values["rationale"] = rationale_for(asked, text)
    for name, field in schema.get("properties", {}).items():
        if name in values:
            continue
        if name == "label" and (argued := ARGUED_FENCE.search(asked)) and "contrarian" not in text:
            values[name] = argued[2]
            continue
        if field.get("type") == "boolean":
            values[name] = "unsupported" not in text
            continue
        if "enum" in field:
            named = [option for option in field["enum"] if str(option).lower() in text.lower()]
            values[name] = named[0] if named else field["enum"][digest(name, text) % len(field["enum"])]
        elif field.get("type") in ("integer", "number"):
            values[name] = 1 + digest(name, text) % 5
        else:
            values[name] = f"because of {digest(name, text):012x}"
    return values


def schema_in_words(messages: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The JSON schema that a message spells out, for clients that may not send it as a field."""
    for message in messages:
        _, form, schema = message["content"].partition(FORM)
        if form:
            found: dict[str, Any] = json.JSONDecoder().raw_decode(schema.lstrip())[0]
            return found
    return None


def probabilities(options: Sequence[str], state: str) -> dict[str, float]:
    """Options named in the state weigh more; their order does not matter, unless the state says "hesitates"."""
    weights = {o: math.exp(2.0 * (o.lower() in state.lower()) + digest(o, state) % 100 / 100) for o in options}
    if "hesitates" in state:
        weights[options[0]] += 100.0
    total = sum(weights.values())
    return {option: weight / total for option, weight in weights.items()}


def chat(payload: dict[str, Any], fault: dict[str, Any]) -> dict[str, Any]:
    messages = payload["messages"]
    repairing = any(message["role"] == "assistant" for message in messages)
    judged: tuple[str, list[dict[str, Any]]] | None = None
    form = payload.get("response_format", {}).get("json_schema", {}).get("schema")
    if fault["kind"] == "bad" or (fault["kind"] == "bad_first" and not repairing):
        text = 'Certainly! {"label": unsure about ' + user_text(messages)[:20]
    elif fault["kind"] == "loop" or fault.get("loops"):
        text = '{"rationale": "' + "The patient has a fever. " * 400
    elif judged := llm_judges.judged(payload, form or schema_in_words(messages)):
        text = judged[0]
    elif form:
        text = json.dumps(filled(form, user_text(messages[:2])))
    elif form := schema_in_words(messages):
        text = (
            f"Here you are:\n```json\n{json.dumps(filled(form, user_text(messages[:2])))[:-1]},}}\n```\nAnything else?"
        )
    else:
        text = plain_answer(messages)
    choice: dict[str, Any] = {
        "index": 0,
        "finish_reason": "length" if fault["kind"] == "length" else "stop",
        "message": {"role": "assistant", "content": text[: len(text) // 2] if fault["kind"] == "length" else text},
    }
    if fault["kind"] == "refusal":
        choice["message"] = {"role": "assistant", "content": None, "refusal": "I would rather not."}
    if payload.get("logprobs"):
        words = text.split()
        choice["logprobs"] = {
            "content": [
                {"token": word, "logprob": -0.125 * i, "top_logprobs": [{"token": word, "logprob": -0.125 * i}]}
                for i, word in enumerate(words)
            ]
        }
        if judged:
            choice["logprobs"]["content"] = judged[1]
    choices = [choice]
    if fault["kind"] == "reorder":  # more choices than asked for, the wanted one last
        other = {"index": 1, "finish_reason": "stop", "message": {"role": "assistant", "content": "another's answer"}}
        choices = [other, choice]
    tokens_in = sum(len(message["content"]) for message in messages) // 4
    tokens_out = len(text) // 4
    usage = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}
    served = f"{payload['model']}-2026"
    return {"id": "c", "object": "chat.completion", "created": 0, "model": served, "choices": choices, "usage": usage}


def systemone(payload: dict[str, Any]) -> dict[str, Any]:
    answers: dict[str, Any] = {}
    state = payload["state"]
    for name, question in payload["questions"].items():
        criteria = question.get("criteria")
        if question["type"] == "choice":
            options = list(criteria)
            p = llm_judges.decided(payload["model"], state, question, options) or probabilities(options, state)
            best = max(p, key=p.__getitem__)
            answers[name] = {"type": "choice", "choice": best, "confidence": p[best], "probabilities": p}
        elif question["type"] == "score":
            options = [str(level) for level in range(len(criteria))]
            p = llm_judges.decided(payload["model"], state, question, options) or probabilities(options, state)
            legend = {str(level): words for level, words in enumerate(criteria)}
            mean = sum(int(level) * share for level, share in p.items())
            answers[name] = {"type": "score", "score": mean, "legend": legend, "confidence": 0.5, "probabilities": p}
        else:
            answers[name] = {"type": "noul", "noul": probabilities(["true", "false"], state)["true"]}
    usage = {"input_tokens": len(state) // 4, "output_tokens": 0}
    return {"model": payload["model"], "answers": answers, "usage": usage}


def decisions(payload: dict[str, Any], fault: dict[str, Any]) -> dict[str, Any]:
    answers: list[dict[str, Any]] = []
    state = payload["input"]
    for question in payload["questions"]:
        answer: dict[str, Any] = {"type": question["type"], "name": question.get("name")}
        if fault["kind"] == "refusal":
            answer["type"] = "refusal"
        elif question["type"] == "predicate":
            answer["probability"] = probabilities(["true", "false"], state)["true"]
        elif question["type"] == "choice":
            options = [choice["value"] for choice in question["choices"]]
            p = llm_judges.decided(payload["model"], state, question, options) or probabilities(options, state)
            best = max(p, key=p.__getitem__)
            answer |= {"choice": best, "confidence": p[best]}
            answer["probabilities"] = [{"value": value, "probability": share} for value, share in p.items()]
        else:
            labels = [level["label"] for level in question["levels"]]
            p = llm_judges.decided(payload["model"], state, question, labels) or probabilities(labels, state)
            answer |= {"score": sum(i * share for i, share in enumerate(p.values())), "confidence": 0.5}
            answer["probabilities"] = [
                {"value": i, "label": label, "probability": p[label]} for i, label in enumerate(labels)
            ]
        answers.append(answer)
    if fault["kind"] == "reorder":
        answers.reverse()
    if fault["kind"] == "twice":
        answers += answers
    tokens = {"input_tokens": len(state) // 4, "output_tokens": 0, "total_tokens": len(state) // 4}
    details = {"input_tokens_details": {"cache_write_tokens": 0, "cached_tokens": 0}}
    usage = {**tokens, **details, "output_tokens_details": {"reasoning_tokens": 0}}
    return {"model": payload["model"], "answers": answers, "usage": usage}


STREAMED = ("none", "slow", "cut", "pauses", "reorder", "refuse", "bad", "bad_first", "refusal", "length", "loop")


def chunks(answer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The events of a streamed answer: its words one by one, the log-probabilities with the first, usage at the end."""
    common = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": answer["model"]}
    for choice in answer["choices"]:
        message, index = choice["message"], {"index": choice["index"]}
        yield {**common, "choices": [{**index, "delta": {**message, "content": None}, "finish_reason": None}]}
        for i, word in enumerate(re.findall(r"\s*\S+|\s+", message["content"] or "")):
            own = {**index, "delta": {"content": word}, "finish_reason": None}
            yield {**common, "choices": [own if i else {**own, "logprobs": choice.get("logprobs")}]}
        yield {**common, "choices": [{**index, "delta": {}, "finish_reason": choice["finish_reason"]}]}
    yield {**common, "choices": [], "usage": answer["usage"]}


class Server:
    """Faults, counts, and one coroutine a connection."""

    def __init__(self, delay: float) -> None:
        self.delay = delay
        self.reset()

    def reset(self) -> None:
        self.queue: deque[dict[str, Any] | None] = deque()
        self.first: dict[str, Any] | None = None
        self.always: dict[str, Any] | None = None
        self.calls: Counter[str] = Counter()
        self.in_flight = self.most_in_flight = self.connections = 0

    def fault(self, body_hash: str) -> dict[str, Any]:
        if self.queue:
            fault = self.queue.popleft()
        else:
            fault = self.first if self.first and self.calls[body_hash] == 1 else self.always
        return fault or {"kind": "none"}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                found = re.search(r"^content-length: *(\d+)", head, re.IGNORECASE | re.MULTILINE)
                body = await reader.readexactly(int(found[1])) if found else b""
                method, path, _ = head.split(" ", 2)
                if path.startswith("/v1/") and method == "POST":
                    self.in_flight += 1
                    self.most_in_flight = max(self.most_in_flight, self.in_flight)
                    try:
                        if not await self.call(path, head, body, writer):
                            break
                    finally:
                        self.in_flight -= 1
                else:
                    self.send(writer, 200, self.control(path, body))
                await writer.drain()
        writer.close()

    def control(self, path: str, body: bytes) -> Any:
        if path == "/faults":
            told = json.loads(body)
            self.queue.extend(told.get("queue", []))
            self.first, self.always = told.get("first"), told.get("always")
        elif path == "/reset":
            self.reset()
        elif path == "/v1/models":
            return {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
        counts = {"total": self.calls.total(), "calls": dict(self.calls), "in_flight": self.in_flight}
        return {**counts, "most_in_flight": self.most_in_flight, "connections": self.connections}

    def send(
        self,
        writer: asyncio.StreamWriter,
        status: int,
        content: Any,
        headers: dict[str, str] | None = None,
        times: int = 1,
    ) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        lines = [f"HTTP/1.1 {status} Told So", "Content-Type: application/json", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        writer.write(("\r\n".join([*lines, "", ""]).encode() + body) * times)

    async def call(self, path: str, head: str, body: bytes, writer: asyncio.StreamWriter) -> bool:
        """Answer one call of a model; false where the connection is to be closed."""
        body_hash = hashlib.sha256(body).hexdigest()
        self.calls[body_hash] += 1
        payload = json.loads(body)
        fault = self.fault(body_hash)
        await asyncio.sleep(fault.get("seconds", self.delay))
        # Servers do repeat what they were sent, and even keys, in their errors: so does this one.
        told = f"cannot do that, {head} {body.decode()}"
        if fault["kind"] == "status":
            content = {"error": {"message": told, "code": fault.get("code")}}
            self.send(writer, fault["status"], content, fault.get("headers"))
            return True
        if payload.get("model") not in llm_judges.MODELS:
            self.send(writer, 404, {"error": {"message": told, "code": "model_not_found"}})
            return True
        if fault["kind"] == "refuse":
            refused = [name for name in fault["fields"] if f'"{name}"' in body.decode()]
            if refused:
                self.send(writer, fault.get("status", 400), {"error": {"message": told, "param": refused[0]}})
                return True
        if fault["kind"] == "reply":
            self.send(writer, fault["status"], fault["body"])
            return True
        try:
            if path == "/v1/chat/completions":
                answer = json.dumps(chat(payload, fault)).encode()
            elif path == "/v1/systemone":
                answer = json.dumps(systemone(payload)).encode()
            else:
                answer = json.dumps(decisions(payload, fault)).encode()
        except (KeyError, TypeError, AttributeError):
            self.send(writer, 422, {"detail": [{"loc": ["body"], "msg": told, "type": "value_error"}]})
            return True
        if payload.get("stream") and fault["kind"] in STREAMED:
            await self.stream(json.loads(answer), fault, writer)
            return False
        return await self.send_answer(answer, fault, writer)

    async def stream(self, answer: dict[str, Any], fault: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        """Send an answer as server-sent events, some words at a time."""
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        events = list(chunks(answer))
        for event in events[: len(events) // 2] if fault["kind"] == "cut" else events:
            writer.write(f"data: {json.dumps(event)}\n\n".encode())
            await writer.drain()
            if fault["kind"] == "pauses":
                await asyncio.sleep(fault["seconds"])
        if fault["kind"] != "cut":
            writer.write(b": that was all\n\ndata: [DONE]\n\n")
        await writer.drain()

    async def send_answer(self, answer: bytes, fault: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
        if fault["kind"] == "garbage":
            self.send(writer, 200, b"<html>" + answer[:40])
        elif fault["kind"] == "cut":
            writer.write(head + f"Content-Length: {len(answer)}\r\n\r\n".encode() + answer[: len(answer) // 2])
            await writer.drain()
            return False
        elif fault["kind"] in ("drip", "flood"):
            piece = b" " if fault["kind"] == "drip" else b" " * 65536
            writer.write(head + b"Transfer-Encoding: chunked\r\n\r\n")
            while True:
                writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                await writer.drain()
                await asyncio.sleep(DRIP_SECONDS if fault["kind"] == "drip" else 0)
        elif fault["kind"] == "twice":  # the same answer again where the next one belongs
            self.send(writer, 200, answer, times=2)
        else:
            self.send(writer, 200, answer)
        return True


async def main(delay: float) -> None:
    server = await asyncio.start_server(Server(delay).serve, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await asyncio.to_thread(sys.stdin.read)


class LlmServer:
    """The server as its own process, and what a test tells and asks it."""

    def __init__(self, delay: float = 0.0) -> None:
        command = [sys.executable, __file__, "--delay", str(delay)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.base_url = f"http://127.0.0.1:{self.port}/v1"

    def _ask(self, path: str, told: Any = None) -> Any:
        data = None if told is None else json.dumps(told).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", data, timeout=10) as reply:
            return json.load(reply)

    def faults(self, **told: Any) -> None:
        self._ask("/faults", told)

    def reset(self) -> None:
        self._ask("/reset", {})

    def counts(self) -> Any:
        return self._ask("/counts")

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def running(delay: float = 0.0) -> Iterator[LlmServer]:
    """A server for as long as the context lasts."""
    server = LlmServer(delay)
    try:
        yield server
    finally:
        server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay", type=float, default=0.0)
    asyncio.run(main(parser.parse_args().delay))
