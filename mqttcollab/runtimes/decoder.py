"""A GGUF model and its llama.cpp context: from messages to tokens, from tokens to text. Blocking, one thread.

`llama_cpp.Llama` loads and decodes. Its `create_chat_completion` is not used: it gives logprobs only with
`logits_all`, which keeps every logit of the context (on SmolLM2: 25 instead of 130 tokens/s, 630 instead of
250 MB). The logits of the token just sampled are at hand anyway.
"""

from __future__ import annotations

import codecs
import ctypes
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mqttcollab.errors import RequestError, RuntimeFailure
from mqttcollab.runtimes.base import ChatMessage, Chunk, GenerationParameters
from mqttcollab.runtimes.gguf import check_context_length, llama_cpp_module, open_gguf
from mqttcollab.runtimes.grammar import grammar_of
from mqttcollab.runtimes.loops import LoopWatch

# How much of a prompt is read at a time: 512 is hardly faster, and a cancelled request stops between slices.
SLICE = 128
# What nearly every model was trained for.
_USUAL_CONTEXT = 2048


@dataclass(frozen=True, slots=True)
class DecoderOptions:
    """How to open a model; `LlamaRuntime` says what they mean."""

    context_length: int = 2048
    threads: int | None = None
    gpu_layers: int = 0
    reuse_prompts: bool = True


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a generation; `tokens_per_s` is without reading the prompt, None for a single token."""

    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    tokens_per_s: float | None


class TextTail:
    """Turns the bytes of tokens into text: whole characters only, nothing from a stop string on.

    What may yet become a stop string is held back until that is settled.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._held = ""

    def push(self, piece: bytes) -> tuple[str, bool]:
        """Return the text that is settled, and whether a stop string ended it."""
        self._held += self._decode(piece)
        hits = [at for text in self._stop if (at := self._held.find(text)) >= 0]
        if hits:
            settled, self._held = self._held[: min(hits)], ""
            return settled, True
        keep = max((_overlap(self._held, text) for text in self._stop), default=0)
        cut = len(self._held) - keep
        settled, self._held = self._held[:cut], self._held[cut:]
        return settled, False

    def flush(self) -> str:
        """Return what was held back, at the end."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` with which `stop` begins."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


class Decoder:
    """One model and one context. Use it from one thread at a time.

    Raises:
        RuntimeFailure: the file can't be opened, or has no chat template.
        ConfigError: the context is longer than the model was trained for.
    """

    def __init__(self, path: Path, options: DecoderOptions) -> None:
        if options.context_length > _USUAL_CONTEXT:  # before the memory for it is taken
            check_context_length(path, options.context_length)
        self._llm = open_gguf(
            path,
            n_ctx=options.context_length,
            n_batch=SLICE,
            n_ubatch=SLICE,
            n_threads=options.threads,
            n_threads_batch=options.threads,
            n_gpu_layers=options.gpu_layers,
        )
        self._c = llama_cpp_module()
        self._vocab = self._c.llama_model_get_vocab(self._llm.model)
        try:
            self._template = self._chat_template(path)
        except Exception:
            self.close()
            raise
        # llama.cpp rounds a small context up
        self.context_length: int = min(options.context_length, self._llm.n_ctx())
        self._reuse_prompts = options.reuse_prompts
        self._read: list[int] = []  # the prompt tokens in the context
        self._control = self._control_tokens()

    def close(self) -> None:
        """Free the model."""
        self._llm.close()

    def prompt(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Return the tokens of the messages under the model's chat template.

        Control tokens spelled out in a message are taken out of it, so that no peer's text can pose as
        another turn of the conversation.

        Raises:
            RequestError: `too_large` (over the context), `bad_request` (the template refuses the messages).
        """
        turns = [{"role": message.role, "content": self._plain(message.content)} for message in messages]
        try:
            text = self._template(messages=turns).prompt
        except Exception as error:  # templates raise what they like
            reason = f"the model's chat template refuses the messages: {error}"
            raise RequestError("bad_request", reason) from error
        tokens: list[int] = self._llm.tokenize(text.encode(errors="replace"), add_bos=False, special=True)
        bos = self._c.llama_vocab_bos(self._vocab)
        if self._c.llama_vocab_get_add_bos(self._vocab) and tokens[:1] != [bos]:
            tokens.insert(0, bos)
        if not tokens:
            raise RequestError("bad_request", "the messages make an empty prompt; say something")
        if len(tokens) >= self.context_length:
            raise RequestError(
                "too_large",
                f"the prompt has {len(tokens)} tokens, the context holds {self.context_length} with the "
                "answer; shorten the messages or raise context_length",
            )
        return tokens

    def generate(
        self,
        prompt: list[int],
        parameters: GenerationParameters,
        emit: Callable[[Chunk], bool],
        wanted: Callable[[], bool],
    ) -> Done | None:
        """Generate one chunk per token, and what was held back at the end as one without a logprob.

        Args:
            prompt: tokens from `prompt()`.
            parameters: how to generate.
            emit: takes a chunk; returns False to stop.
            wanted: asked between the slices of a prompt; False to stop.

        Returns:
            The figures, or None if it was stopped.

        Raises:
            RequestError: `unsupported`, the parameters' schema makes no grammar.
        """
        try:
            if not self._read_prompt(prompt, wanted):
                return None
            return self._answer(prompt, parameters, emit)
        except BaseException:
            self._read = []
            raise

    def _answer(
        self, prompt: list[int], parameters: GenerationParameters, emit: Callable[[Chunk], bool]
    ) -> Done | None:
        tail = TextTail(parameters.stop)
        limit = min(parameters.max_tokens, self.context_length - len(prompt))
        count, timed, seconds, finish = 0, 0, 0.0, "length"
        tokens, loops = self._tokens(prompt, parameters), LoopWatch(parameters.loop_tokens)
        while count < limit:
            started = time.perf_counter()
            token = next(tokens)
            if count:  # the first one reads the rest of the prompt
                timed, seconds = timed + 1, seconds + time.perf_counter() - started
            if self._c.llama_vocab_is_eog(self._vocab, token):
                finish = "stop"
                break
            count += 1
            text, stopped = tail.push(self._piece(token))
            if not emit(Chunk(text, self._logprob(token))):
                return None
            if stopped:
                finish = "stop"
                break
            if loops.push(token):
                finish = "loop"
                break
        if (rest := tail.flush()) and not emit(Chunk(rest)):
            return None
        return Done(len(prompt), count, finish, timed / seconds if seconds else None)

    def _tokens(self, prompt: list[int], parameters: GenerationParameters) -> Iterator[int]:
        random_seed = int.from_bytes(os.urandom(4), "little")
        self._llm.set_seed(parameters.seed if parameters.seed is not None else random_seed)
        tokens: Iterator[int] = self._llm.generate(
            prompt,
            temp=parameters.temperature,
            top_k=parameters.top_k,
            top_p=parameters.top_p,
            min_p=0.0,
            repeat_penalty=1.0,
            grammar=None if parameters.schema is None else grammar_of(parameters.schema, self._vocab),
        )
        return tokens

    def _read_prompt(self, prompt: list[int], wanted: Callable[[], bool]) -> bool:
        """Read all slices of the prompt but the last, which `Llama.generate` reads; False if not wanted.

        Only whole slices of the last prompt are kept: what was read in other portions differs in the last
        bits, and the same question would not get the same answer.
        """
        llm = self._llm
        keep = self._shared_slices(prompt) if self._reuse_prompts else 0
        llm.n_tokens = keep
        if keep and not self._c.llama_memory_seq_rm(self._c.llama_get_memory(llm.ctx), 0, keep, -1):
            keep = 0  # recurrent models can't go back
        if not keep:
            llm.reset()
        last = (len(prompt) - 1) // SLICE * SLICE
        for start in range(keep, last, SLICE):
            self._read = prompt[:start]
            if not wanted():
                return False
            llm.eval(prompt[start : start + SLICE])
        self._read = prompt
        return wanted()

    def _shared_slices(self, prompt: list[int]) -> int:
        longest = min(len(self._read), len(prompt) - 1)
        shared = next((i for i in range(longest) if self._read[i] != prompt[i]), longest)
        return shared // SLICE * SLICE

    def _piece(self, token: int) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = self._c.llama_token_to_piece(self._vocab, token, buffer, size, 0, False)
            if length >= 0:
                return buffer.raw[:length]
            size = -length

    def _logprob(self, token: int) -> float:
        """Return the log probability of the token just sampled, before temperature, top_k and top_p."""
        import numpy as np

        pointer = self._c.llama_get_logits_ith(self._llm.ctx, -1)
        logits = np.ctypeslib.as_array(pointer, shape=(self._llm.n_vocab(),))
        top = logits.max()
        return min(0.0, float(logits[token] - top - np.log(np.exp(logits - top).sum())))

    def _chat_template(self, path: Path) -> Callable[..., Any]:
        source = self._llm.metadata.get("tokenizer.chat_template")
        if source is None:
            raise RuntimeFailure(f"model {path} has no chat template; use an instruction-tuned model")
        bos, eos = self._c.llama_vocab_bos(self._vocab), self._c.llama_vocab_eos(self._vocab)
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        return Jinja2ChatFormatter(template=source, bos_token=self._token_text(bos), eos_token=self._token_text(eos))

    def _token_text(self, token: int) -> str:
        return str(self._c.llama_vocab_get_text(self._vocab, token).decode()) if token >= 0 else ""

    def _control_tokens(self) -> re.Pattern[str] | None:
        tokens = (t for t in range(self._llm.n_vocab()) if self._c.llama_vocab_is_control(self._vocab, t))
        texts = sorted(filter(None, map(self._token_text, tokens)), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts))) if texts else None

    def _plain(self, text: str) -> str:
        while self._control is not None and self._control.search(text):
            text = self._control.sub("", text)
        return text
