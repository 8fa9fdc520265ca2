"""Prints what transformers' CLIP classes compute, layer by layer, with known random weights: clip_towers.npz.

Needs torch and transformers 5.23: `PYTHONPATH=. python tests/golden/make_clip_towers.py`. Weights are not stored, see
`draws.weight`; keys are those of published files, where the text tower's begin with `text_model.`.
"""

from pathlib import Path

import numpy as np

from tests.golden.draws import draw, weight

SHARED = {'hidden_act': 'quick_gelu', 'layer_norm_eps': 1e-3, 'projection_dim': 6}
TEXT = {**SHARED, 'vocab_size': 20, 'max_position_embeddings': 9, 'hidden_size': 16, 'num_hidden_layers': 3,
        'num_attention_heads': 2, 'intermediate_size': 24, 'eos_token_id': 2}
VISION = {**SHARED, 'image_size': 12, 'patch_size': 4, 'hidden_size': 24, 'num_hidden_layers': 2,
          'num_attention_heads': 3, 'intermediate_size': 40}
CASES = {
    # name: (published class, config)
    'text': ('CLIPTextModel', TEXT),
    'text_projection': ('CLIPTextModelWithProjection', {**TEXT, 'hidden_act': 'gelu', 'eos_token_id': 7}),
    'vision': ('CLIPVisionModel', {**VISION, 'hidden_act': 'gelu'}),
    'vision_projection': ('CLIPVisionModelWithProjection', VISION),
    'clip': ('CLIPModel', {'text_config': {**TEXT, 'eos_token_id': 7}, 'vision_config': VISION, 'projection_dim': 6}),
}


def inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images [3, 12, 12, 3]; tokens [3, 9] with ids above the end's (7); a mask of paddings and one hole."""
    tokens = np.array([[1, 12, 3, 5, 7, 0, 0, 0, 0], [1, 3, 19, 4, 5, 6, 8, 9, 7], [1, 7, 18, 0, 0, 0, 0, 0, 0]])
    mask = np.array([[1, 1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0, 0, 0, 0]])
    return draw('image', (3, 12, 12, 3)), tokens, mask


def published_key(class_name: str, key: str) -> str:
    """The key in published files: transformers 5 keeps these two classes without the tower's name."""
    return {'CLIPTextModel': 'text_model.', 'CLIPVisionModel': 'vision_model.'}.get(class_name, '') + key


def main():
    import torch
    import transformers

    image, tokens, mask = (torch.from_numpy(x) for x in inputs())
    out = {}
    for name, (class_name, config) in CASES.items():
        model = getattr(transformers, class_name)
        model = model(model.config_class(**config)).eval()
        keys = {k: published_key(class_name, k) for k in model.state_dict()}
        state = {k: torch.from_numpy(np.asarray(weight(keys[k], v.shape))) for k, v in model.state_dict().items()}
        print(name, model.load_state_dict(state))
        out[f'{name}/keys'] = np.array(sorted(keys.values()))
        pixels = {'pixel_values': image.permute(0, 3, 1, 2)}
        variants = {'': {'input_ids': tokens}, '_masked': {'input_ids': tokens, 'attention_mask': mask}}
        if class_name.startswith('CLIPVision'):
            variants = {'': pixels}
        elif class_name == 'CLIPModel':
            variants = {k: {**pixels, **v} for k, v in variants.items()}
        for variant, kwargs in variants.items():
            with torch.no_grad():
                y = model(**kwargs, output_hidden_states=True)
            for key in ('last_hidden_state', 'pooler_output', 'text_embeds', 'image_embeds', 'logits_per_image'):
                if getattr(y, key, None) is not None:
                    out[f'{name}{variant}/{key}'] = getattr(y, key).numpy()
            if class_name != 'CLIPModel':
                out[f'{name}{variant}/hidden_states'] = np.stack([x.numpy() for x in y.hidden_states])
    np.savez_compressed(Path(__file__).with_name('clip_towers.npz'), **out)


if __name__ == '__main__':
    main()
