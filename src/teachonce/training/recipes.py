"""Recipes: published trainings as options of ``train``. ``train --recipe NAME`` begins with them, flags override.

A recipe is a function that returns a ``Recipe``: defaults of a ``TrainConfig``, and which logits are meant where none
are named. On the command line the defaults replace the options' own, and
``TrainConfig.from_recipe("assemble_resnet50", data=..., out=..., store=...)`` is the same. Where something else is
given beside a recipe, those of its options that cannot apply then are no error. The function's docstring says where the
recipe is from, the command, how long it takes on what, the figure to expect, and whether we have seen it: mostly not,
because ImageNet and eight GPUs were not available. Figures are top-1 on ImageNet's validation split unless they say
otherwise. What is published nowhere is said to be our own choice.

--batch-size is that of one device, so the recipes of 1024 images have 128 for 8 of them (--devices 8); --lr is given
for the whole batch (--lr-batch), so with fewer devices it shrinks along, unless --accumulate keeps the batch as it is
(--accumulate 8 on one). Data and teacher are the caller's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from teachonce.errors import ConfigError
from teachonce.suggestions import closest

Options = dict[str, Any]
"""Fields of ``TrainConfig`` by name."""


@dataclass(frozen=True)
class Recipe:
    """The options of a training, and which logits it means where none are named."""

    options: Options
    logits_from_records: bool = False
    """Whether, as in the walkthrough, the logits are those of the records where no teacher is named and KD is on."""

    def with_options(self, **options: Any) -> Recipe:
        """The same recipe with these options instead of its own."""
        return replace(self, options=self.options | options)

    def complete(self, options: Options) -> Options:
        """Options of a training, the recipe's own among them, with the logits that the recipe means."""
        is_taught = options.get("kd_temp") == 0 or any(options.get(name) for name in ("store", "logits", "teacher"))
        return options | {"logits": "records"} if self.logits_from_records and not is_taught else options


def vanilla_resnet50() -> Recipe:
    """ResNet-50 of the walkthrough's paper, labels alone: 120 epochs.

    Lee et al. 2020, arXiv:2001.06268, and its public training script. Momentum 0.9 not Nesterov's, 0.4 at batch 1024, 5
    epochs of warm-up and then a full cosine, weight decay 1e-4, the last scale of each block from 0 (zero gamma).
    Expected: 76.3 %. Time: not measured here, about 120 x 1.28 million images. Not seen by us. Differs from the
    original: biases are not decayed, bf16 instead of fp16, views are resized with antialiasing.

        teachonce train --recipe vanilla_resnet50 --data imagenet --out run --devices 8
    """
    return Recipe(
        {
            "student": "timm:tf_resnet50,zero_gamma=1",
            "epochs": 120,
            "validation_epochs": 5,
            "batch_size": 128,
            "lr": 0.4,
            "lr_batch": 1024,
            "schedule": "cosine",
            "warmup_epochs": 5.0,
            "warmup_prefix": True,
            "momentum": 0.9,
            "weight_decay": 1e-4,
            "bn_momentum": 0.003,
            "size": 224,
            "eval_crop_frac": 0.875,
            **_WALKTHROUGH_CROPS,
            **_FAST,
        }
    )


def assemble_resnet50() -> Recipe:
    """Assemble-ResNet-50 of the walkthrough's paper with its KD: 600 epochs, T = 1.

    Lee et al. 2020, arXiv:2001.06268, and its public training script: AutoAugment, mixup of type 1 at alpha 0.2, label
    smoothing 0.1, fixed center logits, trained at 224 and evaluated at 256 px. Expected: 82.78 % with the paper's
    EfficientNet-B7 as teacher (KD itself is worth +0.29 there, 81.40 to 81.69). Time: not measured here, about 600 x
    1.28 million images, each batch of which reads twice as many. Not seen by us. Differs as ``vanilla_resnet50`` does.

        teachonce extract --data imagenet --teacher efficientnet,weights=DIR --out store
        teachonce train --recipe assemble_resnet50 --data imagenet --store store --out run --devices 8

    On the command line, without --store or --teacher, the logits are those of the records, as ``merge`` and the
    walkthrough write them.
    """
    recipe = vanilla_resnet50().with_options(
        student="timm:assemble_resnet50",
        epochs=600,
        validation_epochs=10,
        kd_temp=1.0,
        label_smoothing=0.1,
        policy="crop+autoaugment",
        mixup_alpha=0.2,
        mixup_type=1,
        eval_size=256,
    )
    return replace(recipe, logits_from_records=True)


