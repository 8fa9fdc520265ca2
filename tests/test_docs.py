"""The documentation tells the truth: its worked example runs, its commands parse, its links lead somewhere."""

import re
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]


def test_the_worked_example_runs(monkeypatch):
    text = (ROOT / 'docs' / 'add_a_paper.md').read_text()
    blocks = re.findall(r'```python\n(.*?)```', text, re.S)
    assert len(blocks) == 6
    scope = {'__name__': 'add_a_paper'}
    for i, block in enumerate(blocks):
        if i == 1:  # the module that the last block names
            module = types.ModuleType('my_paper')
            module.logit_normal = scope['logit_normal']
            monkeypatch.setitem(sys.modules, 'my_paper', module)
        exec(compile(block, f'add_a_paper block {i + 1}', 'exec'), scope)
    from gen_jax.build import make_system
    assert make_system(scope['config']).objectives


def test_the_readme_example_runs():
    (block,) = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.S)
    scope = {}
    exec(compile(block, 'README.md', 'exec'), scope)
    assert {'generate', 'losses'} < set(scope['system'].predict)


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.name)
def test_commands_and_links(page):
    from gen_jax.cli.main import COMMANDS
    from gen_jax.config import apply_overrides, load_config
    text = page.read_text()
    for link in re.findall(r'\]\(([^)#]+)\)', text):
        assert link.startswith('http') or (page.parent / link).exists(), link
    for line in text.replace('\\\n', ' ').splitlines():
        words = line.split('#')[0].split()
        if not words or not words[0].endswith('gen-jax'):
            continue
        assert words[1] in COMMANDS or words[1].startswith('-'), line
        config = next((b for a, b in zip(words, words[1:], strict=False) if a == '--config'), None)
        if config and not config.endswith('.py'):
            apply_overrides(load_config(config), [w for w in words if w.startswith('--config.')])
