"""tfds:NAME: a data set of PNG bytes, written here as ArrayRecord and read back, all without TensorFlow."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from array_record.python import array_record_module
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from gen_jax.data.pipeline import train_iterator
from gen_jax.data.sources import open_source

FEATURE = 'tensorflow_datasets.core.features.'


def pixels(i):
    return np.random.default_rng(i).integers(0, 256, (5, 6, 3), np.uint8)


def png(i):
    out = io.BytesIO()
    Image.fromarray(pixels(i)).save(out, 'PNG')
    return out.getvalue()


def image_feature(channels, dtype):
    return {'pythonClassName': FEATURE + 'image_feature.Image',
            'image': {'shape': {'dimensions': ['-1', '-1', str(channels)]}, 'dtype': dtype, 'encodingFormat': 'png'}}


def prepare(root, place='tiny/1.0.0', sizes=(4, 3), key='image', channels=3, dtype='uint8',
            file_format='array_record', png=png):
    """Writes the folder that `tfds build` leaves behind: two shards of examples and two JSON files."""
    folder = root / place
    folder.mkdir(parents=True)
    name, version = place.split('/')[0], place.split('/')[-1]
    features = {key: image_feature(channels, dtype),
                'label': {'pythonClassName': FEATURE + 'class_label_feature.ClassLabel',
                          'classLabel': {'numClasses': '3'}},
                'text': {'pythonClassName': FEATURE + 'text_feature.Text', 'text': {}}}
    (folder / 'features.json').write_text(json.dumps({
        'pythonClassName': FEATURE + 'features_dict.FeaturesDict', 'featuresDict': {'features': features}}))
    (folder / 'label.labels.txt').write_text('ant\nbee\ncow\n')
    (folder / 'dataset_info.json').write_text(json.dumps({
        'name': name, 'version': version, 'fileFormat': file_format,
        **({'configName': place.split('/')[1]} if place.count('/') == 2 else {}),
        'splits': [{'name': 'train', 'shardLengths': [str(n) for n in sizes], 'numBytes': '1000',
                    'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'}]}))
    i = 0
    for shard, size in enumerate(sizes):
        path = folder / f'{name}-train.{file_format}-{shard:05d}-of-{len(sizes):05d}'
        writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
        for _ in range(size):
            example = tf_example_pb2.Example()
            feature = example.features.feature
            feature[key].bytes_list.value.append(png(i))
            feature['label'].int64_list.value.append(i % 3)
            feature['text'].bytes_list.value.append(f'number {i}'.encode())
            writer.write(example.SerializeToString())
            i += 1
        writer.close()
    return folder


def test_reads_every_example_over_the_shards(tmp_path):
    prepare(tmp_path)
    source = open_source('tfds:tiny', data_dir=str(tmp_path))
    assert len(source) == 7
    assert source.info == {'image_shape': None, 'num_classes': 3, 'label_names': ['ant', 'bee', 'cow'], 'channels': 3}
    for i in range(7):
        example = source[i]
        np.testing.assert_array_equal(example['image'], pixels(i))
        assert example['label'] == i % 3 and example['label'].dtype == np.int32
        assert example['caption'] == f'number {i}' and set(example) == {'image', 'label', 'caption'}
    with pytest.raises(IndexError):
        source[7]
    small = open_source('tfds:tiny', 'train[2:]', data_dir=str(tmp_path), image_size=4, channels=1)
    assert len(small) == 5 and small[0]['image'].shape == small.info['image_shape'] == (4, 4, 1)
    assert small[0]['caption'] == 'number 2'
    assert json.loads(json.dumps(source.fingerprint)) == source.fingerprint != small.fingerprint


def test_no_tensorflow_is_imported(tmp_path):
    prepare(tmp_path)
    code = ('import sys\nfrom gen_jax.data.sources import open_source\n'
            f'source = open_source("tfds:tiny", data_dir={str(tmp_path)!r})\nsource[3]\n'
            'assert "tensorflow" not in sys.modules and "jax" not in sys.modules\nprint("read")')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.strip() == 'read', done.stderr


def test_through_the_pipeline_with_threads(tmp_path, monkeypatch):
    prepare(tmp_path)
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    with train_iterator(open_source('tfds:tiny'), batch_size=7, seed=0, num_threads=3, cache=False) as batches:
        for _ in range(5):
            batch = next(batches)
            assert sorted(batch['caption']) == [f'number {i}' for i in range(7)]


def test_configurations_and_versions(tmp_path):
    prepare(tmp_path, 'pair/large/1.0.0', sizes=(1,))
    assert len(open_source('tfds:pair', data_dir=str(tmp_path))) == 1
    prepare(tmp_path, 'pair/small/1.9.0', sizes=(2,))
    prepare(tmp_path, 'pair/small/1.10.0', sizes=(3,))
    assert len(open_source('tfds:pair/small', data_dir=str(tmp_path))) == 3
    assert len(open_source('tfds:pair/small:1.9.0', data_dir=str(tmp_path))) == 2
    with pytest.raises(ValueError, match=r"\['tfds:pair/large', 'tfds:pair/small'\]"):
        open_source('tfds:pair', data_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"version 2.0.0 is not prepared .* only \['1.9.0', '1.10.0'\]"):
        open_source('tfds:pair/small:2.0.0', data_dir=str(tmp_path))


@pytest.mark.parametrize('name', ['mnist', 'imagenet_resized/64x64', 'mnist:3.0.1'])
def test_missing_says_how_to_prepare_it(tmp_path, name):
    with pytest.raises(ValueError, match='not prepared') as caught:
        open_source(f'tfds:{name}', data_dir=str(tmp_path))
    assert f'tfds build {name} --file_format=array_record\n' in str(caught.value)
    assert 'TensorFlow' in str(caught.value) and f'--data_dir={tmp_path}' in str(caught.value)


def test_tfrecord_says_how_to_prepare_it(tmp_path):
    prepare(tmp_path, file_format='tfrecord')
    with pytest.raises(ValueError, match='as tfrecord, which has no random access') as caught:
        open_source('tfds:tiny', data_dir=str(tmp_path))
    assert 'tfds build tiny --file_format=array_record\n' in str(caught.value)


def test_unfit_data_sets_are_refused(tmp_path):
    prepare(tmp_path, 'photo/1.0.0', key='photo')
    assert open_source('tfds:photo', data_dir=str(tmp_path))[0]['image'].shape == (5, 6, 3)
    prepare(tmp_path, 'float/1.0.0', sizes=(1,), channels=1, dtype='float32')
    with pytest.raises(ValueError, match="'image' is float32"):
        open_source('tfds:float', data_dir=str(tmp_path))
    features = prepare(tmp_path, 'words/1.0.0', sizes=(1,)) / 'features.json'
    content = json.loads(features.read_text())
    content['featuresDict']['features']['image'] = {'pythonClassName': FEATURE + 'text_feature.Text', 'text': {}}
    features.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="no feature 'image' that is an image"):
        open_source('tfds:words', data_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"split 'test'.*\['train'\]"):
        open_source('tfds:photo', 'test', data_dir=str(tmp_path))
    (tmp_path / 'photo' / '1.0.0' / 'photo-train.array_record-00001-of-00002').unlink()
    with pytest.raises(ValueError, match='array_record-00001-of-00002 is missing'):
        open_source('tfds:photo', data_dir=str(tmp_path))


def test_a_damaged_picture_is_replaced_and_named(tmp_path):
    prepare(tmp_path, png=lambda i: png(i)[:50] if i == 2 else png(i))
    with train_iterator(open_source('tfds:tiny', data_dir=str(tmp_path)), batch_size=7, seed=0,
                        ledger=tmp_path / 'corrupt.jsonl') as batches:
        assert 'number 2' not in next(batches)['caption']
    entry, = map(json.loads, (tmp_path / 'corrupt.jsonl').read_text().splitlines())
    assert entry['path'] == 'tfds:tiny/1.0.0#train[2]'


def test_a_damaged_chunk_is_replaced_and_named(tmp_path):
    folder = prepare(tmp_path, sizes=(7,))
    shard, = folder.glob('*array_record*')
    data = bytearray(shard.read_bytes())
    at = bytes(data).find(b'number 4')
    assert at > 0
    data[at] ^= 0xFF
    shard.write_bytes(bytes(data))
    with train_iterator(open_source('tfds:tiny', data_dir=str(tmp_path)), batch_size=7, seed=0,
                        ledger=tmp_path / 'corrupt.jsonl') as batches:
        captions = set(next(batches)['caption'])
    assert captions == {f'number {i}' for i in range(7) if i != 4}
    entry, = map(json.loads, (tmp_path / 'corrupt.jsonl').read_text().splitlines())
    assert entry['index'] == 4


def test_without_tfds_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
    with pytest.raises(ImportError, match=r'pip install "gen_jax\[tfds\]"'):
        open_source('tfds:tiny', data_dir=str(tmp_path))
