"""Starts a node, imports a model, asks it, prints the route, stops. `chat.py FILE.gguf|MODEL [QUESTION]`"""

import os
import sys

import swarmllm


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit("usage: chat.py FILE.gguf|MODEL [QUESTION]")
    model = sys.argv[1]
    question = sys.argv[2] if len(sys.argv) > 2 else "What is a swarm?"

    with swarmllm.Node() as node:
        if os.path.isfile(model):
            model = node.import_model(model).id
        for chunk in node.chat(model, question, stream=True, max_tokens=64):
            print(chunk.choices[0].delta.content, end="", flush=True)
            if chunk.route:
                print()
                for stage in chunk.route:
                    layers = f"{stage.layers.start}..{stage.layers.end}"
                    print(f"layers {layers} on {stage.node[:8]} by {stage.engine}")


if __name__ == "__main__":
    try:
        main()
    except swarmllm.Error as error:
        sys.exit(f"chat.py: {error}")
