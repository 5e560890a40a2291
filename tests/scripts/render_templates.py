"""Renders chat templates with Jinja2 configured as in transformers, as a reference for a test.

Reads `{"templates": DIR, "now": SECONDS, "conversations": [{"messages": [...], "inputs": {...}, ...}]}` and writes
`{NAME: [{"text": ...} or {"error": ...}, ...]}`. Beyond transformers: templates may change lists, and read JSON.
"""

import datetime
import json
import pathlib
import sys

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import SandboxedEnvironment


class Generation(Extension):
    """The `generation` tag around assistant content; has no effect on the output."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("through"), [], [], body).set_lineno(line)

    def through(self, caller):
        return caller()


def refuse(message):
    raise TemplateError(message)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def main():
    request = json.load(sys.stdin)
    now = datetime.datetime.fromtimestamp(request["now"], datetime.timezone.utc)
    env = SandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    env.filters["tojson"] = tojson
    env.filters["from_json"] = json.loads
    env.globals["raise_exception"] = refuse
    env.globals["strftime_now"] = now.strftime
    answers = {}
    for path in sorted(pathlib.Path(request["templates"]).glob("*.jinja")):
        answers[path.name] = found = []
        try:
            template = env.from_string(path.read_text(encoding="utf-8"))
        except Exception as error:
            found.extend({"error": repr(error)} for _ in request["conversations"])
            continue
        for given in request["conversations"]:
            inputs = given["inputs"]
            try:
                text = template.render(
                    messages=given["messages"],
                    tools=inputs["tools"] or None,
                    documents=inputs["documents"] or None,
                    add_generation_prompt=given["add_generation_prompt"],
                    bos_token=request["bos"],
                    eos_token=request["eos"],
                    **inputs["kwargs"],
                )
                found.append({"text": text})
            except Exception as error:
                found.append({"error": repr(error)})
    json.dump(answers, sys.stdout)


main()
