import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from configs.shapes_clip import get_config
from gen_jax.data.shapes import shapes
from gen_jax.data.shapes_captions import RELATIONS, shapes_vocabulary
from gen_jax.models.clip import clip_shapes, clip_tiny
from gen_jax.systems.clip import clip
from gen_jax.tokenizers import words
from gen_jax.types import Variables

RNG = np.random.RandomState(0)
BATCH = {'image': RNG.uniform(-1, 1, (16, 8, 8, 3)).astype(np.float32),
         'tokens': np.append(RNG.randint(1, 15, (16, 7)), np.full((16, 1), 15), 1).astype(np.int32)}  # 15 ends a text


@pytest.fixture(scope='module')
def trained():
    """A system, its parameters, and (params, batch) -> (loss, metrics), jitted."""
    system = clip(clip_tiny())
    params, extra = system.init(jax.random.key(0), BATCH)
    assert extra == {} and set(params) == {'clip'}

    def loss(params, batch):
        value, (metrics, new_extra) = system.objectives['contrastive'].loss(params, None, batch, None)
        assert new_extra == {}
        return value, metrics

    return system, params, jax.jit(loss)


def predict(system, name, params, batch, **options):
    p = system.predict[name]
    keys = jax.random.split(jax.random.key(0), len(next(iter(batch.values()))))
    return jax.jit(p.run)(Variables(params), keys, batch, p.options(**options))


def test_objective(trained):
    system, _, _ = trained
    objective = system.objectives['contrastive']
    assert objective.params == ('clip',) and objective.optimizer == 'clip' and not objective.per_example


def test_sharded_loss_is_the_single_device_loss(trained):
    _, params, loss = trained
    mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec('data'))
    whole, metrics = loss(params, BATCH)
    everywhere = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    sharded, sharded_metrics = loss(everywhere, jax.device_put(BATCH, rows))
    np.testing.assert_allclose(sharded, whole, rtol=1e-5)
    chex.assert_trees_all_close(sharded_metrics, metrics, rtol=1e-5)
    local, _ = loss(params, jax.tree.map(lambda x: x[:2], BATCH))
    assert local < whole - 0.5  # the negatives of one device alone would have made it easier


def test_learns_to_match_its_batch(trained):
    system, params, loss = trained
    tx = optax.adam(1e-2)

    @jax.jit
    def step(params, opt):
        (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params, BATCH)
        updates, opt = tx.update(gradient, opt)
        return optax.apply_updates(params, updates), opt, value, metrics

    opt = tx.init(params)
    for _ in range(80):
        params, opt, value, metrics = step(params, opt)
    assert metrics['image_to_text'] == metrics['text_to_image'] == 1 and value < 0.1
    # Zero-shot among the sixteen captions, then with each class doubled by a second phrasing.
    out = predict(system, 'zero_shot', params, BATCH, tokens=BATCH['tokens'])
    np.testing.assert_array_equal(out['prediction'], np.arange(16))
    np.testing.assert_allclose(out['probability'].sum(-1), 1, rtol=1e-5)
    twice = predict(system, 'zero_shot', params, BATCH, tokens=np.stack([BATCH['tokens']] * 2, 1))
    np.testing.assert_allclose(twice['logits'], out['logits'], rtol=1e-3, atol=1e-3)
    losses = predict(system, 'losses', params, BATCH)
    np.testing.assert_allclose(losses['loss'].mean(), loss(params, BATCH)[0], rtol=1e-4)


def test_embeddings_and_phrasings_by_hand(trained):
    system, params, _ = trained
    u = predict(system, 'encode_image', params, {'image': BATCH['image']})['embedding']
    v = predict(system, 'encode_text', params, {'tokens': BATCH['tokens']})['embedding']
    np.testing.assert_allclose(np.linalg.norm(u, axis=-1), 1, rtol=1e-5)
    classes = np.asarray(v).reshape(8, 2, -1).mean(1)
    classes /= np.linalg.norm(classes, axis=-1, keepdims=True)
    out = predict(system, 'zero_shot', params, {'image': BATCH['image']}, tokens=BATCH['tokens'].reshape(8, 2, 8))
    scale = np.exp(params['clip']['logit_scale'])
    np.testing.assert_allclose(out['logits'], scale * np.asarray(u) @ classes.T, rtol=1e-3, atol=1e-4)


