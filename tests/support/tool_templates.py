"""What the chat templates of several families write around tools: the parts that a dialog with tools exercises."""

from __future__ import annotations

HERMES = (
    "{%- if tools %}{{- '<|im_start|>system\\nTools:' }}{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}"
    "{%- endfor %}{{- '<|im_end|>\\n' }}{%- endif %}"
    "{%- for m in messages %}"
    "{%- if m.role == 'tool' %}"
    "{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}"
    "{{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}"
    "{%- elif m.role == 'assistant' %}{{- '<|im_start|>assistant\\n' + m.content }}"
    "{%- for call in m.tool_calls or [] %}{{- '\\n<tool_call>\\n' + (call.function | tojson) + '\\n</tool_call>' }}"
    "{%- endfor %}{{- '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)

#: Results are JSON, and follow an answer with exactly one call.
LLAMA = (
    "{%- if tools %}{{- '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>' }}{%- endif %}"
    "{%- for m in messages %}"
    "{%- if m.role == 'tool' %}{{- '<|im_start|>ipython\\n\\n' + (m.content | tojson) + '<|im_end|>' }}"
    "{%- elif m.tool_calls %}"
    "{%- if m.tool_calls | length != 1 %}{{- raise_exception('only one call at once') }}{%- endif %}"
    "{{- '<|im_start|>assistant\\n\\n' + (m.tool_calls[0].function | tojson) + '<|im_end|>' }}"
    "{%- else %}{{- '<|im_start|>' + m.role + '\\n\\n' + m.content + '<|im_end|>' }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n\\n' }}{%- endif %}"
)

#: Results are refused where no call went before, and the ids of calls have nine characters.
MISTRAL = (
    "{%- if tools %}{{- '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{%- endif %}"
    "{%- for m in messages %}"
    "{%- if m.role == 'user' %}{{- '[INST] ' + m.content + '[/INST]' }}"
    "{%- elif m.tool_calls %}{{- '[TOOL_CALLS] ' + (m.tool_calls | tojson) + '<|im_end|>' }}"
    "{%- elif m.role == 'assistant' %}{{- ' ' + m.content + '<|im_end|>' }}"
    "{%- elif m.role == 'tool' %}"
    "{%- if not messages[loop.index0 - 1].tool_calls and messages[loop.index0 - 1].role != 'tool' %}"
    "{{- raise_exception('a result without a call') }}{%- endif %}"
    "{%- if m.tool_call_id | length != 9 %}{{- raise_exception('nine characters') }}{%- endif %}"
    "{{- '[TOOL_RESULTS] ' + ({'content': m.content, 'call_id': m.tool_call_id} | tojson) + '[/TOOL_RESULTS]' }}"
    "{%- endif %}{%- endfor %}"
)

#: Knows neither tools nor their results.
USERS_ONLY = (
    "{%- for m in messages %}{%- if m.role not in ('system', 'user', 'assistant') %}"
    "{{- raise_exception('unknown role') }}{%- endif %}"
    "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
