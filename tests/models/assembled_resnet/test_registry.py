"""Our names in timm's registry."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.data import resolve_model_data_config

from teachonce.models.assembled_resnet import registry
from teachonce.models.assembled_resnet.network import AssembledResNet

registry.register_models()


@pytest.mark.slow
def test_every_name_builds_what_it_says() -> None:
    names = sorted(registry.default_cfgs)
    assert names == sorted(set(timm.list_models(module="registry")))
    for name in names:
        with torch.device("meta"):
            module = timm.create_model(name, num_classes=3, in_chans=4)
        assert isinstance(module, AssembledResNet) and module.num_classes == 3
        options = module.options
        assert str(options.depth) in name and module.stem.convs[0].in_channels == 4
        is_assembled = name.startswith("assemble")
        assert options.use_resnet_d == name.endswith("d")
        assert (options.big_little is not None) == ("blresnet" in name or is_assembled)
        assert options.use_sk == ("skresnet" in name or is_assembled) and options.use_se == ("seresnet" in name)
        assert (options.anti_alias, options.drop_block_keep) == (
            (("sconv",), (1.0, 0.9)) if is_assembled else ((), None)
        )


def test_pixels_are_0_to_255_less_the_means() -> None:
    with torch.device("meta"):
        config = resolve_model_data_config(timm.create_model("tf_resnet50"))
    assert [mean * 255 for mean in config["mean"]] == pytest.approx([123.68, 116.78, 103.94])
    assert [std * 255 for std in config["std"]] == pytest.approx([1, 1, 1])
    assert config["input_size"] == (3, 224, 224) and config["crop_pct"] == 0.875
