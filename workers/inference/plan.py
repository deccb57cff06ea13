"""What a claimed job asks of a loaded model: its choices with their prompts and bounds, and its guide.

Everything that is wrong with a request for this very model is said here, before the engine sees it. No I/O but the
tokenizer's; may run in a thread.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from shared import pricing
from shared.errors import InvalidRequest
from shared.wire import Job
from workers.engines.base import EngineGuide
from workers.engines.validation import check_capabilities
from workers.inference.choice import Choice
from workers.inference.guides import form_for, guide_of
from workers.inference.models import LoadedModel
from workers.inference.reasoning import BEGIN, END, ReasoningStream
from workers.inference.tool_calls import ToolCallStream

OPENING_TOKENS: Final = 16  # at a prompt's end, in which a template may open the reasoning


class Plan(msgspec.Struct, frozen=True):
    """A request as this worker runs it."""

    prompt_tokens: int  # of all prompts, each counted once
    choices: list[Choice]
    guide: EngineGuide | None


def plan_of(job: Job, loaded: LoadedModel) -> Plan:
    """Return the plan of a job; InvalidRequest where this model cannot do it."""
    engine, builder, task = loaded.engine, loaded.prompt, job.task
    check_capabilities(job.sampling, task, engine.capabilities)
    if task.kind == "chat":
        prompts = [builder.build(job.messages, task)]
    else:
        prompts = [builder.build_bare(prompt) for prompt in task.prompts]
    total = sum(len(prompt) for prompt in prompts)
    bounds = _bounds(job, prompts, context=engine.context, total=total)
    if task.kind == "embedding":
        return Plan(total, [_choice(job, loaded, index, prompt, 0) for index, prompt in enumerate(prompts)], None)
    form = form_for(task.tool_use, builder.tool_form)
    guide = guide_of(task, form)
    opened = task.kind == "chat" and builder.reasons and _opens_reasoning(loaded, prompts[0])
    if guide is not None and opened:
        guide = msgspec.structs.replace(guide, after=END)
    choices = []
    for index in range(len(prompts) * job.sampling.choices):
        at = index // job.sampling.choices
        choices.append(_choice(job, loaded, index, prompts[at], bounds[at], opened=opened))
    return Plan(total, choices, guide)


def _choice(
    job: Job, loaded: LoadedModel, index: int, prompt_ids: Sequence[int], max_tokens: int, *, opened: bool = False
) -> Choice:
    task, builder = job.task, loaded.prompt
    chat = task.kind == "chat"
    form = form_for(task.tool_use, builder.tool_form)
    echo = builder.text_of(task.prompts[index // job.sampling.choices]) if task.echo else ""
    tools = None
    if form is not None and task.tool_use is not None:
        parallel = task.tool_use.parallel
        tools = ToolCallStream(form, request_id=job.request_id, choice=index, parallel=parallel)
    return Choice(
        index,
        prompt_ids,
        max_tokens=max_tokens,
        tokenizer=loaded.engine.tokenizer,
        stops=job.sampling.stop,
        reasoning=ReasoningStream(inside=opened) if chat and builder.reasons else None,
        tools=tools,
        echo=echo,
    )


def _opens_reasoning(loaded: LoadedModel, prompt_ids: Sequence[int]) -> bool:
    """Tell whether the template has put the model into its reasoning already."""
    tail = b"".join(map(loaded.engine.tokenizer.token_bytes, prompt_ids[-OPENING_TOKENS:]))
    return tail.decode(errors="replace").rstrip().endswith(BEGIN)


def _bounds(job: Job, prompts: Sequence[Sequence[int]], *, context: int, total: int) -> list[int]:
    """Return how many tokens a choice of each prompt may have; InvalidRequest where the context does not allow it."""
    embedding = job.task.kind == "embedding"
    wanted = 0 if embedding else job.sampling.max_tokens
    param = {"chat": "messages", "completion": "prompt", "embedding": "input"}[job.task.kind]
    longest = max(len(prompt) for prompt in prompts)
    needed = longest + (wanted if wanted is not None else 1)
    if needed > context:
        asked = f"{longest} in the {param}, {wanted} in the completion" if wanted else f"{longest} in the {param}"
        raise InvalidRequest(
            f"This model's maximum context length is {context} tokens. However, you requested "
            f"{needed} tokens ({asked}). Please reduce the length of the {param} or completion.",
            code="context_length_exceeded",
            param=param,
        )
    affordable = pricing.affordable_completion_tokens(job.prices, hold=job.hold, prompt_tokens=total)
    share = affordable // (len(prompts) * job.sampling.choices)
    if affordable < 0 or (share < 1 and not embedding):
        raise InvalidRequest("The prompt is longer than its reservation pays for.", code="insufficient_credits")
    most = job.default_max_tokens if wanted is None else wanted
    return [min(most, context - len(prompt), share) for prompt in prompts]
