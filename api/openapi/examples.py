"""The same call in Python, Node.js and curl, for the routes that most people begin with.

`{base}` stands for the address of the API, as the SDKs want it.
"""

from typing import Final

_PYTHON_HEAD: Final = """\
from openai import OpenAI

client = OpenAI(api_key="inf_your_api_key", base_url="{base}")
"""
_NODE_HEAD: Final = """\
import OpenAI from "openai";

const client = new OpenAI({ apiKey: "inf_your_api_key", baseURL: "{base}" });
"""
_PYTHON_HTTP: Final = """\
import json
import urllib.request

request = urllib.request.Request(
    "{base}PATH",
    headers={"Authorization": "Bearer inf_your_api_key", "Content-Type": "application/json"},
)
print(json.load(urllib.request.urlopen(request)))"""
_NODE_HTTP: Final = """\
const response = await fetch("{base}PATH", {
  headers: { Authorization: "Bearer inf_your_api_key" },
});
console.log(await response.json());"""
_CURL_GET: Final = """\
curl {base}PATH \\
  -H "Authorization: Bearer inf_your_api_key\""""

# By operation: code of Python, Node.js and curl.
EXAMPLES: Final[dict[str, tuple[str, str, str]]] = {
    "create_chat_completion": (
        _PYTHON_HEAD
        + """\
stream = client.chat.completions.create(
    model="inferbase/demo",
    messages=[{"role": "user", "content": "What is Inferbase?"}],
    stream=True,
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="")""",
        _NODE_HEAD
        + """\
const stream = await client.chat.completions.create({
  model: "inferbase/demo",
  messages: [{ role: "user", content: "What is Inferbase?" }],
  stream: true,
});
for await (const chunk of stream) {
  process.stdout.write(chunk.choices[0].delta.content ?? "");
}""",
        """\
curl -N {base}/chat/completions \\
  -H "Authorization: Bearer inf_your_api_key" \\
  -H "Content-Type: application/json" \\
  -d '{"model":"inferbase/demo","messages":[{"role":"user","content":"What is Inferbase?"}],"stream":true}'""",
    ),
    "create_completion": (
        _PYTHON_HEAD
        + """\
completion = client.completions.create(model="inferbase/demo", prompt="Inferbase is", max_tokens=32)
print(completion.choices[0].text)""",
        _NODE_HEAD
        + """\
const completion = await client.completions.create({
  model: "inferbase/demo",
  prompt: "Inferbase is",
  max_tokens: 32,
});
console.log(completion.choices[0].text);""",
        """\
curl {base}/completions \\
  -H "Authorization: Bearer inf_your_api_key" \\
  -H "Content-Type: application/json" \\
  -d '{"model":"inferbase/demo","prompt":"Inferbase is","max_tokens":32}'""",
    ),
    "create_embedding": (
        _PYTHON_HEAD
        + """\
answer = client.embeddings.create(model="inferbase/demo", input=["one text", "another"])
print([len(item.embedding) for item in answer.data])""",
        _NODE_HEAD
        + """\
const answer = await client.embeddings.create({
  model: "inferbase/demo",
  input: ["one text", "another"],
});
console.log(answer.data.map((item) => item.embedding.length));""",
        """\
curl {base}/embeddings \\
  -H "Authorization: Bearer inf_your_api_key" \\
  -H "Content-Type: application/json" \\
  -d '{"model":"inferbase/demo","input":["one text","another"]}'""",
    ),
    "get_models": (
        _PYTHON_HEAD + "print([model.id for model in client.models.list()])",
        _NODE_HEAD + "for await (const model of client.models.list()) console.log(model.id);",
        "curl {base}/models",
    ),
    "create_key": (
        _PYTHON_HTTP.replace("PATH", "/keys").replace(
            'json"},', 'json"},\n    data=json.dumps({"name": "laptop", "budget": "5"}).encode(),'
        ),
        _NODE_HTTP.replace("PATH", "/keys").replace(
            'key" },',
            'key", "Content-Type": "application/json" },\n  method: "POST",\n'
            '  body: JSON.stringify({ name: "laptop", budget: "5" }),',
        ),
        _CURL_GET.replace("PATH", "/keys")
        + """ \\
  -H "Content-Type: application/json" \\
  -d '{"name":"laptop","budget":"5"}'""",
    ),
    **{
        operation: (
            _PYTHON_HTTP.replace("PATH", path),
            _NODE_HTTP.replace("PATH", path),
            _CURL_GET.replace("PATH", path),
        )
        for operation, path in {
            "get_keys": "/keys",
            "get_credits": "/credits",
            "get_transactions": "/credits/transactions",
            "get_usage": "/usage",
        }.items()
    },
}
LANGUAGES: Final = (("Python", "python"), ("Node.js", "javascript"), ("curl", "bash"))


def example_text(operation: str, base: str) -> str:
    """Return the examples of an operation as Markdown, or nothing where it has none."""
    codes = EXAMPLES.get(operation, ())
    shown = [
        f"**{name}**\n\n```{language}\n{code.replace('{base}', base)}\n```"
        for (name, language), code in zip(LANGUAGES, codes, strict=bool(codes))
    ]
    return "\n\n".join(shown)
