"""The shapes of a training batch, also where its data are not."""

import re

import numpy as np

from gen_jax.config import ConfigError

__all__ = ['abstract_batch']


def abstract_batch(config, given=()) -> dict:
    """The global batch of a config as ShapeDtypeStructs.

    What is said in `given` ('image=uint8[32,32,3]', without the batch axis), else what the data yield, else what the
    config says of them: `system.image_shape`, and an integer for each entry of `system.cond`.

    Raises:
        ConfigError: entries that cannot be read; no data, and no image_shape in the config.
    """
    import jax

    size = config.data.batch_size
    if given:
        shapes = dict(_parse(text) for text in given)
    else:
        shapes = _from_data(config)
    return {k: jax.ShapeDtypeStruct((size, *shape), dtype) for k, (shape, dtype) in shapes.items()}


def _parse(text: str):
    m = re.fullmatch(r'(\w+)=(\w+)(?:\[([\d,]*)\])?', text)
    try:
        dtype = np.dtype(m.group(2))
    except (AttributeError, TypeError):
        raise ConfigError(f'--input {text!r}: expected KEY=DTYPE[D,D,...], such as image=uint8[32,32,3]') from None
    return m.group(1), (tuple(int(d) for d in (m.group(3) or '').split(',') if d), dtype)


def _from_data(config):
    from gen_jax.build import open_split
    from gen_jax.data import pipeline
    from gen_jax.engine.evaluate import numeric
    try:
        source, transforms = open_split(config, config.data.train_split, train=True)
        with pipeline.train_iterator(source, batch_size=1, seed=0, transforms=transforms, num_threads=0) as data:
            return {k: (v.shape[1:], v.dtype) for k, v in numeric(data.batch(0)).items()}
    except (ValueError, ImportError, OSError, RuntimeError) as error:
        shape = config.system.get('image_shape')
        if not shape:
            raise ConfigError(f'the shapes of a batch are unknown: {str(error).splitlines()[0]}; say them, for '
                              'instance --input image=uint8[32,32,3]') from error
        cond = config.system.get('cond') or {}
        return {'image': (tuple(shape), np.dtype('uint8')), **{cond[k]: ((), np.dtype('int32')) for k in cond}}
