"""The assembled ResNets under their names in timm's registry: ``register_models`` puts them there.

``tf_*`` are the original code's networks with one tweak or two, ``assemble_*`` those of the paper (Lee et al. 2020,
arXiv:2001.06268). timm's own ``resnet50d``, ``seresnet50`` and ``skresnet50`` are other networks. Each name takes
``num_classes``, ``in_chans`` and every field of ``BackboneOptions`` as a keyword, on top of what it stands for.

Numbers of classes count the original's background class: 1001 for ImageNet. Inputs are pixels of 0..255 less the
channels' means, which is what the mean and standard deviation below amount to.

``models.classifier.load_model`` and whatever makes a student call it; who uses timm's own functions calls
``teachonce.register_models()`` first.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model

from teachonce.models.assembled_resnet.network import AssembledResNet
from teachonce.models.assembled_resnet.options import BackboneOptions

# The original subtracts these means from pixels of 0..255 and divides by nothing.
_MEAN_BYTES = (123.68, 116.78, 103.94)
_CONFIG = {
    "url": "",
    "num_classes": 1001,
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "crop_pct": 0.875,
    "interpolation": "bilinear",
    "mean": tuple(mean / 255 for mean in _MEAN_BYTES),
    "std": (1 / 255,) * 3,
    "first_conv": "stem.convs.0",
    "classifier": "fc",
}
_ASSEMBLED: dict[str, Any] = {
    "use_sk": True,
    "anti_alias": ("sconv",),
    "zero_gamma": True,
    "drop_block_keep": (1.0, 0.9),
}
MODEL_NAMES = (
    *("tf_resnet50", "tf_resnet101", "tf_resnet152", "tf_resnet200"),
    *("tf_resnet50d", "tf_seresnet50", "tf_skresnet50", "tf_skresnet50d"),
    *("tf_blresnet50", "tf_blresnet101", "tf_blresnet152"),
    *("assemble_resnet50", "assemble_resnet101", "assemble_resnet152"),
)
"""The names that ``register_models`` brings."""
default_cfgs = generate_default_cfgs({name: dict(_CONFIG) for name in MODEL_NAMES})


def _create(variant: str, pretrained: bool, own: dict[str, Any], **kwargs: Any) -> AssembledResNet:
    """timm's builder, with the options among the keywords on top of the variant's ``own``."""
    names = {field.name for field in dataclasses.fields(BackboneOptions)}
    given = {name: kwargs.pop(name) for name in names & set(kwargs)}
    # timm hands on no None, so an empty pair takes away what the name brings.
    given |= {name: None for name in ("big_little", "drop_block_keep") if given.get(name) == ()}
    options = BackboneOptions(**(own | given))
    return build_model_with_cfg(AssembledResNet, variant, pretrained, options=options, **kwargs)


def tf_resnet50(pretrained: bool = False, **kwargs: Any) -> AssembledResNet:
    """The original's plain ResNet-50 (its version 1): stride in the 3x3 convolution, 'SAME' maximum pool."""
    return _create("tf_resnet50", pretrained, {"depth": 50}, **kwargs)


def tf_resnet101(pretrained: bool = False, **kwargs: Any) -> AssembledResNet:
    """The original's plain ResNet-101."""
    return _create("tf_resnet101", pretrained, {"depth": 101}, **kwargs)


def tf_resnet152(pretrained: bool = False, **kwargs: Any) -> AssembledResNet:
    """The original's plain ResNet-152."""
    return _create("tf_resnet152", pretrained, {"depth": 152}, **kwargs)


def tf_resnet200(pretrained: bool = False, **kwargs: Any) -> AssembledResNet:
    """The original's plain ResNet-200."""
    return _create("tf_resnet200", pretrained, {"depth": 200}, **kwargs)


def tf_resnet50d(pretrained: bool = False, **kwargs: Any) -> AssembledResNet:
    """ResNet-50 with ResNet-D's stem and shortcuts; unlike timm's resnet50d it pools at stride 1 too."""
    return _create("tf_resnet50d", pretrained, {"use_resnet_d": True}, **kwargs)


def tf_seresnet50(pretrained: bool = False, **kwargs: Any) -> AssembledResNet:
    """ResNet-50 with squeeze-and-excitation, without biases."""
    return _create("tf_seresnet50", pretrained, {"use_se": True}, **kwargs)


def tf_skresnet50(pretrained: bool = False, **kwargs: Any) -> AssembledResNet:
    """ResNet-50 with selective kernels of twice the width."""
    return _create("tf_skresnet50", pretrained, {"use_sk": True}, **kwargs)


def tf_skresnet50d(pretrained: bool = False, **kwargs: Any) -> AssembledResNet:
    """ResNet-50 with selective kernels and ResNet-D."""
    return _create("tf_skresnet50d", pretrained, {"use_sk": True, "use_resnet_d": True}, **kwargs)


def tf_blresnet50(pretrained: bool = False, **kwargs: Any) -> AssembledResNet:
    """Big-Little ResNet-50 (the original's version 2), alpha 2, beta 4."""
    return _create("tf_blresnet50", pretrained, {"big_little": (2, 4)}, **kwargs)


def tf_blresnet101(pretrained: bool = False, **kwargs: Any) -> AssembledResNet:
    """Big-Little ResNet-101 (stages of 4, 8, 18, 3 blocks), alpha 2, beta 4."""
    return _create("tf_blresnet101", pretrained, {"depth": 101, "big_little": (2, 4)}, **kwargs)


def tf_blresnet152(pretrained: bool = False, **kwargs: Any) -> AssembledResNet:
    """Big-Little ResNet-152 (stages of 5, 12, 30, 3 blocks), alpha 2, beta 4."""
    return _create("tf_blresnet152", pretrained, {"depth": 152, "big_little": (2, 4)}, **kwargs)


def assemble_resnet50(pretrained: bool = False, **kwargs: Any) -> AssembledResNet:
    """The paper's Assemble-ResNet-50: Big-Little (2, 4), selective kernels, 'sconv' 3, DropBlock 1.0 to 0.9."""
    return _create("assemble_resnet50", pretrained, {**_ASSEMBLED, "big_little": (2, 4)}, **kwargs)


def assemble_resnet101(pretrained: bool = False, **kwargs: Any) -> AssembledResNet:
    """The same of 101 layers."""
    return _create("assemble_resnet101", pretrained, {**_ASSEMBLED, "depth": 101, "big_little": (2, 4)}, **kwargs)


def assemble_resnet152(pretrained: bool = False, **kwargs: Any) -> AssembledResNet:
    """The paper's Assemble-ResNet-152: alpha 1 and beta 2."""
    return _create("assemble_resnet152", pretrained, {**_ASSEMBLED, "depth": 152, "big_little": (1, 2)}, **kwargs)


def register_models() -> None:
    """Put the networks of this package into timm's registry, where ``timm.create_model`` finds them; once is enough."""
    for build in (
        tf_resnet50,
        tf_resnet101,
        tf_resnet152,
        tf_resnet200,
        tf_resnet50d,
        tf_seresnet50,
        tf_skresnet50,
        tf_skresnet50d,
        tf_blresnet50,
        tf_blresnet101,
        tf_blresnet152,
        assemble_resnet50,
        assemble_resnet101,
        assemble_resnet152,
    ):
        if not is_model(build.__name__):
            register_model(build)
