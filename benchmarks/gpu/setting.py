"""Where the parts run, on what and how much of it; the teachers and the data that they share."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.photographs import draw_photograph, read_jpegs, write_jpegs
from teachonce.engine.machine import num_cores
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extract import extract
from teachonce.models.classifier import build_student
from teachonce.models.spec import parse_model_spec
from teachonce.store.store import Store

CALIBRATION_IMAGES = 64


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A device, a folder for everything that is made, and sizes: real ones, or tiny ones that a CPU can do."""

    device: torch.device
    folder: Path
    is_tiny: bool
    teacher: str | None
    """SPEC of a teacher with real weights, where there is one."""
    images: Path | None
    """Real photographs, where there are some."""
    num_images: int
    """Records of the data set that is measured on."""

    def with_images(self, name: str, count: int) -> Setting:
        """The same with a data set, and a folder, of its own; the tiny sizes stay."""
        return dataclasses.replace(
            self, folder=self.folder / name, num_images=self.num_images if self.is_tiny else count
        )

    @property
    def device_name(self) -> str:
        """As ``--device`` takes it."""
        return str(self.device)

    @property
    def batch_size(self) -> int:
        """Images a batch where speed is measured."""
        return 8 if self.is_tiny else 256

    @property
    def rounds(self) -> int:
        """How often each pair is measured, twice a round."""
        return 1 if self.is_tiny else 5

    @property
    def size_px(self) -> int:
        """Side of a student's input where speed is measured."""
        return 32 if self.is_tiny else 224

    @functools.cached_property
    def jpegs(self) -> tuple[list[bytes], list[int]]:
        """Distinct photographs and their labels: real ones, else synthetic."""
        if self.images is not None:
            return read_jpegs(self.images, 24 if self.is_tiny else None)
        count = 24 if self.is_tiny else 256
        with ThreadPoolExecutor(num_cores()) as pool:
            jpegs = list(pool.map(lambda seed: draw_photograph(np.random.default_rng(seed)), range(count)))
        return jpegs, [1 + index % 1000 for index in range(count)]

    @functools.cached_property
    def data(self) -> Path:
        """TFRecord shards of ``num_images`` photographs, the distinct ones repeated."""
        jpegs, labels = self.jpegs
        order = [index % len(jpegs) for index in range(self.num_images)]
        chosen = [jpegs[index] for index in order], [labels[index] for index in order]
        return write_jpegs(self.folder / "data", *chosen, num_shards=2 if self.is_tiny else 8)

    def make_store(self, name: str, teacher: str, **options: object) -> Store:
        """A store over ``data``, extracted on the device unless the options say otherwise."""
        settings: dict[str, object] = {"device": self.device_name, "gate_samples": 0, "batch_size": 64, **options}
        config = ExtractConfig(data=self.data, teacher=teacher, out=self.folder / name)
        extract(dataclasses.replace(config, **settings))  # type: ignore[arg-type]  # options by name
        return Store(config.out)

    def random_teacher(self, spec: str, size_px: int | None = None) -> str:
        """SPEC of an architecture with random weights in a file, its batch norms fed with photographs' statistics.

        The file is made once for each architecture. Tiny ones take tiny images too.
        """
        size_px = self.size_px if self.is_tiny else size_px
        file = self.folder / f"{spec.partition(':')[2]}.safetensors"
        if not file.exists():
            torch.manual_seed(0)
            module = build_student(spec, 1000, size_px=size_px)
            _excite(module)
            if any(isinstance(part, torch.nn.modules.batchnorm._BatchNorm) for part in module.modules()):
                images = torch.rand(CALIBRATION_IMAGES, 3, 96, 96, device=self.device) * 4 - 2
                module.to(self.device)
                with torch.no_grad():
                    for _ in range(3):
                        module(images)
                module.cpu()
            save_file({name: value.contiguous() for name, value in module.state_dict().items()}, file)
        size = "" if size_px is None else f",size={size_px}"
        return f"{parse_model_spec(spec).text},weights={file}{size}"


def _excite(module: torch.nn.Module) -> None:
    """Scales of branches that begin at zero (as timm's) to one: else nothing but shortcuts would be compared."""
    for part in module.modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm) and part.weight is not None:
            torch.nn.init.ones_(part.weight)


def photographs_as_pixels(jpegs: Sequence[bytes], size_px: int) -> torch.Tensor:
    """Center crops uint8 [N, size, size, 3]."""
    from teachonce.pixels.decode import decode_image
    from teachonce.pixels.preprocessing import Preprocessing

    preprocessing = Preprocessing(size_px=size_px, resize_px=round(size_px / 0.875))
    return torch.from_numpy(np.stack([preprocessing.apply(decode_image(item)) for item in jpegs]))
