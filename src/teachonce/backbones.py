"""The assembled ResNet, the student of the walkthrough, in timm's registry.

Lee et al. 2020, arXiv:2001.06268: a ResNet whose tweaks can be had one by one (``BackboneOptions``) and together
(``assemble_resnet50``). Weights of the original TensorFlow code load into it (``backbone_weights``), and its logits are
then the original's to float32 accuracy; so padding, pooling, normalisation and the order of everything are those of
that code, also where timm's networks of like names do it otherwise. Importing this module is what registers the names.

The original numbers its ResNets 1 (plain) and 2 (Big-Little); here that is ``big_little``. Numbers of classes count its
background class: 1001 for ImageNet. Inputs are pixels of 0..255 less the channels' means, which is what the
registry's mean and standard deviation amount to.

Deliberately not here: basic blocks (the original has none either), pooling by flattening, and pretrained weights.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from timm.layers import SelectAdaptivePool2d
from timm.layers.weight_init import lecun_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional

from teachonce.backbone_blocks import EXPANSION, BigLittleStage, Bottleneck, build_blocks, build_stem
from teachonce.backbone_layers import DropBlock, GemPool
from teachonce.backbone_options import BackboneOptions
from teachonce.errors import ConfigError

if TYPE_CHECKING:
    from jaxtyping import Float

# How often DropBlock drops in each stage, relative to its probability; None where it is not.
_GAMMA_SCALES = (None, None, 0.25, 1.0)


class AssembledResNet(nn.Module):
    """The network: ``stem``, four ``stages``, ``pool``, perhaps ``embedding``, ``fc``.

    A trainer that wants DropBlock calls ``set_progress`` as it goes; until then nothing is dropped.
    """

    def __init__(self, options: BackboneOptions, *, num_classes: int = 1001, in_chans: int = 3):
        super().__init__()
        self.options = options
        self.num_classes = num_classes
        self.stem = build_stem(in_chans, options)
        stages: list[nn.Module] = []
        channels = options.num_filters
        self.feature_info: list[dict[str, Any]] = []
        reduction = 4
        for index, (num_blocks, stride) in enumerate(zip(options.num_blocks, options.strides, strict=True)):
            filters = options.num_filters * 2**index
            gamma_scale = _GAMMA_SCALES[index]
            has_drop = options.drop_block_keep is not None and gamma_scale is not None
            drop = DropBlock(gamma_scale) if has_drop else None  # type: ignore[arg-type]
            if options.big_little is not None and index < 3:
                stages.append(BigLittleStage(channels, filters, num_blocks, stride, options, drop))
            else:
                blocks = build_blocks(channels, filters, num_blocks, stride, options.shortcut, options, drop)
                stages.append(nn.Sequential(*blocks))
            channels, reduction = filters * EXPANSION, reduction * stride
            self.feature_info.append({"num_chs": channels, "reduction": reduction, "module": f"stages.{index}"})
        self.stages = nn.Sequential(*stages)
        self.pool = GemPool() if options.global_pool == "gem" else SelectAdaptivePool2d(pool_type="avg", flatten=True)
        self.embedding: nn.Module = nn.Identity()
        if options.embedding_size:
            width = options.embedding_size
            linear, bn = nn.Linear(channels, width, bias=False), nn.BatchNorm1d(width, momentum=1 - options.bn_momentum)
            self.embedding = nn.Sequential(OrderedDict(linear=linear, bn=bn))
            channels = width
        self.num_features = self.head_hidden_size = channels
        self.fc = _build_classifier(channels, num_classes)
        self._initialise()

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C"]:
        """Logits, or features where there are no classes."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """The last stage's feature map."""
        return self.stages(self.stem(x))

    def forward_head(self, x: Float[Tensor, "B C h w"], pre_logits: bool = False) -> Float[Tensor, "B n"]:
        """Logits of a feature map; with ``pre_logits`` its pooled features, or the embedding before its activation."""
        x = self.embedding(self.pool(x))
        if pre_logits:
            return x
        if self.options.embedding_size:
            x = functional.relu(x)
        return self.fc(x)

    def set_progress(self, frac: float) -> None:
        """Set DropBlock's probability from how much of the training is done, 0 to 1, linearly; else nothing happens.

        Cheap enough for every step, and no reason to compile again.
        """
        if self.options.drop_block_keep is None:
            return
        begin, end = self.options.drop_block_keep
        keep = begin + (end - begin) * min(max(frac, 0.0), 1.0)
        for module in self.modules():
            if isinstance(module, DropBlock):
                module.drop_prob.fill_(1 - keep)

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh last layer; ``global_pool`` is an option of the network and cannot be changed here."""
        if global_pool is not None and global_pool != self.options.global_pool:
            raise ConfigError(f"reset_classifier(global_pool={global_pool!r}): make the network with that option")
        self.num_classes = num_classes
        self.fc = _build_classifier(self.num_features, num_classes).to(next(self.parameters()).device)

    def _initialise(self) -> None:
        """The original's: truncated normals of variance 1 / fan-in, which is half of what ResNets mostly have."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d) or (isinstance(module, nn.Linear) and module is not self.fc):
                lecun_normal_(module.weight)
            elif isinstance(module, Bottleneck) and self.options.zero_gamma:
                nn.init.zeros_(module.conv3.get_submodule("bn").weight)  # type: ignore[arg-type]


