"""The options of the programs that live here: ``ablate``, ``demo``, ``start`` and ``completion``."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from teachonce.codecs.options import KEPT_CLASSES, CodecName
from teachonce.errors import ConfigError, TeachonceError
from teachonce.models.options import Spec
from teachonce.options import (
    Common,
    Condition,
    Count,
    CountOrNone,
    InArms,
    InData,
    InLoss,
    InOptimization,
    InOutput,
    InRunning,
    InStudent,
    InTeacher,
    Label,
    Open,
    Positional,
    Seed,
    check_applicable,
    check_values,
    only_with,
    require,
)
from teachonce.records.options import RecordOptions
from teachonce.storage.address import to_location
from teachonce.training.config import TrainingOptions

_MADE_STORES = Condition("no --stores", lambda options: not options.stores)


@dataclass(frozen=True, kw_only=True)
class AblateConfig(TrainingOptions):
    """Measure what distillation gains: the same student at equal steps with labels, fixed logits, stored views and
    an online teacher."""

    teacher: InTeacher[Common[Spec | None]] = only_with(None, _MADE_STORES)
    """Model SPEC of the teacher that extracts the stores of the arms and is the online teacher."""
    stores: InArms[Common[str]] = ""
    """Stores to compare instead of making them: A,B,A+B; A+B averages two teachers over the same views.
    Names of stores may have + and commas themselves."""
    arms: InArms[Common[str]] = "labels,center,views:1,views:4,views:10,online"
    """What to compare: labels; center (fixed logits, the student's own crops); views:V (V stored views); own:V (V
    stored views, but the student draws its own: no agreement); online. With --stores an arm is a store, and of these
    labels alone is trained as well."""
    seeds: InArms[Common[Count]] = 3
    """Students per arm, each with a different seed."""
    total_weight: InLoss[Literal["equal", "given"]] = "equal"
    """Loss weights of the arms with a teacher: equal scales --label-weight and --kd-weight to sum to 1, as in the
    arm without a teacher, so that gradients have the same size at the same learning rate; given uses them unchanged
    (1 + 1 is about twice the gradient)."""
    codec: InTeacher[Open[CodecName]] = only_with("int8", _MADE_STORES)
    """Codec of the stores."""
    topk: InTeacher[Count] = only_with(10, KEPT_CLASSES)
    """Codec topk: number of classes to keep."""
    view_seed: InTeacher[Seed] = only_with(0, _MADE_STORES)
    """Seed of the views; those of a store are the same for all students."""
    teacher_offset: InTeacher[Label | None] = only_with(None, _MADE_STORES)
    """Data label of the teacher's class 0, as --offset of extract."""
    jobs: InRunning[Common[CountOrNone]] = 1
    """Students trained at the same time; 0 means one per core (on the CPU)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.teacher) or bool(self.stores), "--teacher", self.teacher, "a model SPEC, or --stores")
        require(bool(self.stores) or bool(self.arms), "--arms", self.arms, "at least one arm")
        self.parse_arms()
        self.parse_stores()
        split = self.validation_split
        require(self.has_validation, "--validation-split", split, "a split: ablate compares validation accuracies")
        mixing = next((name for name in ("mixup", "cutmix") if getattr(self, f"{name}_alpha") > 0), None)
        if mixing is not None and self.teacher and not self.stores:
            own = next((f"own:{count}" for kind, count in self.parse_arms() if kind == "own"), None)
            advice = (
                f"arms without own:V, or no --{mixing}-alpha: the store's answers are of mixed images, its views not"
            )
            require(own is None, "--arms", own, advice)
        # Scaled to a sum of 1, which nothing cannot be.
        require(self.label_weight + self.kd_weight > 0, "--kd-weight", self.kd_weight, "above 0 with --label-weight 0")
        check_applicable(self)

    @property
    def uses_labels(self) -> bool:
        """As in one training, but that students without a teacher have labels whatever their weight is elsewhere."""
        return super().uses_labels or ("labels", 0) in self.parse_arms()

    @property
    def has_teacher(self) -> bool:
        """Always: the arms that need teacher logits have them."""
        return True

    def check_folder(self) -> None:
        """Raise TeachonceError where ``--out`` is something else than an ablation or a place for one."""
        from teachonce.storage.resume import PlanFile  # not for a help: it needs a library

        PlanFile(
            folder=self.out,
            name="ablation.json",
            foreign=TeachonceError(f"{self.out}: exists and is not an ablation; choose another --out or remove it"),
            # Any of them is the first, and two commands with other arms may begin at once.
            is_foreign=lambda names: bool(names) and {"stores", "logs", "runs"}.isdisjoint(names),
        ).check_folder()

    def parse_stores(self) -> list[tuple[Path, ...]]:
        """The stores of each arm of ``--stores``; raises ConfigError where a name is empty, or two readings hold.

        Names may have a + or a comma themselves: words that are stores only when they are joined are one name.
        """
        words = re.split("([+,])", self.stores) if self.stores else []
        is_store = cache(_is_store)
        short, long = (_join_names(words, is_store, longest=longest) for longest in (False, True))
        if short != long:
            name = next(name for name in long or () if name not in (short or ()))
            both = "more than one way to read it, as {0} is a store and so are its parts; for these write +./ for +"
            raise ConfigError(f"--stores {self.stores}: there is {both.format(name.strip())}, or rename a store")
        arms: list[list[str]] = [[]] if words else []
        for word in short or words:
            if word == ",":
                arms.append([])
            elif word != "+":
                arms[-1].append(word.strip())
        require(all(map(all, arms)), "--stores", self.stores, "stores as A,B,A+B, none of them empty")
        return [tuple(map(to_location, parts)) for parts in arms]

    def parse_arms(self) -> list[tuple[str, int]]:
        """(kind, number of views) of each arm; raises ConfigError for other texts."""
        found: list[tuple[str, int]] = []
        for word in self.arms.split(",") if self.arms else ():
            kind, colon, count = word.strip().partition(":")
            if kind in ("labels", "center", "online") and not colon:
                found.append((kind, 0))
            elif kind in ("views", "own") and re.fullmatch("0*[1-9][0-9]{0,8}", count):
                found.append((kind, int(count)))
            else:
                raise ConfigError(f"--arms {word}: expected labels, center, online, views:V or own:V")
        require(len(set(found)) == len(found), "--arms", self.arms, "each arm once")
        return found


def _join_names(words: Sequence[str], is_store: Callable[[str], bool], *, longest: bool) -> list[str] | None:
    """Names and the separators between them, with words joined so that every name is a store; None: there is no way.

    Of several ways the one with the shortest names, or the longest ones, from the left.
    """
    ends = range(1, len(words) + 1, 2)
    for end in reversed(ends) if longest else ends:
        name = "".join(words[:end])
        if is_store(name):
            if end == len(words):
                return [name]
            if rest := _join_names(words[end + 1 :], is_store, longest=longest):
                return [name, words[end], *rest]
    return None


def _is_store(text: str) -> bool:
    from teachonce.store.plan_files import holds_store

    # What cannot be looked for is said when it is opened.
    with suppress(TeachonceError, OSError, ValueError):
        return bool(text.strip()) and holds_store(to_location(text.strip()))
    return False


@dataclass(frozen=True, kw_only=True)
class CompletionConfig:
    """Print the shell script that completes commands and options on Tab."""

    shell: InOutput[Positional[Literal["bash", "zsh", "fish"]]]
    """The shell; the script's first line says where to put it."""

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Run the whole workflow on scikit-learn's handwritten digits: records, extract, verify, merge, train, compare."""

    out: InOutput[Path] = Path("demo")
    """Folder for all output of the demo."""
    seeds: InRunning[Count] = 5
    """Students per row of the tables, each with a different seed."""

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True, kw_only=True)
class StartConfig(RecordOptions):
    """Look at images and print the commands for them, from a teacher to an exported student; nothing is run."""

    data: InData[Positional[Path]]
    """Folder of TFRecords, of SPLIT/CLASS or CLASS folders of images, of images alone, tars or Parquet; or a table
    of images (.csv, .jsonl, .parquet, .txt)."""
    split: InData[str] = "train"
    """Split to train on."""
    teacher: InTeacher[Spec | None] = None
    """Model SPEC of the teacher; timm:NAME and torchvision:NAME are fine-tuned first, all others are taken as they are.
    Default: by rule."""
    student: InStudent[Spec | None] = None
    """Model SPEC of the student. Default: by rule."""
    size: InStudent[Count | None] = None
    """Side of the input in pixels, of the student and of a teacher that is trained. Default: by rule, from the images'
    sizes."""
    epochs: InOptimization[Count | None] = None
    """Epochs of the student, and at most as many of the teacher. Default: by rule, from the number of images."""
    device: InRunning[str] = "auto"
    """auto, cpu, cuda, mps: --device of the commands."""
    out: InOutput[Path | None] = None
    """File to write the script to, with the options of its trainings beside it, for --config. Default: print it."""

    def __post_init__(self) -> None:
        check_values(self)
        check_applicable(self)
