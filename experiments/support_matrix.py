"""docs/support-matrix.md: every published model that gen_jax has, one row each, from the code and from measurements.

    python -m experiments.support_matrix                            # everything anew, pipelines too: 40 minutes
    python -m experiments.support_matrix --models                   # the models anew, the pipelines as they stand
    python -m experiments.support_matrix --pipelines sd1/inpaint    # only those whose CASE/USE/SCHEDULER begins so
    python -m experiments.support_matrix --check                    # measures nothing: does the page name all models?

Published numbers of parameters stand in tests/models/test_sizes.py, which asserts that the factories have as many.
Small networks with the reference's weights, and the reference's answers, stand in the tests of each model. They are
used here as they are, so that a number in the page is the one that a test asserts a bound of.
"""

import argparse
import functools
import importlib
import re
import tempfile
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import numpy as np

from gen_jax import models
from gen_jax.interop.classes import CLASSES, class_of
from gen_jax.models.adm import Trunk
from tests.golden import make_pipelines
from tests.models import test_sizes

PAGE = Path(__file__).resolve().parent.parent / 'docs' / 'support-matrix.md'
MODELS, PIPELINES = 'models', 'pipelines'
OURS = re.compile(r'_(digits|shapes|tiny)$')
"""Factories of small networks that nobody published."""
SINGLE = {
    'sd15_unet': lambda unet: models.sd15_unet(in_channels=unet.in_channels),
    'sd15_inpaint_unet': lambda unet: models.sd15_inpaint_unet(),
    'sd_vae': lambda vae: models.sd_vae(),
    'clip_text_sd15': lambda text: models.clip_text_sd15(),
}
"""Factory -> what `open_single_file` takes such a part of Stable Diffusion 1.x for."""
KINDS = (
    # a variant begins with -> class that published it, golden file / its tiny networks
    ('DDPM/', '', 'unet: ddpm'),
    ('ADM/classifier', 'guided-diffusion `EncoderUNetModel`', 'adm: classifier'),
    ('ADM/upsampler', 'guided-diffusion `SuperResModel`', 'adm: adm, superres'),
    ('ADM/', 'guided-diffusion `UNetModel`', 'adm: adm'),
    ('iDDPM/upsampler', 'improved-diffusion `SuperResModel`', 'adm: iddpm, superres'),
    ('iDDPM/', 'improved-diffusion `UNetModel`', 'adm: iddpm'),
    ('VDM/', 'vdm `VDM`', 'vdm: scalar, nnet'),
    (r'score_sde/.*256|score_sde/ve/(church|ffhq)', 'score_sde `NCSNpp`', 'score_sde: ncsnpp_pyramids'),
    (r'score_sde/.*ddpmpp', 'score_sde `NCSNpp`', 'score_sde: ddpmpp'),
    (r'score_sde/.*ddpm', 'score_sde `DDPM`', 'score_sde: ddpm'),
    (r'score_sde/ve/.*_continuous', 'score_sde `NCSNpp`', 'score_sde: ncsnpp_ve'),
    (r'score_sde/', 'score_sde `NCSNpp`', 'score_sde: ncsnpp_table'),
    (r'EDM/.*adm', 'EDM `DhariwalUNet`', 'edm: adm'),
    (r'EDM/.*ddpmpp', 'EDM `SongUNet`', 'edm: ddpmpp'),
    (r'EDM/', 'EDM `SongUNet`', 'edm: ncsnpp'),
    (r'NCSN/', 'ncsn `CondRefineNetDilated`', 'ncsn: ncsn'),
    (r'NCSNv2/.*Deepest', 'ncsnv2 `NCSNv2Deepest`', 'ncsn: ncsnv2_deepest'),
    (r'NCSNv2/.*Deeper', 'ncsnv2 `NCSNv2Deeper`', 'ncsn: ncsnv2_deeper'),
    (r'NCSNv2/', 'ncsnv2 `NCSNv2`', 'ncsn: ncsnv2'),
    ('LCM|LDM/cin', '', 'unet_condition: sd1, rest'),
    ('SD2.*/unet', '', 'unet_condition: sd2'),
    ('SD-x4-upscaler/unet', '', 'unet_condition: upscaler'),
    ('SDXL-refiner', '', 'unet_condition: refiner'),
    ('SDXL-base', '', 'unet_condition: sdxl'),
    ('.*unet$', '', 'unet_condition: sd1'),
    ('VQGAN/', 'taming-transformers `NLayerDiscriminator`', ''),
    ('.*vae|LDM/kl', '', 'autoencoder_kl: f4'),
    ('DCGAN/generator', 'PyTorch examples `Generator`', 'dcgan: generator'),
    ('DCGAN/discriminator', 'PyTorch examples `Discriminator`', 'dcgan: discriminator'),
    ('.*VisionModelWithProjection', '', 'clip_towers: vision_projection'),
    ('.*TextModelWithProjection|SDXL text 2', '', 'clip_towers: text_projection'),
    ('.*Vision', '', 'clip_towers: vision'),
    ('.*(text|Text)', '', 'clip_towers: text'),
    ('.*CLIP', '', 'clip_towers: clip'),
)
TESTS = {'clip_towers': 'clip_published', 'edm': 'song_unet', 'score_sde': 'song_unet'}
"""Golden file -> tests/models/test_....py, where that is called otherwise."""
BOUND = '≤ 2'
"""What tests/pipelines/test_sameness.py asserts of every pipeline."""
USES = {'text_to_image': 'text to image', 'image_to_image': 'image to image', 'inpaint': 'inpainting'}
TITLES = {'sd1': 'Stable Diffusion 1.x', 'sd2': 'Stable Diffusion 2.x, v-prediction', 'sdxl': 'Stable Diffusion XL',
          'inpainting': 'Stable Diffusion 1.x, 9 channels'}


