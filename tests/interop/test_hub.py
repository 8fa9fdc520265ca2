"""Where a model lies: folders, the hub's cache without a network, and every way in which there is none."""

import json
import sys

import pytest

from gen_jax.interop.hub import fetch, parts_of, resolve, resolve_pipeline, wanted

ID = 'someone/model'
FILES = ['model_index.json', 'unet/config.json', 'unet/diffusion_pytorch_model.safetensors',
         'unet/diffusion_pytorch_model.fp16.safetensors', 'unet/diffusion_pytorch_model.bin',
         'unet/diffusion_pytorch_model.non_ema.safetensors', 'text_encoder/config.json',
         'text_encoder/model-00001-of-00002.safetensors', 'text_encoder/model-00002-of-00002.safetensors',
         'text_encoder/model.safetensors.index.json', 'text_encoder/model.safetensors.index.fp16.json',
         'text_encoder/model.fp16-00001-of-00001.safetensors', 'tokenizer/vocab.json', 'tokenizer/merges.txt',
         'safety_checker/model.safetensors', 'scheduler/scheduler_config.json', 'v1-5-pruned.safetensors']
INDEX = {'_class_name': 'StableDiffusionPipeline', 'unet': ['diffusers', 'UNet2DConditionModel'],
         'text_encoder': ['transformers', 'CLIPTextModel'], 'tokenizer': ['transformers', 'CLIPTokenizer'],
         'scheduler': ['diffusers', 'PNDMScheduler'], 'safety_checker': ['x', 'Y'], 'image_encoder': [None, None],
         'requires_safety_checker': True}


