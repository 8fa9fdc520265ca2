"""The import arrows of the floor plan, relative and function-level imports included."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / 'gen_jax'
EVERYWHERE = {'types', 'rng'}
ARROWS = {
    'types': set(), 'rng': set(), 'trees': set(), 'names': set(), 'settings': {'names'},
    'config': {'names', 'settings'},
    'nn': set(), 'models': {'nn', 'trees'}, 'diffusion': set(), 'sampling': {'diffusion'}, 'losses': set(),
    'tokenizers': set(), 'systems': {'models', 'nn', 'diffusion', 'sampling', 'losses', 'trees', 'names'},
    'data': {'tokenizers'}, 'metrics': set(), 'engine': {'config', 'trees', 'metrics'},
    'interop': {'models', 'trees', 'tokenizers'},
    'pipelines': {'models', 'diffusion', 'sampling', 'interop', 'tokenizers', 'data'},
    'build': {'config', 'names', 'trees', 'nn', 'models', 'diffusion', 'sampling', 'losses', 'tokenizers', 'systems',
              'data', 'metrics', 'engine', 'interop', 'pipelines'},
    'sweeps': {'config', 'names', 'engine'}, 'report': {'config', 'names', 'engine'},
    '__init__': {'build'},
}
ARROWS['cli'] = {k for k in ARROWS if k != '__init__'}


def imports(path: Path):
    """Top-level parts of gen_jax that a file imports, with line numbers."""
    parts = path.relative_to(ROOT.parent).with_suffix('').parts
    package = parts if path.name == '__init__.py' else parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else ()
            base = '.'.join((*base, *((node.module or '').split('.') if node.module else ())))
            names = [f'{base}.{a.name}' for a in node.names]
        else:
            continue
        for name in names:
            if name.split('.')[0] == 'gen_jax' and len(name.split('.')) > 1:
                yield name.split('.')[1], node.lineno


FILES = sorted(ROOT.rglob('*.py'))


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_arrows(path):
    part = path.relative_to(ROOT).parts[0].removesuffix('.py')
    assert part in ARROWS, f'{part} is not on the floor plan'
    bad = [f'{path.name}:{line} imports {to}' for to, line in imports(path)
           if to != part and to not in EVERYWHERE and to not in ARROWS[part]]
    assert not bad, bad


def test_the_walk_sees_every_kind_of_import(tmp_path):
    folder = ROOT / 'nn'
    fake = folder / 'zz_fake.py'
    source = ('def f():\n    from ..models import unet\n    import gen_jax.engine.train\n'
              '    from gen_jax import systems\n')
    assert not fake.exists()
    original = Path.read_text
    try:
        Path.read_text = lambda self, *a, **k: source if self == fake else original(self, *a, **k)
        assert [to for to, _ in imports(fake)] == ['models', 'engine', 'systems']
    finally:
        Path.read_text = original


def test_data_and_configs_stay_light():
    """Reading data needs no JAX; a config file imports gen_jax.config only."""
    for path in [*(ROOT / 'data').rglob('*.py'), *(ROOT / 'tokenizers').rglob('*.py')]:
        names = [n for n in _modules(path) if n.split('.')[0] in ('jax', 'flax', 'optax')]
        assert not names, f'{path.name} imports {names}'
    for path in (ROOT.parent / 'configs').glob('*.py'):
        assert set(_modules(path)) <= {'gen_jax.config'}, path.name


def _modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_files_are_short():
    long = {str(p.relative_to(ROOT)): n for p in FILES if (n := len(p.read_text().splitlines())) > 400}
    assert not long, long
