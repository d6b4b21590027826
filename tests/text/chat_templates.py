"""Chat templates as the families of models write them, in the shapes and with the special tokens that they use."""

# ruff: noqa: E501  (a line of a template cannot be cut everywhere)

CHATML = """
{%- if tools %}
{{- '<|im_start|>system\\n' + (messages[0].content if messages[0].role == 'system' else 'Help.') + '\\n<tools>' }}
{%- for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{% endfor %}
{{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role != 'system' %}
{{- '<|im_start|>system\\nHelp.<|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}
{%- if m.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
{{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
{%- elif not (tools and m.role == 'system') %}
{{- '<|im_start|>' + m.role + '\\n' + (m.content or '') }}
{%- for call in m.tool_calls or [] %}
{%- set call = call.function if call.function is defined else call %}
{{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}{{ call.arguments | tojson }}{{ '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

THINKER = """
{%- set ns = namespace(last=messages|length - 1, open=true) %}
{%- for m in messages[::-1] %}
{%- if ns.open and m.role == 'user' and not (m.content.startswith('<tool_response>') and m.content.endswith('>')) %}
{%- set ns.open = false %}{%- set ns.last = messages|length - 1 - loop.index0 %}
{%- endif %}
{%- endfor %}
{%- for m in messages %}
{%- if m.role == 'assistant' %}
{%- set thought = '' %}{%- set said = m.content %}
{%- if m.reasoning_content is string %}{%- set thought = m.reasoning_content %}
{%- elif '</think>' in said %}
{%- set thought = said.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
{%- set said = said.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- '<|im_start|>assistant\\n' }}
{%- if loop.index0 > ns.last and (loop.last or thought) %}{{ '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}{% endif %}
{{- said + '<|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}
"""

LLAMA2 = """
{% if messages[0]['role'] == 'system' %}
    {% set rest = messages[1:] %}
    {% set about = messages[0]['content'] %}
{% else %}
    {% set rest = messages %}
    {% set about = false %}
{% endif %}
{% for m in rest %}
    {% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Roles must alternate user/assistant/user/assistant/...') }}
    {% endif %}
    {% if loop.index0 == 0 and about != false %}
        {% set content = '<<SYS>>\\n' + about + '\\n<</SYS>>\\n\\n' + m['content'] %}
    {% else %}
        {% set content = m['content'] %}
    {% endif %}
    {% if m['role'] == 'user' %}
        {{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
    {% elif m['role'] == 'assistant' %}
        {{ ' '  + content.strip() + ' ' + eos_token }}
    {% endif %}
{% endfor %}
"""

LLAMA3 = """
{{- bos_token }}
{%- if custom_tools is defined %}{% set tools = custom_tools %}{% endif %}
{%- if not date_string is defined %}{% set date_string = strftime_now("%d %b %Y") %}{% endif %}
{%- if messages[0]['role'] == 'system' %}
{%- set about = messages[0]['content'] | trim %}{% set messages = messages[1:] %}
{%- else %}{% set about = "" %}{% endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
{%- for t in tools %}{{ t | tojson(indent=4) }}{{ "\\n\\n" }}{% endfor %}
{%- endif %}
{{- about }}{{ "<|eot_id|>" }}
{%- for m in messages %}
{%- if not (m.role == 'ipython' or m.role == 'tool' or 'tool_calls' in m) %}
{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n'+ m['content'] | trim + '<|eot_id|>' }}
{%- elif 'tool_calls' in m %}
{%- if not m.tool_calls|length == 1 %}{{ raise_exception("One tool-call at once!") }}{% endif %}
{%- set call = m.tool_calls[0].function %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{{ '{"name": "' + call.name + '", ' }}
{{- '"parameters": ' }}{{ call.arguments | tojson }}{{ "}" }}{{ "<|eot_id|>" }}
{%- else %}
{{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
{%- if m.content is mapping or m.content is iterable %}{{ m.content | tojson }}{% else %}{{ m.content }}{% endif %}
{{- "<|eot_id|>" }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""

MISTRAL = """
{%- if messages[0]["role"] == "system" %}
{%- set about = messages[0]["content"] %}{% set loop_messages = messages[1:] %}
{%- else %}{% set loop_messages = messages %}{% endif %}
{%- if not tools is defined %}{% set tools = none %}{% endif %}
{%- set users = loop_messages | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for m in loop_messages %}
{%- if m["role"] == "user" %}
{%- if tools is not none and (m == users[-1]) %}
{{- "[AVAILABLE_TOOLS] [" }}
{%- for tool in tools %}
{{- '{"type": "function", "function": {' }}
{%- for key, value in tool.function.items() if key != "return" %}
{%- if value is string %}{{ '"' + key + '": "' + value + '"' }}{% else %}{{ '"' + key + '": ' + value|tojson }}{% endif %}
{%- if not loop.last %}{{ ", " }}{% endif %}
{%- endfor %}
{{- "}}" }}{% if not loop.last %}{{ ", " }}{% else %}{{ "]" }}{% endif %}
{%- endfor %}
{{- "[/AVAILABLE_TOOLS]" }}
{%- endif %}
{%- if loop.last and about is defined %}{{ "[INST] " + about + "\\n\\n" + m["content"] + "[/INST]" }}
{%- else %}{{ "[INST] " + m["content"] + "[/INST]" }}{% endif %}
{%- elif m.tool_calls is defined and m.tool_calls is not none %}
{{- "[TOOL_CALLS] [" }}
{%- for call in m.tool_calls %}
{%- set out = call.function|tojson %}{{ out[:-1] }}
{%- if not call.id is defined or call.id|length != 9 %}{{ raise_exception("Tool call IDs need 9 letters!") }}{% endif %}
{{- ', "id": "' + call.id + '"}' }}{% if not loop.last %}{{ ", " }}{% else %}{{ "]" + eos_token }}{% endif %}
{%- endfor %}
{%- elif m["role"] == "assistant" %}{{ " " + m["content"]|trim + eos_token }}
{%- elif m["role"] == "tool" %}
{%- set content = m.content.content if m.content is mapping else m.content %}
{{- '[TOOL_RESULTS] {"content": ' + content|string + ", " + '"call_id": "' + m.tool_call_id + '"}[/TOOL_RESULTS]' }}
{%- else %}{{ raise_exception("Only user and assistant roles are supported!") }}{% endif %}
{%- endfor %}
"""

GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for m in messages %}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}
{%- if (m['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = m['role'] %}{% endif %}
{{- '<start_of_turn>' + role + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

PHI = """{% for m in messages %}{% if m['role'] in ['system', 'user', 'assistant'] %}{{ '<|' + m['role'] + '|>' + '\n' }}
{%- if m.role == 'system' and tools %}{{ m.content + '<|tool|>' + tools | tojson + '<|/tool|>' }}{% else %}{{ m.content }}
{%- endif %}{{ '<|end|>' + '\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"""

ZEPHYR = """{% for m in messages %}
{% if m['role'] == 'user' %}
{{ '<|user|>\\n' + m['content'] + eos_token }}
{% elif m['role'] == 'system' %}
{{ '<|system|>\\n' + m['content'] + eos_token }}
{% elif m['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + m['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""

DEEPSEEK = """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{%- set ns = namespace(about='', tool=false) %}
{%- for m in messages %}{% if m['role'] == 'system' %}{% set ns.about = m['content'] %}{% endif %}{% endfor %}
{{- bos_token }}{{ ns.about }}
{%- for m in messages %}
{%- if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}{% endif %}
{%- if m['role'] == 'assistant' and m['tool_calls'] is not defined %}
{%- set content = m['content'] %}
{%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}
{{- '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}
{%- elif m['role'] == 'assistant' %}
{{- '<｜Assistant｜><｜tool▁calls▁begin｜>' }}
{%- for call in m['tool_calls'] %}
{{- call['function']['name'] + '\\n```json\\n' + call['function']['arguments']|tojson + '\\n```<｜tool▁call▁end｜>' }}
{%- endfor %}{{ '<｜end▁of▁sentence｜>' }}
{%- elif m['role'] == 'tool' %}{{ '<｜tool▁outputs▁begin｜>' + m['content'] + '<｜tool▁outputs▁end｜>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"""

GLM = """[gMASK]<sop>
{%- if tools %}{{ '<|system|>\\n' }}{% for tool in tools %}{{ '## ' + tool['function']['name'] + '\\n\\n' }}
{{- tool['function'] | tojson(indent=4) }}{{ '\\n' }}{% endfor %}{% endif %}
{%- for m in messages %}
{%- if m['role'] == 'tool' %}{{ '<|observation|>\\n' + m['content'] }}
{%- else %}{{ '<|' + m['role'] + '|>\\n' }}{% if m['content'] %}{{ m['content'] }}{% endif %}
{%- for call in m.tool_calls or [] %}{{ call.function.name + '\\n' + (call.function.arguments | tojson(ensure_ascii=True)) }}
{%- endfor %}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"""

GRANITE = """{%- if tools %}{{ '<|start_of_role|>available_tools<|end_of_role|>' }}
{%- for tool in tools %}{{ tool | tojson(indent=2) }}{% if not loop.last %}{{ '\\n\\n' }}{% endif %}{% endfor %}
{{- '<|end_of_text|>\\n' }}{% endif %}
{%- for m in messages %}
{%- if m['role'] == 'system' %}{{ '<|start_of_role|>system<|end_of_role|>' + m['content'] + '<|end_of_text|>\\n' }}
{%- else %}{{ '<|start_of_role|>' + m['role'] + '<|end_of_role|>' }}{{ m['content'] if m.content else m.tool_calls | tojson }}
{{- '<|end_of_text|>\\n' }}{% endif %}
{%- if loop.last and add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}
{%- endfor %}"""

SMOL = """{%- macro written(tool) -%}
{{ tool.function.name }}({% for name, one in tool.function.parameters.properties | dictsort %}
{%- if not loop.first %}, {% endif %}{{ name }}: {{ one.type | upper }}{% endfor %})
{%- endmacro -%}
{{- '<|im_start|>system\\nReasoning Mode: ' + (reasoning_mode or '/think') + '\\nToday: ' + strftime_now('%Y') + '\\n' }}
{%- for tool in tools or [] %}{% if loop.index > 5 %}{% break %}{% endif %}{{ written(tool) + '\\n' }}{% endfor %}
{{- '<|im_end|>\\n' }}
{%- for m in messages %}
{%- if m.role == 'system' %}{% continue %}{% endif %}
{%- if m.role == 'assistant' %}
{% generation %}{{ '<|im_start|>assistant\\n' + (m.content or '').lstrip('\\n') + '<|im_end|>\\n' }}{% endgeneration %}
{%- else %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

ALPACA = """{% for m in messages %}
{% if m['role'] == 'user' %}### Instruction:
{{ m['content'] }}

{% elif m['role'] == 'assistant' %}### Response:
{{ m['content'] }}{{ eos_token }}

{% else %}{{ m['content'] }}

{% endif %}
{% endfor %}
{% if add_generation_prompt %}### Response:
{% endif %}"""

# name: (template, its special tokens; those of text stand for themselves)
FAMILIES = {
    "chatml": (CHATML, "<|im_start|> <|im_end|>"),
    "thinker": (THINKER, "<|im_start|> <|im_end|>"),
    "llama2": (LLAMA2, "<s> </s>"),
    "llama3": (LLAMA3, "<s> <|start_header_id|> <|end_header_id|> <|eot_id|>"),
    "mistral": (
        MISTRAL,
        "<s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_CALLS] [TOOL_RESULTS] [/TOOL_RESULTS]",
    ),
    "gemma": (GEMMA, "<s> <start_of_turn> <end_of_turn>"),
    "phi": (PHI, "</s> <|system|> <|user|> <|assistant|> <|end|> <|tool|> <|/tool|>"),
    "zephyr": (ZEPHYR, "<s> </s>"),
    "deepseek": (
        DEEPSEEK,
        "<s> <｜User｜> <｜Assistant｜> <｜end▁of▁sentence｜> <｜tool▁calls▁begin｜> <｜tool▁call▁end｜>",
    ),
    "glm": (GLM, "[gMASK] <sop> <|system|> <|user|> <|assistant|> <|observation|>"),
    "granite": (GRANITE, "<|start_of_role|> <|end_of_role|> <|end_of_text|>"),
    "smol": (SMOL, "<|im_start|> <|im_end|>"),
    "alpaca": (ALPACA, "</s>"),
}

TOOL_LIST = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Says <how> the weather is & will be; 天气.",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string", "enum": ["Paris", "北京"]}, "days": {"type": "integer"}},
                "required": ["place"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "description": "The time.", "parameters": {"properties": {}}}},
]
USER = {"role": "user", "content": "  How is the weather in 北京? \n"}
SAID = {"role": "assistant", "content": "<think>\nA place.\n</think>\n\nFine, isn't it? <b>20°</b>"}
MORE = {"role": "user", "content": "还有明天呢？"}
SYSTEM = {"role": "system", "content": "Be \"brief\" & 'kind'.\n"}
CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "weather", "arguments": {"place": "北京", "days": 2}},
}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "name": "weather", "content": '{"t": 20}'}
TALKS = {
    "one": [USER],
    "system": [SYSTEM, USER],
    "turns": [USER, SAID, MORE],
    "turns under a system": [SYSTEM, USER, SAID, MORE, {"role": "assistant", "content": "Rain."}, USER],
    "thinking apart": [USER, {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}, MORE],
    "tools": [SYSTEM, USER, CALLED, RESULT, {"role": "assistant", "content": "20°"}, MORE],
    "wrong order": [USER, USER],
}
