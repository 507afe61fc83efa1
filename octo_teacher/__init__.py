"""The Octo vision-language-action model under current JAX: model, checkpoints, teacher, demos and fine-tuning."""
