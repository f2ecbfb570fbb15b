"""gpt-oss models with every tensor in reach: NumPy views of the weights, the cache, the logits and
the activations.

    model = gptoss.Model("demo")
    gen = gptoss.Generator(model)
    for out in gen.generate("Once upon a time", max_tokens=64):
        print(out.text, end="")
"""

from gptoss import _core, blocks, mx
from gptoss.adapter import Adapter
from gptoss.batch import Completion, forward, generate_batch
from gptoss.chat import Chat, Reply, ToolCall
from gptoss.checkpoint import Checkpoint, ListedTensor
from gptoss.comparison import compare
from gptoss.conversion import convert
from gptoss.errors import (
    ArgumentError,
    ContextError,
    DeviceError,
    Error,
    FileError,
    FormatError,
    InUseError,
    NotFoundError,
    NumericError,
    OutOfMemoryError,
    StateError,
    UnsupportedError,
)
from gptoss.generation import Generation, Output, TokenLogprob
from gptoss.generator import Generator
from gptoss.metadata import Metadata, MetadataInfo
from gptoss.model import Config, Expert, Model, TensorInfo
from gptoss.placement import Share
from gptoss.quantization import quantize
from gptoss.sampling import Draw, Sampling
from gptoss.score import Score, score
from gptoss.speculation import Speculation, SpeculationStats
from gptoss.token_generator import TokenGenerator
from gptoss.tokenizer import Tokenizer

__version__ = _core.version()

__all__ = [
    "Adapter",
    "ArgumentError",
    "Chat",
    "Checkpoint",
    "Completion",
    "Config",
    "ContextError",
    "DeviceError",
    "Draw",
    "Error",
    "Expert",
    "FileError",
    "FormatError",
    "Generation",
    "Generator",
    "InUseError",
    "ListedTensor",
    "Metadata",
    "MetadataInfo",
    "Model",
    "NotFoundError",
    "NumericError",
    "OutOfMemoryError",
    "Output",
    "Reply",
    "Sampling",
    "Score",
    "Share",
    "Speculation",
    "SpeculationStats",
    "StateError",
    "TensorInfo",
    "TokenGenerator",
    "TokenLogprob",
    "Tokenizer",
    "ToolCall",
    "UnsupportedError",
    "blocks",
    "compare",
    "convert",
    "forward",
    "generate_batch",
    "mx",
    "quantize",
    "score",
]
