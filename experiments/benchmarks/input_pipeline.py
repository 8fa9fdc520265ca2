"""Images per second of the input pipeline, what the time goes to, and how many cores an accelerator needs.

    python -m experiments.benchmarks.input_pipeline --out docs/benchmarks_input.json
    python -m experiments.benchmarks.input_pipeline --reference .venv-reference/bin/python   # with torch's DataLoader

Reads generated photographs (JPEG, quality 90) as a usual config does: decode, resize of the shorter side to 256, random
crop, random flip, stack to uint8 batches; from a folder and from a TFDS set (ArrayRecord). Prints images per second for
1 to n threads, images per second of CPU time (which a busy machine changes little, and from which the cores are
counted), the share of each stage, and what Pillow's draft mode gains on large pictures. Medians of interleaved runs.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

SIZE, FILES = 256, 8192
SIDES = {'256 x 256': (256, 256), '480 x 640': (480, 640), '1536 x 2048': (1536, 2048)}
CONSUMERS = (  # what trains, where, images a second, and who says so
    ('Stable Diffusion 2 UNet at 512 px, one A100', 36, 'mosaicml/diffusion README: 290 on 8 A100'),
    ('Stable Diffusion 2 UNet at 256 px, one A100', 138, 'mosaicml/diffusion README: 1,100 on 8 A100'),
    ('DiT-XL/2 at 256 px, one A100', 107, 'fast-DiT README: 0.84 steps a second of 128'),
    ('Imagen 500M base at 64 px, one A100', 107, 'NVIDIA JAX-Toolbox, rosetta imagen README'),
    ('NCSN++ on CIFAR-10, one V100', 155, 'score_sde_pytorch issue 4: 100,000 steps of 128 in 23 h'),
    ('Stable Diffusion 2 UNet at 256 px, eight A100', 1100, 'mosaicml/diffusion README'),
)


def photograph(seed, height, width):
    """Something like a photograph to a JPEG coder: a 1/f spectrum, three correlated channels."""
    rng = np.random.default_rng(seed)
    f = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    f[0, 0] = 1
    spectrum = (rng.normal(size=(3, *f.shape)) + 1j * rng.normal(size=(3, *f.shape))) / f ** 1.2
    spectrum[1:] = 0.8 * spectrum[:1] + 0.2 * spectrum[1:]
    x = np.fft.irfft2(spectrum, (height, width))
    x = (x - x.mean((1, 2), keepdims=True)) / x.std((1, 2), keepdims=True)
    return (127 + 50 * x).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)


def write_folder(root, n, height, width):
    """n JPEGs, few enough scenes to make quickly, under 8,192 names: Grain's shuffle takes 0.2 ms an index of 128."""
    root.mkdir(parents=True)
    for i in range(n):
        scene = photograph(i % 16, height, width)
        Image.fromarray(np.roll(scene, 7 * i, (0, 1))).save(root / f'{i:05d}.jpg', quality=90)
    for i in range(n, FILES):
        os.link(root / f'{i % n:05d}.jpg', root / f'{i:05d}.jpg')
    return root


def write_tfds(root, files):
    """What `tfds build jpegs --file_format=array_record` would leave behind, written without TensorFlow."""
    from array_record.python import array_record_module
    from tensorflow_datasets.proto import tf_example_pb2
    folder, core = root / 'jpegs' / '1.0.0', 'tensorflow_datasets.core.features.'
    folder.mkdir(parents=True)
    image = {'pythonClassName': core + 'image_feature.Image',
             'image': {'shape': {'dimensions': ['-1', '-1', '3']}, 'dtype': 'uint8', 'encodingFormat': 'jpeg'}}
    (folder / 'features.json').write_text(json.dumps({
        'pythonClassName': core + 'features_dict.FeaturesDict', 'featuresDict': {'features': {'image': image}}}))
    (folder / 'dataset_info.json').write_text(json.dumps({
        'name': 'jpegs', 'version': '1.0.0', 'fileFormat': 'array_record', 'splits': [{
            'name': 'train', 'shardLengths': [str(len(files))], 'numBytes': '1',
            'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'}]}))
    writer = array_record_module.ArrayRecordWriter(str(folder / 'jpegs-train.array_record-00000-of-00001'),
                                                   'group_size:1')
    for file in files:
        example = tf_example_pb2.Example()
        example.features.feature['image'].bytes_list.value.append(file.read_bytes())
        writer.write(example.SerializeToString())
    writer.close()


def transforms():
    from gen_jax.data import transforms as t
    return t.resize(SIZE), t.random_crop(SIZE), t.random_flip()


def rate(source, threads, args, batches=None):
    """(images per second, images per second of CPU time) through the training pipeline."""
    from gen_jax.data.pipeline import train_iterator
    batches = batches or args.batches
    with train_iterator(source, batch_size=args.batch, seed=0, transforms=transforms(), num_threads=threads,
                        buffer_size=args.buffer, cache=False) as found:
        for _ in range(2 if threads else 1):
            next(found)  # the first batch waits for threads to start
        for _ in range(args.buffer):
            next(found)  # what lay ready
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(batches):
            next(found)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return args.batch * batches / wall, args.batch * batches / cpu


