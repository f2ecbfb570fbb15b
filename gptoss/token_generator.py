"""The token generator of openai/gpt-oss, on this engine."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from gptoss.chat import feed
from gptoss.errors import ArgumentError, require_integer
from gptoss.generator import Generator
from gptoss.model import Model
from gptoss.sampling import Sampling


class TokenGenerator:
    """Stands in for the TokenGenerator of openai/gpt-oss (gpt_oss.torch, .triton and .vllm).

    Args:
        checkpoint: path or name of a model, as in Model.
        device: "cpu", or what is written so, as torch.device("cpu") is.
        context: tokens of prompt and answer together; by default as many as the model was made for.
        model_options: the other options of Model.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        device: object = "cpu",
        *,
        context: int | None = None,
        **model_options: Any,
    ) -> None:
        self.model = Model(checkpoint, device=str(device), **model_options)
        context = context if context is not None else self.model.config.max_positions
        self._generator = Generator(self.model, max_context=context)

    def generate(
        self,
        prompt_tokens: Sequence[int],
        stop_tokens: Collection[int] | None = None,
        temperature: float = 1.0,
        max_tokens: int | None = None,
        return_logprobs: bool = False,
    ) -> Iterator[int | tuple[int, float]]:
        """Yields tokens, or pairs of token and log-probability (of the unscaled logits).

        A stop token is yielded too, and ends the iteration; without stop_tokens nothing does.
        max_tokens counts every token yielded; None or 0 is no limit, and then ContextError is
        raised when the context is full. temperature 0 takes the most likely token. What the prompt
        shares with the tokens of the call before is not computed again.
        """
        if len(prompt_tokens) == 0:
            raise ArgumentError("prompt_tokens is empty: there is nothing to continue")
        limit = require_integer("max_tokens", max_tokens or 0, 0)
        sampling = Sampling(temperature=temperature).with_seed()
        stops = frozenset(stop_tokens or ())
        generator = self._generator
        feed(generator, prompt_tokens)
        num_generated = 0
        while True:
            token, logprob = generator.draw(sampling)
            num_generated += 1
            yield (token, logprob) if return_logprobs else token
            if token in stops or num_generated == limit:
                return
            generator.step(token)
