"""What fine-tuning is made of: the train step, augmentation, adaptation to new cameras and actions, a first model.

May import octo_teacher's model and doors below finetune (octo_model, checkpoints), and rpd_jax's ground.
"""