def fill(folder):
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(INDEX) if name == 'model_index.json' else '{}')
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The hub's cache as huggingface_hub lays it out, with one model in it, and offline mode on."""
    snapshot = tmp_path / 'hub' / 'models--someone--model' / 'snapshots' / ('a' * 40)
    fill(snapshot)
    refs = tmp_path / 'hub' / 'models--someone--model' / 'refs'
    refs.mkdir()
    (refs / 'main').write_text('a' * 40)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    return tmp_path / 'hub'


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in for the hub: calls are kept, and what matches is 'downloaded'."""
    from huggingface_hub.utils import filter_repo_objects
    calls, got = [], tmp_path / 'got'

    def snapshot_download(repo_id, **options):
        calls.append({'repo_id': repo_id, **options})
        for name in filter_repo_objects(FILES, allow_patterns=options['allow_patterns']):
            (got / name).parent.mkdir(parents=True, exist_ok=True)
            (got / name).write_text(json.dumps(INDEX))
        return str(got)

    monkeypatch.setattr('huggingface_hub.snapshot_download', snapshot_download)
    return calls, lambda: sorted(str(p.relative_to(got)) for p in got.rglob('*') if p.is_file())


def test_local_folders_need_no_hub(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    folder = fill(tmp_path / 'sd')
    assert resolve(folder) == folder and resolve(str(folder), 'unet') == folder / 'unet'
    assert resolve_pipeline(folder) == folder
    with pytest.raises(ValueError, match='no sub-folder .vae.; it has safety_checker, scheduler, text_encoder'):
        resolve(folder, 'vae')
    with pytest.raises(ValueError, match='is a file'):
        resolve(folder / 'model_index.json')
    with pytest.raises(ValueError, match="no folder 'someone/model', .* pip install 'gen_jax.hub.'"):
        resolve(ID)


def test_only_the_files_of_one_variant_are_downloaded(hub):
    calls, files = hub
    assert resolve(ID, 'unet', revision='v1', token='secret', cache_dir='/c', offline=True).name == 'unet'
    assert files() == ['unet/config.json', 'unet/diffusion_pytorch_model.safetensors']
    assert calls[0].items() >= {'repo_id': ID, 'revision': 'v1', 'token': 'secret', 'cache_dir': '/c',
                                'local_files_only': True}.items()


def test_a_pipeline_is_downloaded_without_what_is_not_read(hub):
    _, files = hub
    resolve_pipeline(ID)
    assert files() == sorted(
        ['model_index.json', 'unet/config.json', 'unet/diffusion_pytorch_model.safetensors', 'text_encoder/config.json',
         'text_encoder/model-00001-of-00002.safetensors', 'text_encoder/model-00002-of-00002.safetensors',
         'text_encoder/model.safetensors.index.json', 'text_encoder/model.safetensors.index.fp16.json',
         'tokenizer/vocab.json', 'tokenizer/merges.txt', 'scheduler/scheduler_config.json'])


def test_a_variant_is_downloaded_alone(hub):
    _, files = hub
    fetch(ID, wanted(['unet', 'text_encoder'], 'fp16'))
    assert [f for f in files() if f.endswith('.safetensors')] == [
        'text_encoder/model.fp16-00001-of-00001.safetensors', 'unet/diffusion_pytorch_model.fp16.safetensors']


def test_the_cache_serves_offline(cache):
    folder = resolve_pipeline(ID, cache_dir=cache)
    assert folder.name == 'a' * 40 and parts_of(folder) == {
        'unet': ('diffusers', 'UNet2DConditionModel'), 'text_encoder': ('transformers', 'CLIPTextModel'),
        'tokenizer': ('transformers', 'CLIPTokenizer'), 'scheduler': ('diffusers', 'PNDMScheduler')}
    assert resolve(ID, 'unet', cache_dir=cache) == folder / 'unet'
    with pytest.raises(ValueError, match="'someone/other' is not in the cache, and offline mode is on .HF_HUB_OFFLINE"):
        resolve('someone/other', cache_dir=cache)
    with pytest.raises(ValueError, match="'someone/model' at revision 'v2' is not in the cache"):
        resolve(ID, revision='v2', cache_dir=cache)


def errors():
    from huggingface_hub import errors as e
    response = type('Response', (), {'headers': {}, 'request': None, 'status_code': 404, 'text': ''})()

    def make(cls):
        error = cls.__new__(cls)
        Exception.__init__(error, 'as the library says\nat length')
        error.response = response
        return error

    return [(make(e.RepositoryNotFoundError), "repository on the hub: 'someone/model'; check the name"),
            (make(e.GatedRepoError), 'gated: accept its licence'),
            (make(e.RevisionNotFoundError), 'not the revision None'),
            (make(e.LocalEntryNotFoundError), 'the hub cannot be reached .as the library says.: download it once'),
            (make(e.HfHubHTTPError), 'could not be downloaded: as the library says;'),
            (ConnectionError('no route'), 'could not be downloaded: no route;')]


@pytest.mark.parametrize('error, message', errors(), ids=lambda x: type(x).__name__)
def test_one_line_for_every_failure_of_the_hub(monkeypatch, error, message):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr('huggingface_hub.snapshot_download', fail)
    with pytest.raises(ValueError, match=message) as found:
        resolve(ID, offline=False)
    assert '\n' not in str(found.value)


@pytest.mark.parametrize('name', ['stable-diffusion', './missing', '/not/here/at/all', 'a/b/c', 'owner/na me'])
def test_what_is_neither_folder_nor_id(name):
    with pytest.raises(ValueError, match='neither a folder here nor a hub id'):
        resolve(name)


def test_a_folder_without_model_index(tmp_path):
    with pytest.raises(ValueError, match='holds no model_index.json; give the folder above unet/'):
        resolve_pipeline(tmp_path)
    (tmp_path / 'config.json').write_text('{}')
    with pytest.raises(ValueError, match='single model, which load_model reads'):
        resolve_pipeline(tmp_path)
    (tmp_path / 'model_index.json').write_text('{"unet": ')
    with pytest.raises(ValueError, match='model_index.json is not valid JSON'):
        parts_of(tmp_path)
