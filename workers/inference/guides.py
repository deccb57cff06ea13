"""What an answer must look like, for the engine: a response format, or calls in the form that the template teaches.

A call that somebody required is made certain by a grammar; one that the model may make is left to it, unless its
function is `strict`: then the grammar begins where the call does.
"""

from typing import Final

from shared.errors import InvalidRequest
from shared.wire import Task, Tool, ToolUse
from workers.engines.base import EngineGuide, GuideForm
from workers.inference.tool_calls import BARE_JSON, ToolForm

ANY_OBJECT: Final = '{"type":"object"}'


def guide_of(task: Task, form: ToolForm | None) -> EngineGuide | None:
    """Return the guide of an answer; None where the model writes what it likes."""
    use = task.tool_use
    format_forms = () if task.guide is None else (GuideForm("", task.guide.schema or ANY_OBJECT, ""),)
    if use is None or use.choice == "none":
        return EngineGuide(forms=format_forms, param="response_format") if format_forms else None
    calls = _call_forms(use, form or BARE_JSON)
    if use.choice in ("required", "named"):
        return EngineGuide(forms=calls, param="tools", separator="\n" if _several(use, form) else None)
    if format_forms:  # one call, or text of the format
        return EngineGuide(forms=(*calls, *format_forms), param="response_format")
    if form is not None and form.begin and any(tool.strict for tool in use.tools):
        separator = "\n" if _several(use, form) else None
        return EngineGuide(forms=calls, param="tools", separator=separator, trigger=form.begin)
    return None


def form_for(use: ToolUse | None, form: ToolForm | None) -> ToolForm | None:
    """Return the form in which calls are to be found in the text; None where there will be none.

    Raises InvalidRequest where the model may call, but nobody knows how it writes calls.
    """
    if use is None or use.choice == "none":
        return None
    if form is None and use.choice == "auto":
        raise InvalidRequest(
            "How this model writes calls is not known: `tool_choice` must be `required`, `none` or name a function.",
            code="unsupported_parameter",
            param="tool_choice",
        )
    return form or BARE_JSON


def _call_forms(use: ToolUse, form: ToolForm) -> tuple[GuideForm, ...]:
    tools = [tool for tool in use.tools if use.named is None or tool.name == use.named]
    return tuple(_call_form(tool, form) for tool in tools)


def _call_form(tool: Tool, form: ToolForm) -> GuideForm:
    inner = f'{{"name": "{tool.name}", "{form.arguments_key}": '
    schema = ANY_OBJECT if tool.parameters == "{}" else tool.parameters
    if not form.begin:
        return GuideForm(inner, schema, "}")
    return GuideForm(f"{form.begin}\n{inner}", schema, f"}}\n{form.end}")


def _several(use: ToolUse, form: ToolForm | None) -> bool:
    return use.parallel and use.choice != "named" and form is not None and bool(form.begin)
