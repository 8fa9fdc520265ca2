"""Prints what transformers' CLIPModel computes with known random weights: tests/golden/clip.npz.

Needs torch and transformers 5.23: `python tests/golden/make_clip.py`. Weights are not stored: `weight(key, shape)`
makes them again from the key's name, norms and biases included, so that no initial 0 or 1 can hide a mistake.
"""

import zlib
from pathlib import Path

import numpy as np

VISION = dict(image_size=12, patch_size=4, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
              intermediate_size=40)
TEXT = dict(vocab_size=20, max_position_embeddings=9, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=48)
CASES = {
    # name: (hidden_act, eos_token_id in the reference's config); 2 means the legacy pooling at the largest id
    'quick_gelu_argmax': ('quick_gelu', 2),
    'gelu_eos': ('gelu', 7),
}
PROJECTION = 12


def weight(key: str, shape) -> np.ndarray:
    """The value of a parameter of the reference, float32."""
    draw = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(tuple(shape))
    if key == 'logit_scale':
        return np.float32(1.3)
    if len(shape) == 1:
        return np.float32(0.3 * draw + ('norm' in key and key.endswith('weight')))
    return np.float32(draw * np.prod(shape[1:]) ** -0.5 * 1.5)


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """image float32 [4, 12, 12, 3]; tokens [4, 9] with the end (7) at different places and larger ids around it."""
    image = np.float32(np.random.RandomState(0).uniform(-1, 1, (4, 12, 12, 3)))
    tokens = np.array([[1, 12, 3, 7, 7, 7, 7, 7, 7], [1, 3, 19, 4, 5, 6, 8, 9, 7],
                       [1, 7, 18, 0, 0, 0, 0, 0, 0], [1, 5, 5, 2, 3, 7, 0, 11, 0]])
    return image, tokens


def main():
    import torch
    from transformers import CLIPConfig, CLIPModel

    image, tokens = inputs()
    out = {}
    for name, (act, eos) in CASES.items():
        config = CLIPConfig(text_config={**TEXT, 'hidden_act': act, 'eos_token_id': eos},
                            vision_config={**VISION, 'hidden_act': act}, projection_dim=PROJECTION)
        model = CLIPModel(config).eval()
        state = {k: torch.from_numpy(np.asarray(weight(k, v.shape))) for k, v in model.state_dict().items()
                 if 'position_ids' not in k}
        print(name, model.load_state_dict(state, strict=False))
        with torch.no_grad():
            y = model(input_ids=torch.from_numpy(tokens), pixel_values=torch.from_numpy(image.transpose(0, 3, 1, 2)))
        out[f'{name}/image_embeds'] = y.image_embeds.numpy()
        out[f'{name}/text_embeds'] = y.text_embeds.numpy()
        out[f'{name}/logits_per_image'] = y.logits_per_image.numpy()
        out[f'{name}/vision_states'] = y.vision_model_output.last_hidden_state.numpy()
        out[f'{name}/text_states'] = y.text_model_output.last_hidden_state.numpy()
        out[f'{name}/keys'] = np.array(sorted(state))
    np.savez_compressed(Path(__file__).with_name('clip.npz'), **out)


if __name__ == '__main__':
    main()
