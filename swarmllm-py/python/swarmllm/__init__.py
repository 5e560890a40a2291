"""swarmllm: an LLM swarm that you can link.

    with swarmllm.Node(data_dir="data") as node:
        node.import_model("model.gguf", name="mine")
        for chunk in node.chat("mine", "Hello", stream=True):
            print(chunk.choices[0].delta.content, end="", flush=True)

`AsyncNode` is `Node` for asyncio. Every failure raises an `Error`; each kind has a subclass, such as `ModelNotFoundError`.
"""

from ._answers import AsyncChatStream as AsyncChatStream
from ._answers import AsyncStream as AsyncStream
from ._answers import AsyncTextStream as AsyncTextStream
from ._answers import ChatStream as ChatStream
from ._answers import Stream as Stream
from ._answers import TextStream as TextStream
from ._node import AsyncNode as AsyncNode
from ._node import Node as Node
from ._options import ChatOptions as ChatOptions
from ._options import Constraint as Constraint
from ._options import JsonSchema as JsonSchema
from ._options import Lark as Lark
from ._options import Messages as Messages
from ._options import Options as Options
from ._options import Part as Part
from ._options import Pooling as Pooling
from ._options import Regex as Regex
from ._records import *
from ._swarmllm import *
from ._swarmllm import __version__ as __version__