def assemble_resnet152() -> Recipe:
    """Assemble-ResNet-152 of the walkthrough's paper: as ``assemble_resnet50``, evaluated with the other crop.

    Lee et al. 2020, arXiv:2001.06268. Its training script is not published; that it is the one of the 50 is our guess.
    The evaluation is published: 256 px out of a shorter side of 257. Expected: 84.19 %. Time: not measured here. Not
    seen by us.

        teachonce train --recipe assemble_resnet152 --data imagenet --store store --out run --devices 8
    """
    return assemble_resnet50().with_options(student="timm:assemble_resnet152", eval_resize=257)


def mobilenet_v1() -> Recipe:
    """MobileNetV1 of the walkthrough's paper with its KD.

    Lee et al. 2020, arXiv:2001.06268: KD raises it from 73.54 to 74.18 %. Neither script nor schedule is published:
    here they are those of ``assemble_resnet50`` at half the length and a weight decay that is usual for small networks
    (our own choice), so the figure is a direction. Time: not measured here. Not seen by us.

        teachonce train --recipe mobilenet_v1 --data imagenet --store store --out run --devices 8
    """
    return assemble_resnet50().with_options(student="timm:mobilenetv1_100", epochs=300, weight_decay=4e-5)


def resnet50_views() -> Recipe:
    """ResNet-50 from stored views alone: 300 epochs, KD without labels, mixup that the teacher saw.

    After Beyer et al. 2021, arXiv:2106.05237 (same view, same mix, patience, no labels) and Faghri et al. 2023,
    arXiv:2303.08983 (50 stored views are enough). Expected: between the 80.3 % of 150 and the 82.0 % of 1000 epochs of
    the latter, depending on the teacher. Time: not measured here; the teacher sees 50 x 1.28 million views once.
    Not seen by us on ImageNet; on 5,000 CIFAR-10 images see ``cifar_resnet``.

        teachonce extract --data imagenet --teacher TEACHER --policy crop --views 50 --mixup-alpha 0.2 --out views
        teachonce train --recipe resnet50_views --data imagenet --store views --out run --devices 8
    """
    return Recipe(
        {
            "student": "timm:resnet50",
            "epochs": 300,
            "validation_epochs": 10,
            "batch_size": 128,
            "lr": 0.4,
            "lr_batch": 1024,
            "schedule": "cosine",
            "warmup_epochs": 5.0,
            "warmup_prefix": True,
            "weight_decay": 1e-4,
            "kd_temp": 1.0,
            "label_weight": 0.0,
            "size": 224,
            **_FAST,
        }
    )


def mobilenetv4_views() -> Recipe:
    """MobileNetV4-Conv-M from stored views: 300 epochs, KD without labels, AdamW.

    The network: Qin et al. 2024, arXiv:2404.10518. The training: that of ``resnet50_views``, but for AdamW and a moving
    average of the weights, which are our own choice. Expected: nothing is published of this network with stored views;
    a MobileNetV3-Large gained +3.1 points by them (arXiv:2303.08983). Time: not measured here. Not seen by us.

        teachonce train --recipe mobilenetv4_views --data imagenet --store views --out run --devices 8
    """
    return resnet50_views().with_options(
        student="timm:mobilenetv4_conv_medium",
        optimizer="adamw",
        lr=1e-3,
        weight_decay=0.05,
        clip_norm=1.0,
        ema_decay=0.9999,
    )


def cifar_resnet() -> Recipe:
    """A small ResNet at 32 px from stored views: 30 epochs, KD alone at T = 2.

    Our own experiment (docs/results/accuracy.md, 2026-11-24): ``timm:test_resnet`` of 0.37 million parameters on 5,000
    CIFAR-10 images, validated on 10,000. Seen by us, as arms of ``ablate``: 66.9 % with 30 stored views, 66.2 % with
    10, 63.0 % from labels alone. Time: minutes on two CPU cores, not kept. TFRecords with a background class take
    --offset 1.

        teachonce extract --data cifar --teacher TEACHER --policy crop --crop-scale 0.25 1 --views 30 --out views
        teachonce train --recipe cifar_resnet --data cifar --store views --out run
    """
    return Recipe(
        {
            "student": "timm:test_resnet",
            "epochs": 30,
            "validation_epochs": 5,
            "batch_size": 64,
            "lr": 0.1,
            "warmup_epochs": 1.0,
            "weight_decay": 5e-4,
            "kd_temp": 2.0,
            "label_weight": 0.0,
            "size": 32,
            "eval_crop_frac": 1.0,
            "channels_last": True,
        }
    )


