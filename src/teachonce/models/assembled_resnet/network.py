"""The assembled ResNet, the student of the walkthrough.

Lee et al. 2020, arXiv:2001.06268: a ResNet whose tweaks can be had one by one (``BackboneOptions``) and together
(``assemble_resnet50``). Weights of the original TensorFlow code load into it (``tf_weights``), and its logits are
then the original's to float32 accuracy; so padding, pooling, normalization and the order of everything are those of
that code, also where timm's networks of like names do it otherwise. ``registry`` has it under its names.

Deliberately not included: basic blocks (the original has none either), pooling by flattening, and pretrained weights.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from timm.layers import SelectAdaptivePool2d
from timm.layers.weight_init import lecun_normal_
from torch import Tensor, nn
from torch.nn import functional

from teachonce.errors import ConfigError
from teachonce.models.assembled_resnet.blocks import EXPANSION, BigLittleStage, Bottleneck, build_blocks, build_stem
from teachonce.models.assembled_resnet.layers import DropBlock, GemPool
from teachonce.models.assembled_resnet.options import BackboneOptions

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
        self._initialize()

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
            raise ConfigError(f"reset_classifier(global_pool={global_pool!r}): create the network with that option")
        self.num_classes = num_classes
        self.fc = _build_classifier(self.num_features, num_classes).to(next(self.parameters()).device)

    def _initialize(self) -> None:
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
