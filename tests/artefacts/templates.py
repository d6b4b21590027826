"""Artefacts that are chat templates: what would run in Jinja without its sandbox, and what would go on for ever."""

from handscroll.lm import load
from handscroll.models.gguf.save import save_gguf
from handscroll.text.gguf_out import metadata_of
from tests.artefacts.room import USER, Act, Room, Zoo, each

ZOO: Zoo = {}

GLOBALS = "{{ %s.__init__.__globals__['os'].system('SHELL') }}"
POPEN = "%s{%% for c in x.__subclasses__() %%}{%% if c.__name__ == 'Popen' %%}{{ c('SHELL', shell=true) }}"
POPEN += "{%% endif %%}{%% endfor %%}"
NS = "{%% set ns = namespace(s=messages) %%}{%% set ns.%s = 1 %%}{{ ns.%s }}"
BUILTINS = "['__builtins__']['__import__']('os').system('SHELL') }}"
TEMPLATES = {
    **{name: GLOBALS % name for name in ("cycler", "joiner", "namespace", "lipsum", "self", "config", "request")},
    "lipsum's globals": "{{ lipsum.__globals__.os.popen('SHELL').read() }}",
    "classes": POPEN % "{% set x = ''.__class__.__mro__[1] %}",
    "bases of a list": POPEN % "{% set x = messages.__class__.__base__ %}",
    "attr": POPEN % "{% set x = ''|attr('__class__')|attr('__mro__')|last %}",
    "attr in hex": POPEN % r"{% set x = ''|attr('\x5f\x5fclass\x5f\x5f')|attr('\x5f\x5fbase\x5f\x5f') %}",
    "attr of a join": POPEN % "{% set x = ''|attr(['_'*2,'class','_'*2]|join)|attr('__base__') %}",
    "map": "{{ [cycler]|map(attribute='__init__.__globals__.os')|map(attribute='system')|first|string }}",
    "map of attr": "{% for f in [cycler]|map('attr', '__init__') %}{{ f.__globals__.os.system('SHELL') }}{% endfor %}",
    "format": "{{ '{0.__init__.__globals__[os]}'.format(cycler) }}",
    "format_map": "{{ '{a.__class__.__mro__}'.format_map({'a': cycler}) }}",
    "format by map": "{{ ['{0.__class__}']|map('format', cycler)|first }}",
    "format by attr": "{{ (('{0.__init__.__globals__}'|attr('format'))(cycler)) }}",
    "raise_exception": "{{ raise_exception.__globals__" + BUILTINS,
    "strftime_now": "{{ strftime_now.__self__.__class__.__init__.__globals__" + BUILTINS,
    "macro": "{% macro f() %}{% endmacro %}{{ f._func.__globals__" + BUILTINS,
    "caller": "{% macro f() %}{{ caller._func.__globals__" + BUILTINS + "{% endmacro %}{% call f() %}{% endcall %}",
    "generator": "{% set g = messages|map('upper') %}{{ g.gi_frame.f_back.f_globals" + BUILTINS,
    "loop": "{% for m in messages %}{{ loop.__init__.__globals__" + BUILTINS + "{% endfor %}",
    "block": "{% block a %}{{ self._TemplateReference__context.eval_ctx.environment" + BUILTINS + "{% endblock %}",
    "import": "{% import 'evil.py' as e %}",
    "import from": "{% from '/etc/passwd' import x %}",
    "include": "{% include '../../../../etc/passwd' %}",
    "extends": "{% extends 'evil.py' %}",
    "do": "{% do messages.append(1) %}",
    "append": "{{ messages.append(1) }}",
    "clear": "{{ messages.clear() }}{{ messages[0].update({'role': 'system'}) }}",
    "namespace of underscores": NS % ("__class__", "__class__"),
    "debug": "{% debug %}",
}
ENDLESS = {
    "range": "{% for i in range(10**9) %}x{% endfor %}",
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "macro": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "macro for ever": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "select": "{% set l = range(99999)|list %}{{ l|select('in', l|reverse|list)|list|length }}",
    "product": "{{ 'a' * 10**9 }}",
    "power": "{{ ((((9**64)**64)**64)**64) % 7 }}",
    "lipsum": "{{ lipsum(n=10**7) }}",
    "center": "{{ 'x'|center(10**9) }}",
    "ljust": "{{ 'x'.ljust(10**9)|length }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "format": "{{ '{:>1000000000}'.format(1) }}{{ '{:{}}'.format(1, 10**9) }}",
    "batch": "{{ [1]|batch(10**9, 0)|list|length }}",
    "slice": "{{ [1]|slice(10**9)|list|length }}",
    "doubling": "{% set ns = namespace(s='ab') %}{% for i in range(40) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "joining": "{% set ns = namespace(s='ab') %}{% for i in range(40) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "blocks": "{% set a = 'ab' %}" + "{% set a %}{{ a }}{{ a }}{% endset %}" * 40,
    "join": "{{ ('a' * 10**6)|join('b' * 10**6) }}",
    "join of long ones": "{{ (['x' * 10**7] * 10**4)|join('')|length }}",
    "method join": "{{ ''.join(['x' * 10**7] * 10**4)|length }}",
    "many fields": "{{ ('{0}' * 10**4).format('x' * 10**7)|length }}",
    "many widths": "{{ ('%9999d' * 60000) % ((1,) * 60000) }}",
    "written list": "{{ ['x' * 10**7] * 10**4 }}",
    "json of a list": "{{ (['x' * 10**7] * 10**4)|tojson|length }}",
    "replace": "{{ ('a' * 10**6).replace('a', 'a' * 10**6) }}",
    "many wide ones": "{% set a = 'x'|center(60000000)|length %}" * 500,
    "many comparisons": "{% set a, b = 'x' * 60000000, 'x' * 60000000 %}" + "{% if a == b %}{% endif %}" * 500,
    "nested": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "long": "{{ a }}" * 10**5,
}


def templated(room: Room, source: str) -> Act:
    """A template in one of the three places where checkpoints keep it: a file, the settings, a GGUF file."""
    source = source.replace("SHELL", room.shell)
    room.file("evil.py", room.code)
    place = len(source) % 3
    if place == 0:
        room.model()
        room.file("chat_template.jinja", source)
    elif place == 1:
        room.model(tokenizer_config={"chat_template": [{"name": "default", "template": source}]})
    else:
        lm = load(room.base)
        lm.tokenizer.settings["chat_template"] = source
        keys = metadata_of(lm.tokenizer, lm.model.config.vocab, ())
        save_gguf(lm.model, keys, room.path / "model.gguf", "f16", {})
    return lambda: load(room.path).chat(USER, max_tokens=1)


each(ZOO, "template", TEMPLATES, templated)
each(ZOO, "endless", ENDLESS, templated)