class Row(NamedTuple):
    """A published model."""

    factory: str
    overrides: dict
    variant: str
    parameters: int
    """As published; tests/models/test_sizes.py asserts that the factory's network has as many."""

    @property
    def module(self) -> nn.Module:
        """The network; no parameters are made."""
        return getattr(models, self.factory)(**self.overrides)

    @property
    def kind(self) -> tuple[str, str]:
        """(class that published it, golden networks)."""
        found = next((k[1:] for k in KINDS if re.match(k[0], self.variant)), None)
        if found is None:
            raise SystemExit(f'experiments/support_matrix.py: no row of KINDS begins {self.variant!r}; add one')
        if found[0]:
            return found
        name = class_of(self.module)
        return f'{CLASSES[name].library} `{name}`', found[1]

    def cells(self) -> tuple[str, ...]:
        """Everything but what is measured."""
        call = f'{self.factory}({", ".join(f"{k}={v!r}" for k, v in self.overrides.items())})'
        title = self.variant if 'CLIP ' in self.variant else self.variant.replace('/', ' ', 1)
        return (f'`{call.removesuffix("()")}`', title, self.kind[0], f'{self.parameters:,}',
                *formats(self.factory, self.module))


def rows() -> list[Row]:
    """A row for each variant whose published size a test holds."""
    found = [Row(factory, overrides, variant, size)
             for variant, (factory, overrides, _, _, size) in test_sizes.SIZES.items()]
    found += [Row(factory, overrides, variant, sizes[0])
              for variant, (factory, overrides, sizes) in test_sizes.CLIP_SIZES.items()]
    return found + [Row(factory, {}, variant, size) for variant, (factory, size) in test_sizes.CLIP_TOWERS.items()]


def formats(factory: str, module: nn.Module) -> tuple[str, str]:
    """(import, export) formats of a network; the words are explained in the page."""
    if type(module) in {row.module for row in CLASSES.values()}:
        single = ', one file' if factory in SINGLE and SINGLE[factory](module) == module else ''
        return f'folder, hub{single}', f'folder{single}'
    if isinstance(module, Trunk):
        return 'one file', 'one file'
    return ('Flax tree',) * 2 if isinstance(module, models.VDM) else ('state dict',) * 2


def unlisted() -> list[str]:
    """Factories that the page should have and that no row names."""
    named = {row.factory for row in rows()}
    return [name for name in models.__all__ if name.islower() and not OURS.search(name) and name not in named]


@functools.cache
def networks_of_clip():
    """The towers with the reference's weights."""
    return importlib.import_module('tests.models.test_clip_published').networks.__wrapped__()


@functools.cache
def parity(file: str, name: str) -> float:
    """The largest error of a tiny network against the reference's answers, over the answer's largest value."""
    test = importlib.import_module(f'tests.models.test_{TESTS.get(file, file)}')
    if file in ('edm', 'score_sde'):
        name = f'{file} {name}'
    if file == 'clip_towers':
        return float(max(test.errors(name, *networks_of_clip()[name]).values()))
    if file == 'autoencoder_kl':
        ours = test.answers(name)
        return float(max(test.error(value, test.GOLDEN[f'{name}/{key}']) for key, value in ours.items()))
    if file == 'ncsn':
        _, params, apply = test.case(name)
        return float(test.off(apply(params, *test.inputs()), test.GOLDEN[name]).max())
    if file == 'dcgan':
        network, x = test.NETWORKS[name], test.inputs()[name == 'discriminator']
        y = network.apply(test.reference_variables(network, x), x)
        golden = test.GOLDEN[f'{name}/eval']
        return float(np.abs(y.reshape(golden.shape) - golden).max() / np.abs(golden).max())
    *_, params, forward = test.reference(name)
    if file == 'vdm':
        return float(test.error(forward(params), name))
    y = forward(params, test.inputs(name))
    if file == 'unet_condition':
        return float(max(test.error(v, test.GOLDEN[f'{name}/{key}']) for key, v in {**y[1], 'y': y[0]}.items()))
    return float(test.error(y, name))


