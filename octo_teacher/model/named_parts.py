"""The classes that a checkpoint's config.json may ask for, by the names they are published under."""

from octo_teacher.model.action_heads import (
    ContinuousActionHead,
    DiffusionActionHead,
    DiscreteActionHead,
    L1ActionHead,
    MSEActionHead,
    TokenPerDimActionHead,
)
from octo_teacher.model.resnet import ResNet26FILM, ViTResnet
from octo_teacher.model.tokenizers import ImageTokenizer, LanguageTokenizer, LowdimObsTokenizer
from octo_teacher.model.unet_head import UNetDDPMActionHead
from octo_teacher.model.vit_encoders import PatchEncoder, SmallStem, SmallStem16, SmallStem32

OBSERVATION_TOKENIZERS = {cls.__name__: cls for cls in (ImageTokenizer, LowdimObsTokenizer)}
TASK_TOKENIZERS = {cls.__name__: cls for cls in (LanguageTokenizer,)}
ENCODERS = {cls.__name__: cls for cls in (SmallStem, SmallStem16, SmallStem32, PatchEncoder, ViTResnet, ResNet26FILM)}
# Heads whose actions begin as noise: sampled with `SamplingNoise`.
DENOISING_HEADS = (DiffusionActionHead, UNetDDPMActionHead)
HEADS = {
    cls.__name__: cls
    for cls in (
        ContinuousActionHead,
        MSEActionHead,
        L1ActionHead,
        DiscreteActionHead,
        TokenPerDimActionHead,
        *DENOISING_HEADS,
    )
}
