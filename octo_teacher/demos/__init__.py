"""Demonstrations: scripted experts, recording in ManiSkill's layout, inspection (`python -m octo_teacher.demos`)."""