def measured(golden: str) -> str:
    """The cell: the worst of the named tiny networks, and their names."""
    if not golden:
        return '-'
    file, names = golden.split(': ')
    return f'{max(parity(file, name) for name in names.split(", ")):.1e} ({golden})'


@functools.cache
def pipeline(case: str):
    """The tiny pipeline of a case."""
    from gen_jax.pipelines import load_pipeline
    from tests.pipelines import folders

    with tempfile.TemporaryDirectory() as folder:
        return load_pipeline(folders.write(case, Path(folder)))


def pixels(case: str, use: str, scheduler: str) -> int:
    """The largest difference of a tiny pipeline's pictures from diffusers', in grey levels of 255."""
    from tests.pipelines import test_sameness

    return max(test_sameness.compare(pipeline, case, use, scheduler).values())


def pipeline_rows() -> list[tuple[str, str]]:
    """(case, use) of the golden pictures."""
    return [(case, use) for case in make_pipelines.CASES for use in make_pipelines.USES
            if case != 'inpainting' or use == 'inpaint']


def table(head: tuple[str, ...], lines) -> str:
    """A Markdown table; lines are printed as they come."""
    out = [f'| {" | ".join(head)} |', '|' + '---|' * len(head)]
    for cells in lines:
        out.append(f'| {" | ".join(cells)} |')
        print(out[-1], flush=True)
    return '\n'.join(out)


def model_table() -> str:
    head = ('ours', 'published model', 'class that published it', 'parameters', 'import', 'export',
            'largest error (tiny networks)')
    return table(head, ((*row.cells(), measured(row.kind[1])) for row in rows()))


def pipeline_table(page: str, wanted=('',)) -> str:
    """The table with the wanted cells measured anew, and the others as they stand; without a number, the bound."""
    old = {cells[:2]: cells[2:] for cells in cells_of(page, PIPELINES)}
    names = make_pipelines.SCHEDULERS

    def cell(case, use, i):
        if f'{case}/{use}/{names[i]}'.startswith(tuple(wanted)):
            return str(pixels(case, use, names[i]))
        stands = old.get((TITLES[case], USES[use]), ())
        return stands[i] if len(stands) == len(names) else BOUND

    head = ('pipeline', 'use', *(name.removesuffix('Scheduler') for name in names))
    return table(head, ((TITLES[case], USES[use], *(cell(case, use, i) for i in range(len(names))))
                        for case, use in pipeline_rows()))


def section(page: str, name: str) -> str:
    """What stands between the markers of a table."""
    return re.search(rf'<!-- {name}[^>]*-->\n\n(.*?)\n\n<!-- end of {name} -->', page, re.S)[1]


def cells_of(page: str, name: str) -> list[tuple[str, ...]]:
    """The rows of a table of the page, without its head."""
    return [tuple(c.strip() for c in line.split('|')[1:-1]) for line in section(page, name).splitlines()[2:]]


def problems(page: str) -> list[str]:
    """What of the page is not as the code is, measurements apart."""
    found = [f'{name} is in no row: give its size in tests/models/test_sizes.py' for name in unlisted()]
    there, wanted = cells_of(page, MODELS), [row.cells() for row in rows()]
    found += [f'the page lacks {row}' for row in wanted if row not in [cells[:-1] for cells in there]]
    found += [f'the page has {cells[:-1]}' for cells in there if cells[:-1] not in wanted]
    names = [row.kind[1] for row in rows()]
    found += [f'the page compares {a[1]} with {a[-1]}, the code with {b}' for a, b in zip(there, names, strict=False)
              if not a[-1].endswith(f'({b})' if b else '-')]
    if [cells[:2] for cells in cells_of(page, PIPELINES)] != [(TITLES[c], USES[u]) for c, u in pipeline_rows()]:
        found.append('the page has other pipelines than tests/golden/make_pipelines.py')
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', action='store_true', help='measure the models only')
    parser.add_argument('--pipelines', nargs='+', metavar='PREFIX', help='measure these pipelines only')
    parser.add_argument('--check', action='store_true', help='measure nothing')
    args = parser.parse_args()
    page = PAGE.read_text()
    if not args.check and not args.pipelines:
        page = page.replace(section(page, MODELS), model_table())
        PAGE.write_text(page)
    if not args.check and not args.models:
        page = page.replace(section(page, PIPELINES), pipeline_table(page, args.pipelines or ('',)))
        PAGE.write_text(page)
    if found := problems(page):
        raise SystemExit('\n'.join([*found, 'run python -m experiments.support_matrix']))


if __name__ == '__main__':
    main()