def stages(root, args):
    """Seconds of CPU time per image in each stage, one thread, items made one by one as the pipeline does."""
    from gen_jax.data.decode import decode_image
    from gen_jax.data.pipeline import _stack  # the same code that the pipeline runs
    files, rng = sorted(root.glob('*.jpg'))[:args.batch], np.random.default_rng(0)
    found, clock = dict.fromkeys(['read', 'decode', *(t.spec['name'] for t in transforms())], 0.0), time.thread_time

    def timed(name, run, *arguments):
        began = clock()
        out = run(*arguments)
        found[name] += (clock() - began) / len(files)
        return out

    def items():
        for file in files:
            item = {'image': timed('decode', decode_image, timed('read', file.read_bytes), 'x')}
            for transform in transforms():
                item = timed(transform.spec['name'], transform.apply, item, rng)
            yield item

    began = clock()
    _stack(items(), range(len(files)))
    return {**found, 'stack': (clock() - began) / len(files) - sum(found.values())}


def peer(root, workers, args):
    """(images per second, per second of CPU time) of torch's DataLoader in a process of its own; 0: not known."""
    script = Path(__file__).with_name('torch_input.py')
    done = subprocess.run([args.reference, script, root, str(workers), str(SIZE), str(args.batch), str(args.batches)],
                          capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    return found['images'] / found['seconds'], found['images'] / (found['cpu_seconds'] or float('inf'))


def medians(args, measures):
    """name -> median over interleaved runs of what each function returns."""
    found = {name: [] for name in measures}
    for _ in range(args.runs):
        for name, run in measures.items():
            found[name].append(run())
    return {name: [float(x) for x in np.median(values, 0)] for name, values in found.items()}


def compare(root, args):
    """The folder and the TFDS set over threads, and the peer over workers."""
    from gen_jax.data.sources import open_source
    pictures = root / '256 x 256'
    sources = {'folder': open_source(f'folder:{pictures}', digest='sizes')}
    try:
        write_tfds(root, sorted(pictures.glob('*.jpg'))[:FILES // 2])
        sources['tfds'] = open_source('tfds:jpegs', data_dir=str(root))
    except ImportError as error:
        print(f'without TFDS: {error}')
    measures = {f'{name}, {n} threads': lambda source=source, n=n: rate(source, n, args)
                for name, source in sources.items() for n in range(args.threads + 1)}
    if args.reference:
        measures |= {f'torch DataLoader, {n} workers': lambda n=n: peer(pictures, n, args)
                     for n in range(args.threads + 1)}
    found = medians(args, measures)
    print(f'{"JPEG 256 x 256":34}{"images/s":>10}{"per CPU s":>11}')
    for name, values in found.items():
        print(f'{name:34}{values[0]:10.0f}' + (f'{values[1]:11.0f}' if values[1] else ''))
    return found


def large(root, args):
    """Pictures larger than what is trained on: the full decode against Pillow's draft mode."""
    from gen_jax.data.sources import open_source
    measures = {}
    for name in list(SIDES)[1:]:
        for draft in (False, True):
            source = open_source(f'folder:{root / name}', image_size=SIZE, draft=draft, digest='sizes')
            few = max(1, args.batches // (4 if name == '480 x 640' else 16))
            measures[f'{name}, draft={draft}'] = lambda source=source, few=few: rate(source, 0, args, few)
    found = medians(args, measures)
    print(f'\n{"larger JPEGs to 256 x 256":34}{"images/s":>10}{"per CPU s":>11}')
    for name, (wall, cpu) in found.items():
        print(f'{name:34}{wall:10.0f}{cpu:11.0f}')
    return found


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--images', type=int, default=512, help='files of 256 x 256; a quarter and a sixteenth larger')
    p.add_argument('--batch', type=int, default=64)
    p.add_argument('--batches', type=int, default=32, help='timed in each run')
    p.add_argument('--buffer', type=int, default=8)
    p.add_argument('--threads', type=int, default=os.cpu_count(), help='the most threads (and workers of the peer)')
    p.add_argument('--runs', type=int, default=5)
    p.add_argument('--reference', help='Python of an environment with torch')
    p.add_argument('--out', help='JSON file')
    args = p.parse_args(argv)
    import PIL
    from PIL import features
    found = {'hardware': f'{os.cpu_count()} cores, {platform.machine()}', 'pillow': PIL.__version__,
             'jpeg': f'libjpeg-turbo {features.version_feature("libjpeg_turbo")}', 'python': platform.python_version(),
             'batch': args.batch, 'runs': args.runs}
    print(found)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for (name, (height, width)), n in zip(SIDES.items(), (args.images, args.images // 4, args.images // 16),
                                              strict=True):
            write_folder(root / name, n, height, width)
        found['images_per_second'] = compare(root, args)
        runs = [stages(root / '256 x 256', args) for _ in range(args.runs)]
        found['stages'] = {k: statistics.median(run[k] for run in runs) for k in runs[0]}
        whole = sum(found['stages'].values())
        print('\nshare of the time: ' + ', '.join(f'{k} {v / whole:.0%}' for k, v in found['stages'].items()))
        found['large'] = large(root, args)
    per_core = found['images_per_second']['folder, 1 threads'][1]
    found['cores'] = {name: round(rate / per_core, 2) for name, rate, _ in CONSUMERS}
    print(f'\ncores that decode 256 x 256 JPEGs at {per_core:.0f} images per CPU second')
    for name, rate_, source in CONSUMERS:
        print(f'{name:48}{rate_:6} images/s {found["cores"][name]:7.2f} cores   ({source})')
    if args.out:
        Path(args.out).write_text(json.dumps(found, indent=1) + '\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