def test_hard_negatives_of_the_batch(trained):
    _, params, loss = trained
    backwards = np.concatenate([BATCH['tokens'][:, 6::-1], BATCH['tokens'][:, 7:]], 1)
    hard = {**BATCH, 'negative_tokens': backwards, 'negative_valid': np.arange(16) < 12}
    plain, metrics = loss(params, BATCH)
    value, more = loss(params, hard)
    assert value > plain and set(more) - set(metrics) == {'hard_negative'} and more['hard_negative'] >= 4 / 16
    unused = {**hard, 'negative_valid': np.zeros(16, bool)}
    np.testing.assert_allclose(loss(params, unused)[0], plain, rtol=1e-5)
    same = {**hard, 'negative_tokens': BATCH['tokens'], 'negative_valid': np.ones(16, bool)}
    assert loss(params, same)[1]['hard_negative'] == 0  # a tie is not above


def test_padding_rows_change_nothing(trained):
    _, params, loss = trained
    got = loss(params, {**BATCH, 'valid': np.arange(16) < 2})
    expected = loss(params, jax.tree.map(lambda x: x[:2], BATCH))
    chex.assert_trees_all_close(got, expected, rtol=1e-4, atol=1e-5)


def test_captions_through_a_tokenizer(trained):
    _, params, _ = trained
    words = {'red': 3, 'blue': 4, 'a': 5}

    def tokenizer(texts):
        return np.stack([np.array([words[w] for w in t.split()] + [15] * (8 - len(t.split())), np.int32)
                         for t in texts])

    options = clip(clip_tiny(), tokenizer).predict['zero_shot'].options
    tokens = options(captions=['a red', 'a blue'])['tokens']
    assert tokens.shape == (2, 1, 8) and tokens[1, 0, 1] == 4
    assert options(captions=[['a red', 'red'], ['a blue', 'blue']])['tokens'].shape == (2, 2, 8)
    with pytest.raises(ValueError, match='same number of phrasings'):
        options(captions=[['a red', 'red'], ['a blue']])
    with pytest.raises(ValueError, match='need a tokenizer'):
        clip(clip_tiny()).predict['zero_shot'].options(captions=['a red'])


def test_clear_errors(trained):
    system, params, loss = trained
    with pytest.raises(ValueError, match=r"CLIP needs 'tokens' in the batch, which has \['image'\].*tokenize"):
        loss(params, {'image': BATCH['image']})
    with pytest.raises(ValueError, match="CLIP needs 'tokens'"):
        system.init(jax.random.key(0), {'image': BATCH['image']})
    with pytest.raises(ValueError, match="CLIP needs 'image'"):
        predict(system, 'encode_image', params, {'tokens': BATCH['tokens']})
    options = system.predict['zero_shot'].options
    with pytest.raises(ValueError, match='either tokens'):
        options()
    with pytest.raises(ValueError, match=r'integers \[K, P, L\]'):
        options(tokens=jnp.ones((3, 8)))


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('objects', [1, 3])
def test_the_config_speaks_the_language_of_shapes(objects):
    config = get_config(f'objects={objects}')
    spec = config.data.transforms[0]['tokenizer']
    assert list(spec['vocab']) == shapes_vocabulary()
    tokenizer = words(spec['vocab'], spec['max_length'])
    assert tokenizer.vocab_size == config.system.network.vocab_size
    network = clip_shapes(vocab_size=tokenizer.vocab_size, max_length=config.system.network.max_length)
    assert tokenizer.eos_id == network.eos_token_id
    source = shapes(max_objects=objects, size=40)
    tokens = tokenizer([c for i in range(40) for c in source[i]['captions']])  # warns of cut or unknown words
    assert (tokens == network.eos_token_id).any(-1).all()
    groups = config.data.transforms[0].get('exchange')
    assert groups == (None if objects == 1 else (RELATIONS[:2], RELATIONS[2:]))
    assert get_config(f'objects={objects},hard_negatives=False').data.transforms[0].get('exchange') is None
