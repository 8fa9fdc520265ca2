"""Where a published model lies: a local folder, or the Hugging Face hub's cache, filled as far as needed.

Layout of the hub: a model is a folder of config.json and weights; a pipeline is a folder of model_index.json, which
names the library and class of each part, and a sub-folder for each. huggingface_hub (the extra `hub`) downloads; it
reads HF_HOME, HF_TOKEN and HF_HUB_OFFLINE.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from gen_jax.interop.formats import STEMS, weight_names

__all__ = ['fetch', 'parts_of', 'resolve', 'resolve_pipeline']

HUB_ID = re.compile(r'[\w-][\w.-]*/[\w-][\w.-]*')
SMALL = ('*.json', 'merges.txt', 'vocab.txt')
"""Configs and tokenizers."""
SKIPPED = ('safety_checker', 'feature_extractor')
"""Parts of pipelines that nothing here reads."""


def wanted(subfolders: Sequence[str], variant: str | None) -> list[str]:
    """Patterns of the files that hold the configs, tokenizers and weights of one variant in these sub-folders."""
    dot = f'.{variant}' if variant else ''
    names = [*SMALL, *weight_names(variant)]
    for stem in STEMS:
        names += [f'{stem}{dot}-?????-of-?????.safetensors'] + (
            [f'{stem}-?????-of-?????{dot}.safetensors'] if dot else [])
    return [f'{folder}/{name}' if folder else name for folder in subfolders for name in names]


def resolve(path_or_id, subfolder: str = '', *, revision: str | None = None, variant: str | None = None,
            cache_dir=None, token: str | bool | None = None, offline: bool | None = None) -> Path:
    """The local folder of a model, downloaded first if it is named by a hub id and not in the cache.

    Args:
        path_or_id: a folder, or 'owner/name' on the hub; a folder of that name goes first.
        subfolder: of the model in it, for instance 'unet'.
        revision: branch, tag or commit on the hub.
        variant: which weights to download: 'fp16', or None for the plain ones.
        cache_dir: huggingface_hub's own by default.
        token: for gated and private repositories; None takes the stored one, False none.
        offline: True looks in the cache only; None does if HF_HUB_OFFLINE is set.

    Raises:
        ValueError: no such folder or repository, revision or sub-folder; no network and not in the cache;
            huggingface_hub is not installed.
    """
    return fetch(path_or_id, wanted([subfolder], variant), subfolder, revision, cache_dir, token, offline)


def resolve_pipeline(path_or_id, *, revision: str | None = None, variant: str | None = None, cache_dir=None,
                     token: str | bool | None = None, offline: bool | None = None) -> Path:
    """The local folder of a pipeline, with the parts that its model_index.json names; arguments as for `resolve`.

    Raises:
        ValueError: as there, and no model_index.json.
    """
    folder = fetch(path_or_id, ['model_index.json'], '', revision, cache_dir, token, offline)
    parts = parts_of(folder)
    if Path(path_or_id).expanduser().is_dir():
        return folder
    patterns = ['model_index.json', *wanted(sorted(parts), variant)]
    return fetch(path_or_id, patterns, '', revision, cache_dir, token, offline)


def parts_of(folder) -> dict[str, tuple[str, str]]:
    """Part -> (library, class), as model_index.json of a pipeline's folder says; parts that are null are left out.

    Raises:
        ValueError: there is no model_index.json, or it is damaged; says if the folder is a single model.
    """
    path = Path(folder) / 'model_index.json'
    if not path.is_file():
        single = (Path(folder) / 'config.json').is_file()
        raise ValueError(f'{folder} is no pipeline: it holds no model_index.json; ' + (
            'it is a single model, which load_model reads' if single else
            'give the folder above unet/, vae/ and text_encoder/'))
    index = read_json(path)
    return {k: tuple(v) for k, v in index.items()
            if isinstance(v, list) and len(v) == 2 and v[1] is not None and k not in SKIPPED}


def read_json(path: Path) -> Mapping:
    """A JSON object; ValueError that names the file if it is not there or damaged."""
    try:
        value = json.loads(path.read_text(encoding='utf-8'))
    except OSError:
        raise ValueError(f'there is no file {path}') from None
    except ValueError as e:
        raise ValueError(f'{path} is not valid JSON ({e}); download it again') from None
    if not isinstance(value, Mapping):
        raise ValueError(f'{path} holds no JSON object; download it again')
    return value


def fetch(path_or_id, patterns: Sequence[str], subfolder: str = '', revision: str | None = None, cache_dir=None,
          token: str | bool | None = None, offline: bool | None = None) -> Path:
    """As `resolve`, for the files that match the patterns (as in a shell; `*` also matches '/')."""
    local, text = Path(path_or_id).expanduser(), str(path_or_id)
    if not local.exists():
        if not HUB_ID.fullmatch(text):
            raise ValueError(f'{text!r} is neither a folder here nor a hub id (owner/name)')
        local = _download(text, patterns, revision, cache_dir, token, offline)
    if not local.is_dir():
        raise ValueError(f'{local} is a file; give the folder of a model, or load a single file with load_single_file')
    if not (local / subfolder).is_dir():
        folders = sorted(p.name for p in local.iterdir() if p.is_dir() and not p.name.startswith('.'))
        raise ValueError(f'{text} has no sub-folder {subfolder!r}; it has {", ".join(folders) or "none"}')
    return local / subfolder


def _download(repo_id, patterns, revision, cache_dir, token, offline) -> Path:
    try:
        from huggingface_hub import constants, errors, snapshot_download
    except ImportError:
        raise ValueError(f"there is no folder {repo_id!r}, and reading the hub id needs huggingface_hub: "
                         "pip install 'gen_jax[hub]'") from None
    offline = constants.HF_HUB_OFFLINE if offline is None else offline
    where = f'{repo_id!r}' + (f' at revision {revision!r}' if revision else '')
    try:
        return Path(snapshot_download(repo_id, revision=revision, cache_dir=cache_dir, token=token,
                                      allow_patterns=patterns, local_files_only=offline))
    except errors.GatedRepoError:
        raise ValueError(f'{where} is gated: accept its licence on the hub, then set HF_TOKEN or pass token=') from None
    except errors.RevisionNotFoundError:
        raise ValueError(f'the hub has {repo_id!r}, but not the revision {revision!r}') from None
    except errors.RepositoryNotFoundError:
        raise ValueError(f'neither a folder here nor a repository on the hub: {where}; check the name, and if it is '
                         'private set HF_TOKEN or pass token=') from None
    except errors.HFValidationError as e:
        raise ValueError(f'{repo_id!r} is no hub id: {e}') from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as e:
        why = 'offline mode is on (HF_HUB_OFFLINE)' if offline else f'the hub cannot be reached ({_first_line(e)})'
        raise ValueError(f'{where} is not in the cache, and {why}: download it once with a network, or give the path '
                         'of a local folder') from None
    except (errors.HfHubHTTPError, OSError) as e:
        raise ValueError(f'{where} could not be downloaded: {_first_line(e)}; try again, or give the path of a local '
                         'folder') from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
