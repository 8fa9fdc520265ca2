"""Options of diffusers 0.42.1's schedulers and their defaults, as facts: what a scheduler_config.json leaves unsaid."""

__all__ = ['OPTIONS']

_TABLE = {'num_train_timesteps': 1000, 'beta_start': 0.0001, 'beta_end': 0.02, 'beta_schedule': 'linear',
          'trained_betas': None, 'prediction_type': 'epsilon'}
_LATENT = {**_TABLE, 'beta_start': 0.00085, 'beta_end': 0.012}
_LEADING = {'timestep_spacing': 'leading', 'steps_offset': 0}
_LINSPACE = {'timestep_spacing': 'linspace', 'steps_offset': 0}
_SIGMAS = {'use_karras_sigmas': False, 'use_exponential_sigmas': False, 'use_beta_sigmas': False}
_DYNAMIC = {'thresholding': False, 'dynamic_thresholding_ratio': 0.995, 'sample_max_value': 1.0}
_CLIP = {'clip_sample': True, 'clip_sample_range': 1.0}
_NO_CLIP = {**_CLIP, 'clip_sample': False}
_ZERO_SNR = {'rescale_betas_zero_snr': False}
_SHIFT = {'use_dynamic_shifting': False, 'time_shift_type': 'exponential'}
_FLOW = {'use_flow_sigmas': False, 'flow_shift': 1.0, **_SHIFT}
_DPM = {**_DYNAMIC, 'solver_order': 2, 'algorithm_type': 'dpmsolver++', 'solver_type': 'midpoint',
        'final_sigmas_type': 'zero'}
_EDM = {'sigma_min': 0.002, 'sigma_max': 80.0, 'sigma_data': 0.5, 'sigma_schedule': 'karras',
        'num_train_timesteps': 1000, 'prediction_type': 'epsilon', 'rho': 7.0, 'final_sigmas_type': 'zero'}
_CLIPPED = {'lambda_min_clipped': float('-inf'), 'variance_type': None}
_ALPHA_ONE = {'set_alpha_to_one': True}

OPTIONS = {
    'DDPMScheduler': {**_TABLE, **_CLIP, **_DYNAMIC, **_LEADING, **_ZERO_SNR, 'variance_type': 'fixed_small'},
    'DDIMScheduler': {**_TABLE, **_CLIP, **_DYNAMIC, **_LEADING, **_ZERO_SNR, **_ALPHA_ONE},
    'DDIMInverseScheduler': {**_TABLE, **_CLIP, **_LEADING, **_ZERO_SNR, **_ALPHA_ONE},
    'PNDMScheduler': {**_TABLE, **_LEADING, 'set_alpha_to_one': False, 'skip_prk_steps': False},
    'LCMScheduler': {**_LATENT, 'beta_schedule': 'scaled_linear', **_NO_CLIP, **_DYNAMIC, **_LEADING, **_ZERO_SNR,
                     **_ALPHA_ONE, 'original_inference_steps': 50, 'timestep_scaling': 10.0},
    'EulerDiscreteScheduler': {**_TABLE, **_LINSPACE, **_SIGMAS, **_ZERO_SNR, 'interpolation_type': 'linear',
                               'sigma_min': None, 'sigma_max': None, 'timestep_type': 'discrete',
                               'final_sigmas_type': 'zero'},
    'EulerAncestralDiscreteScheduler': {**_TABLE, **_LINSPACE, **_ZERO_SNR},
    'LMSDiscreteScheduler': {**_TABLE, **_LINSPACE, **_SIGMAS},
    'HeunDiscreteScheduler': {**_LATENT, **_LINSPACE, **_SIGMAS, **_NO_CLIP},
    'KDPM2DiscreteScheduler': {**_LATENT, **_LINSPACE, **_SIGMAS},
    'KDPM2AncestralDiscreteScheduler': {**_LATENT, **_LINSPACE, **_SIGMAS},
    'DPMSolverSDEScheduler': {**_LATENT, **_LINSPACE, **_SIGMAS, 'noise_sampler_seed': None},
    'DPMSolverMultistepScheduler': {**_TABLE, **_DPM, **_LINSPACE, **_SIGMAS, **_FLOW, **_CLIPPED, **_ZERO_SNR,
                                    'lower_order_final': True, 'euler_at_final': False, 'use_lu_lambdas': False},
    'DPMSolverSinglestepScheduler': {**_TABLE, **_DPM, **_SIGMAS, **_FLOW, **_CLIPPED, 'lower_order_final': False},
    'DEISMultistepScheduler': {**_TABLE, **_DYNAMIC, **_LINSPACE, **_SIGMAS, **_FLOW, 'solver_order': 2,
                               'algorithm_type': 'deis', 'solver_type': 'logrho', 'lower_order_final': True},
    'UniPCMultistepScheduler': {**_TABLE, **_DYNAMIC, **_LINSPACE, **_SIGMAS, **_FLOW, **_ZERO_SNR, 'solver_order': 2,
                                'solver_type': 'bh2', 'predict_x0': True, 'lower_order_final': True,
                                'disable_corrector': [], 'solver_p': None, 'final_sigmas_type': 'zero',
                                'sigma_min': None, 'sigma_max': None, 'shift_terminal': None},
    'IPNDMScheduler': {'num_train_timesteps': 1000, 'trained_betas': None},
    'EDMEulerScheduler': _EDM,
    'EDMDPMSolverMultistepScheduler': {**_EDM, **_DPM, 'lower_order_final': True, 'euler_at_final': False},
    'FlowMatchEulerDiscreteScheduler': {**_SIGMAS, **_SHIFT, 'num_train_timesteps': 1000, 'shift': 1.0,
                                        'base_shift': 0.5, 'max_shift': 1.15, 'base_image_seq_len': 256,
                                        'max_image_seq_len': 4096, 'invert_sigmas': False, 'shift_terminal': None,
                                        'stochastic_sampling': False},
    'FlowMatchHeunDiscreteScheduler': {'num_train_timesteps': 1000, 'shift': 1.0},
}
"""By class; an option that a class does not have is ignored there, as diffusers ignores it."""