def small_data_teacher() -> Recipe:
    """A teacher of own classes from few images: EfficientNet-Lite2 with ImageNet's weights, fine-tuned for 10 epochs.

    Our own experiment (docs/results/accuracy.md, 2026-11-27): 100 CIFAR-10 images of each class, enlarged from 32 to 96
    px, validated on 2,000. Seen by us: 70.6 %. Time: 5 to 7 minutes on one CPU core. For photographs give --size 224
    --eval-crop-frac 0.875; a larger pretrained --student knows more.

        teachonce train --recipe small_data_teacher --data small --out teacher
    """
    return Recipe(
        {
            "student": "timm:tf_efficientnet_lite2,pretrained=1",
            "epochs": 10,
            "validation_epochs": 5,
            "size": 96,
            "crop_scale": (0.4, 1.0),
            **_FEW_IMAGES,
        }
    )


def small_data_student() -> Recipe:
    """A network for phones from few images: EfficientNet-Lite0 with ImageNet's weights, 20 epochs of stored views.

    Our own experiment (docs/results/accuracy.md, 2026-11-27), with the teacher of ``small_data_teacher``, 10 views, T =
    2 and no labels, at 64 px. Seen by us: 70.2 % (labels alone: 67.1 %; both of two seeds). Time: 5 minutes on one
    CPU core. At 32 px it is 11 points worse.

        teachonce extract --data small --teacher run:teacher --policy crop --crop-scale 0.4 1 --views 10 --out views
        teachonce train --recipe small_data_student --data small --store views --out student
    """
    return Recipe(
        {
            "student": "timm:tf_efficientnet_lite0,pretrained=1",
            "epochs": 20,
            "validation_epochs": 10,
            "kd_temp": 2.0,
            "label_weight": 0.0,
            "size": 64,
            **_FEW_IMAGES,
        }
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe
    for recipe in (
        vanilla_resnet50,
        assemble_resnet50,
        assemble_resnet152,
        mobilenet_v1,
        resnet50_views,
        mobilenetv4_views,
        cifar_resnet,
        small_data_teacher,
        small_data_student,
    )
}

# The original's training reader passes no boxes to its crops, so the full image is their object.
_WALKTHROUGH_CROPS: Options = {
    "crop_scale": (0.05, 1.0),
    "crop_ratio": (0.75, 1.33),
    "object_covered": 0.1,
    "object_boxes": "image",
}
_FEW_IMAGES: Options = {
    "batch_size": 25,
    "optimizer": "adamw",
    "lr": 1e-3,
    "weight_decay": 0.05,
    "warmup_epochs": 1.0,
    "eval_crop_frac": 1.0,
    "channels_last": True,
}
_FAST: Options = {"precision": "bf16", "channels_last": True}


def build_recipe(name: str) -> Recipe:
    """The recipe of a name; raises ConfigError for one that does not exist."""
    if name not in RECIPES:
        close = closest(name, RECIPES)
        hint = f"did you mean {close[0]}?" if close else "see train --list-recipes"
        raise ConfigError(f"--recipe {name}: expected one of {', '.join(RECIPES)}; {hint}")
    return RECIPES[name]()


def recipe_options(name: str) -> Options:
    """A recipe as options of ``TrainConfig``, its name among them; raises ConfigError for one that does not exist."""
    return {"recipe": name, **build_recipe(name).options}


def describe_recipes() -> str:
    """Every recipe with its docstring, as ``train --list-recipes`` prints them."""
    return "\n\n".join(
        f"{name}\n    " + (inspect.getdoc(recipe) or "").replace("\n", "\n    ").replace("\n    \n", "\n\n")
        for name, recipe in RECIPES.items()
    )
