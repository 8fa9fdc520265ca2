"""Weights that no update changes: written once beside the checkpoints, which name them by what they hold.

WORKDIR/frozen/NAME-DIGEST, DIGEST being that of the leaves' fingerprints: equal weights are one folder, and a folder
whose leaves are not those of its name is not used.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from gen_jax import trees
from gen_jax.engine.fingerprint import fingerprints
from gen_jax.engine.integrity import CheckpointError, IntegrityError, verify, write_manifest
from gen_jax.types import PyTree

__all__ = ['read_frozen', 'save_frozen']


def _digest(leaves: Mapping[str, jax.Array]) -> str:
    return hashlib.sha256(json.dumps(fingerprints(dict(leaves)), sort_keys=True).encode()).hexdigest()[:16]


def save_frozen(folder: Path, frozen: Mapping[str, PyTree]) -> dict[str, str]:
    """Writes what is not there yet; returns name -> digest. In several processes all must call it alike."""
    digests = {}
    for name, tree in frozen.items():
        leaves = trees.flat(tree)
        digests[name] = _digest(leaves)
        target = folder / f'{name}-{digests[name]}'
        if not target.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with ocp.StandardCheckpointer() as writer:  # under another name until all of it is on the disk
                writer.save(target, leaves)
            if jax.process_index() == 0:
                write_manifest(target, target.name)
    return digests


def read_frozen(folder: Path, digests: Mapping[str, str],
                abstract: Mapping[str, Mapping[str, jax.ShapeDtypeStruct]]) -> dict[str, dict[str, jax.Array]]:
    """name -> leaves by path, as `abstract` describes and places them.

    Raises:
        CheckpointError: other networks, leaves or shapes than the model has.
        IntegrityError: what is there is not what was saved.
    """
    if set(digests) != set(abstract):
        raise CheckpointError(f'the checkpoint goes with the frozen networks {sorted(digests) or "none"}, the model '
                              f'has {sorted(abstract) or "none"}; use the config that made it')
    found = {}
    for name, digest in digests.items():
        path = folder / f'{name}-{digest}'
        if not path.is_dir():
            raise IntegrityError(f'{path}, the frozen weights of this checkpoint, is missing; bring back a copy')
        verify(path)  # first, because Orbax fails in many places at once
        try:
            with ocp.StandardCheckpointer() as reader:
                shapes = {k: tuple(v.shape) for k, v in dict(_tree_of(reader.metadata(path))).items()}
                wanted = {k: tuple(v.shape) for k, v in abstract[name].items()}
                if shapes != wanted:
                    first = next(k for k in {**wanted, **shapes} if wanted.get(k) != shapes.get(k))
                    raise CheckpointError(f'{path} is of another network: {first} is {shapes.get(first, "missing")} '
                                          f'there and {wanted.get(first, "missing")} in the model')
                leaves = reader.restore(path, dict(abstract[name]))
        except CheckpointError:
            raise
        except Exception as e:  # Orbax and tensorstore raise many kinds
            raise IntegrityError(f'{path}: {" ".join(str(e).split())[:300]}') from e
        if _digest(leaves) != digest:
            raise IntegrityError(f'{path}: the weights are not those that were saved')
        found[name] = leaves
    return found


def _tree_of(metadata):
    metadata = getattr(metadata, 'item_metadata', metadata)
    return getattr(metadata, 'tree', metadata)
