"""The peer of input_pipeline: torch's DataLoader over the same JPEG files. Run by it, in an environment with torch.

    python torch_input.py FOLDER WORKERS SIZE BATCH BATCHES     one JSON line; CPU seconds only where nobody helps
"""

import json
import os
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image


class Files(torch.utils.data.Dataset):
    """Decode, resize of the shorter side, random crop, random flip: uint8 [H, W, C]."""

    def __init__(self, folder, size):
        self.paths, self.size = sorted(Path(folder).rglob('*.jpg')), size

    def __len__(self):
        return 10 ** 9

    def __getitem__(self, i):
        with Image.open(self.paths[i % len(self.paths)]) as image:
            image = image.convert('RGB')
        width, height = image.size
        short = min(width, height)
        if short != self.size:
            image = image.resize((round(width * self.size / short), round(height * self.size / short)),
                                 Image.Resampling.BICUBIC)
        left, top = random.randint(0, image.width - self.size), random.randint(0, image.height - self.size)
        image = image.crop((left, top, left + self.size, top + self.size))
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(image))


def main(folder, workers, size, batch, batches):
    torch.set_num_threads(1)
    loader = torch.utils.data.DataLoader(Files(folder, size), batch_size=batch, num_workers=workers,
                                         prefetch_factor=2 if workers else None)
    found = iter(loader)
    for _ in range(2 * max(workers, 1)):
        next(found)
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(batches):
        next(found)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    print(json.dumps({'seconds': seconds, 'images': batch * batches, 'torch': torch.__version__,
                      'cpu_seconds': None if workers else cpu}), flush=True)
    os._exit(0)


if __name__ == '__main__':
    main(sys.argv[1], *map(int, sys.argv[2:]))
