"""Published parts to pictures: text to image, image to image, inpainting."""

from gen_jax.pipelines.folders import load_pipeline, save_pipeline
from gen_jax.pipelines.pipeline import Pipeline, make_pipeline
from gen_jax.pipelines.program import Networks
from gen_jax.pipelines.schedulers import load_scheduler
from gen_jax.pipelines.text import TextEncoder

__all__ = ['Networks', 'Pipeline', 'TextEncoder', 'load_pipeline', 'load_scheduler', 'make_pipeline', 'save_pipeline']