def _build_classifier(num_features: int, num_classes: int) -> nn.Module:
    if num_classes == 0:
        return nn.Identity()
    fc = nn.Linear(num_features, num_classes)
    nn.init.xavier_uniform_(fc.weight)
    nn.init.zeros_(fc.bias)
    return fc


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
_NAMES = [
    *("tf_resnet50", "tf_resnet101", "tf_resnet152", "tf_resnet200"),
    *("tf_resnet50d", "tf_seresnet50", "tf_skresnet50", "tf_skresnet50d"),
    *("tf_blresnet50", "tf_blresnet101", "tf_blresnet152"),
    *("assemble_resnet50", "assemble_resnet101", "assemble_resnet152"),
]
default_cfgs = generate_default_cfgs({name: dict(_CONFIG) for name in _NAMES})
__all__ = ["AssembledResNet", "BackboneOptions"]


def _create(variant: str, pretrained: bool, own: dict[str, Any], **kwargs: Any) -> AssembledResNet:
    """timm's builder, with the options among the keywords on top of the variant's ``own``."""
    names = {field.name for field in dataclasses.fields(BackboneOptions)}
    given = {name: kwargs.pop(name) for name in names & set(kwargs)}
    options = BackboneOptions(**(own | given))
    return build_model_with_cfg(AssembledResNet, variant, pretrained, options=options, **kwargs)


@register_model
def tf_resnet50(pretrained: bool = False, **kwargs: Any) -> AssembledResNet:
    """The original's plain ResNet-50 (its version 1): stride in the 3x3 convolution, 'SAME' maximum pool."""
    return _create("tf_resnet50", pretrained, {"depth": 50}, **kwargs)


@register_model
def tf_resnet101(pretrained: bool = False, **kwargs: Any) -> AssembledResNet:
    """The original's plain ResNet-101."""
    return _create("tf_resnet101", pretrained, {"depth": 101}, **kwargs)


@register_model
def tf_resnet152(pretrained: bool = False, **kwargs: Any) -> AssembledResNet:
    """The original's plain ResNet-152."""
    return _create("tf_resnet152", pretrained, {"depth": 152}, **kwargs)


@register_model
def tf_resnet200(pretrained: bool = False, **kwargs: Any) -> AssembledResNet:
    """The original's plain ResNet-200."""
    return _create("tf_resnet200", pretrained, {"depth": 200}, **kwargs)


@register_model
def tf_resnet50d(pretrained: bool = False, **kwargs: Any) -> AssembledResNet:
    """ResNet-50 with ResNet-D's stem and shortcuts; unlike timm's resnet50d it pools at stride 1 too."""
    return _create("tf_resnet50d", pretrained, {"use_resnet_d": True}, **kwargs)


@register_model
def tf_seresnet50(pretrained: bool = False, **kwargs: Any) -> AssembledResNet:
    """ResNet-50 with squeeze-and-excitation, without biases."""
    return _create("tf_seresnet50", pretrained, {"use_se": True}, **kwargs)


@register_model
def tf_skresnet50(pretrained: bool = False, **kwargs: Any) -> AssembledResNet:
    """ResNet-50 with selective kernels of doubled width."""
    return _create("tf_skresnet50", pretrained, {"use_sk": True}, **kwargs)


@register_model
def tf_skresnet50d(pretrained: bool = False, **kwargs: Any) -> AssembledResNet:
    """ResNet-50 with selective kernels and ResNet-D."""
    return _create("tf_skresnet50d", pretrained, {"use_sk": True, "use_resnet_d": True}, **kwargs)


@register_model
def tf_blresnet50(pretrained: bool = False, **kwargs: Any) -> AssembledResNet:
    """Big-Little ResNet-50 (the original's version 2), alpha 2, beta 4."""
    return _create("tf_blresnet50", pretrained, {"big_little": (2, 4)}, **kwargs)


@register_model
def tf_blresnet101(pretrained: bool = False, **kwargs: Any) -> AssembledResNet:
    """Big-Little ResNet-101 (stages of 4, 8, 18, 3 blocks), alpha 2, beta 4."""
    return _create("tf_blresnet101", pretrained, {"depth": 101, "big_little": (2, 4)}, **kwargs)


@register_model
def tf_blresnet152(pretrained: bool = False, **kwargs: Any) -> AssembledResNet:
    """Big-Little ResNet-152 (stages of 5, 12, 30, 3 blocks), alpha 2, beta 4."""
    return _create("tf_blresnet152", pretrained, {"depth": 152, "big_little": (2, 4)}, **kwargs)


@register_model
def assemble_resnet50(pretrained: bool = False, **kwargs: Any) -> AssembledResNet:
    """The paper's Assemble-ResNet-50: Big-Little (2, 4), selective kernels, 'sconv' 3, DropBlock 1.0 to 0.9."""
    return _create("assemble_resnet50", pretrained, {**_ASSEMBLED, "big_little": (2, 4)}, **kwargs)


@register_model
def assemble_resnet101(pretrained: bool = False, **kwargs: Any) -> AssembledResNet:
    """The same of 101 layers."""
    return _create("assemble_resnet101", pretrained, {**_ASSEMBLED, "depth": 101, "big_little": (2, 4)}, **kwargs)


@register_model
def assemble_resnet152(pretrained: bool = False, **kwargs: Any) -> AssembledResNet:
    """The paper's Assemble-ResNet-152: alpha 1 and beta 2."""
    return _create("assemble_resnet152", pretrained, {**_ASSEMBLED, "depth": 152, "big_little": (1, 2)}, **kwargs)
