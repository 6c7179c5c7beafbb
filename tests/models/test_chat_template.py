import sys
import time
import tracemalloc
from datetime import UTC, datetime

import pytest

from mini_claude.errors import InvalidRequest, ModelLoadError
from mini_claude.models.chat_template import ChatTemplate, TemplateRefusal

MESSAGES = [{"role": "user", "content": "Hi <b>"}, {"role": "assistant", "content": "Hello"}]


def render(source: str, **variables: object) -> str:
    return ChatTemplate(source, variables).render(MESSAGES, add_generation_prompt=True)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ bos_token }}{% for m in messages %}{{ m.role[0] }}:{{ m['content'] }}{% endfor %}", "<s>u:Hi <b>a:Hello"),
        ("{% if add_generation_prompt %}go{% endif %}", "go"),
        ("{% if tools %}x{% else %}no tools{% endif %}", "no tools"),
        ("{{ messages[0] | tojson }}", '{"role": "user", "content": "Hi <b>"}'),
        ("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% endfor %}", "Hello"),
        ("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}", "Hi <b>Hello"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "2"),
        ("{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f('a') ~ f(1) }}", "<a><1>"),
        ("{{ messages | map(attribute='role') | join(', ') }}", "user, assistant"),
        ("{{ ','.join(['a', 'b']) }}{{ 'aXa'.replace('a', 'bb') }}", "a,bbbXbb"),
        ("{{ 'ab' * 2 }}{{ 7 % 4 }}{{ '%s!' % 'x' }}{{ range(3) | list }}", "abab3x![0, 1, 2]"),
        ("a\n  {% if true %}\nb\n  {% endif %}\nc", "a\nb\nc"),
    ],
)  # fmt: skip
def test_what_real_templates_use_works(source: str, expected: str) -> None:
    assert render(source, bos_token="<s>") == expected


def test_date_is_the_given_moment() -> None:
    moment = datetime(2024, 7, 26, tzinfo=UTC)
    text = ChatTemplate("{{ strftime_now('%d %b %Y') }}", {}).render([], add_generation_prompt=False, now=moment)
    assert text == "26 Jul 2024"


def test_refusal_carries_the_templates_words() -> None:
    with pytest.raises(TemplateRefusal, match="only dogs"):
        render("{{ raise_exception('only dogs') }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ ().__class__.__bases__[0].__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ raise_exception.__globals__.sys }}",
        "{{ strftime_now.__globals__['sys'] }}",
        "{{ strftime_now.__code__.co_consts[0] }}",
        "{{ (messages | map(attribute='__class__') | list)[0].__subclasses__() }}",
        "{{ messages[0].update(role='x') }}",
        "{{ dict.__subclasses__() }}",
        "{{ namespace.__init__.__globals__.os }}",
        "{% include '/etc/passwd' %}",
        "{% import 'x' as y %}",
        "{{ lipsum.__globals__.os }}",
        "{{ undefined_name.attribute }}",
    ],
)
def test_the_sandbox_is_closed(source: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        render(source)
    assert caught.value.code == "chat_template_error"


def refusal(template: ChatTemplate) -> str:
    with pytest.raises(InvalidRequest) as caught:
        template.render(MESSAGES, add_generation_prompt=False)
    return caught.value.code


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) if b > 99998 and a > 99998 %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for a in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
        "{{ range(10 ** 9) | list }}",
        "{{ range(1000000) | list }}",
        "{{ 'x' * 10000000000 }}",
        "{{ [0] * 10000000000 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ '{:1000000000d}'.format(1) }}",
        "{{ 'x'.center(1000000000) }}",
        "{{ 'x'.ljust(1000000000) }}",
        "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
        "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
        "{{ range(99999) | join('x' * 100000) }}",
        "{{ ('x' * 100000).join(('y' * 99999) | list) }}",
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(n=3) %}{% for i in range(60) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
        "{% set x = 'x' * 10000000 %}{% for i in range(99999) %}{{ x }}{% endfor %}",
        "{% set x %}{% for i in range(99999) %}{{ messages * 99999 }}{% endfor %}{% endset %}",
        "{{ lipsum(n=1000000) }}",
    ],
)
def test_bombs_end_within_a_second_and_without_much_memory(source: str) -> None:
    template = ChatTemplate(source, {})
    start = time.process_time()
    assert refusal(template) == "chat_template_error"
    assert time.process_time() - start < 2
    tracemalloc.start()  # makes it several times slower
    try:
        assert refusal(template) == "chat_template_error"
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 700e6


def test_the_time_limit_leaves_no_trace_function_behind() -> None:
    before = sys.gettrace()
    with pytest.raises(InvalidRequest):
        render("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")
    assert sys.gettrace() is before


@pytest.mark.parametrize(
    "source", ["{% for %}", "{{ x", "{% endfor %}", "{{ x | no_such_filter }}", "{{ 'x' | center(1000000000) }}"]
)
def test_broken_templates_fail_at_load(source: str) -> None:
    with pytest.raises(ModelLoadError, match="chat template"):
        ChatTemplate(source, {})


def test_strings_searched_for_are_known_but_not_role_names() -> None:
    template = ChatTemplate("{% if m.role == 'user' and '</think>' in c %}{{ c.split('<think>') }}{% endif %}", {})
    assert template.looked_for == {"</think>", "<think>"}
