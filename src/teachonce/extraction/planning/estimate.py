"""``teachonce plan``: bytes, hours, distortion and break-even of an extraction, before anything is spent.

    the plan that extract would make -> a sample goes its way (measure) -> what follows (costs)
    -> a table (table), JSON, a picture (picture), a page (page)

The store that is planned is described by ``extract``'s own plan, made from the same settings, so a setting or a
teacher that an extraction would refuse is refused here, in the same words. Nothing is estimated from tables of models
or machines. What is not measured: the speed of a network, which ``--network-gbps`` gives, or of a disk at writing, and
how several devices get in each other's way. Whether others used the machine meanwhile is watched (``busy``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from teachonce.codecs.codec import Codec
from teachonce.codecs.dense import Float32Codec
from teachonce.codecs.registry import build_codec, codec_from_json
from teachonce.engine.machine import num_cores
from teachonce.engine.progress import phase, progress
from teachonce.errors import ConfigError, LogitsError, RecordError
from teachonce.extraction.config import PlanConfig
from teachonce.extraction.planning.busy import MachineUse
from teachonce.extraction.planning.costs import (
    Timings,
    Workload,
    estimate_break_even,
    estimate_hours,
    measure_tails,
    network_seconds,
    recommend,
)
from teachonce.extraction.planning.measure import (
    CodecTrial,
    SampleResult,
    measure_side_files,
    run_teacher,
    try_codec,
)
from teachonce.extraction.planning.page import render_plan
from teachonce.extraction.planning.picture import draw_estimate
from teachonce.extraction.planning.table import render_estimate
from teachonce.extraction.planning.traffic import count_heartbeats, count_traffic
from teachonce.extraction.prepare import build_plan, draws_by_boxes
from teachonce.extras import require
from teachonce.models.classifier import Classifier, load_model
from teachonce.pixels.view_sources import warn_of_own_class_partners
from teachonce.records.discovery import open_records
from teachonce.records.sample import SubsetSource, sample_locations
from teachonce.records.source import NO_LABEL
from teachonce.storage.files import atomic_write, exists, open_storage, write_json
from teachonce.storage.scratch import scratch_folder
from teachonce.store.plan import Plan
from teachonce.store.plan_files import PLAN_NAME, holds_store
from teachonce.versions import library_versions
from teachonce.views.policy import build_policy

COMPARED_KS = (5, 10, 20, 50)
"""Classes kept by the topk codecs that are compared, beside that of ``--topk`` where it is the codec."""
# Not plan.json, which marks a store.
PICTURE_NAME, RESULTS_NAME, TEXT_NAME = "extraction-plan.svg", "extraction-plan.json", "extraction-plan.txt"
PAGE_NAME = "extraction-plan.html"
FILE_NAMES = (PAGE_NAME, RESULTS_NAME, PICTURE_NAME, TEXT_NAME)


def estimate(config: PlanConfig) -> str:
    """The text to print; with ``--out`` also text, figures as JSON, picture and page, each complete or absent.

    Raises ConfigError for settings that fit neither data nor teacher, or an ``out`` that holds a store; RecordError,
    ImageError or LogitsError, with the place, for what is wrong with a sampled record or the teacher.
    """
    check_estimate_folder(config.out)
    if config.out is not None:
        require("matplotlib", "jinja2", purpose="plan --out")
    summary = build_estimate(config)
    text = render_estimate(summary)
    if config.out is not None:
        with atomic_write(config.out / TEXT_NAME) as file:
            file.write(text.encode() + b"\n")
        with atomic_write(config.out / PICTURE_NAME) as file:
            file.write(draw_estimate(summary).encode())
        with atomic_write(config.out / PAGE_NAME) as file:
            file.write(render_plan(summary, text).encode())
        write_json(config.out / RESULTS_NAME, summary)
    return json.dumps(summary) if config.json else text


def check_estimate_folder(out: Path | None) -> None:
    """Raise ConfigError where ``out`` is not a folder, or a store, which holds nothing but what belongs to it."""
    if out is None or not exists(out):
        return
    if not open_storage(out).is_folder():
        raise ConfigError(f"--out {out}: is a file, expected a folder for {TEXT_NAME} and others")
    if holds_store(out):
        raise ConfigError(f"--out {out}: holds a store ({PLAN_NAME}); choose another --out")


def build_estimate(config: PlanConfig) -> dict[str, Any]:
    """A plan as JSON values; seconds and hours are of this machine."""
    extraction = config.to_extraction()
    with phase("plan", "opening the data"):
        source = open_records(config.data, config.split, config, with_boxes=draws_by_boxes(extraction))
    if source.num_records == 0:
        raise RecordError(f"{config.data}: split {config.split} has no records; expected some to measure on")
    if extraction.views_of is None:
        warn_of_own_class_partners(build_policy(extraction.policy, extraction), source, config.data)
    with phase("plan", "loading the teacher"):
        teacher = load_model(config.teacher, device=config.device, precision=config.precision, compile=config.compile)
    plan = build_plan(extraction, source, teacher)
    subset = SubsetSource(source, sample_locations(source, config.samples, config.seed))
    subset_plan = build_plan(extraction, subset, teacher)
    threads = config.decode_threads or num_cores()
    use = MachineUse()
    with progress("plan", subset.num_records) as advance:
        result = run_teacher(
            subset, subset_plan, teacher, batch_size=config.batch_size, num_threads=threads, advance=advance
        )
    measurement = use.finish(result.batch_seconds)
    codec = codec_from_json(plan.codec)
    with scratch_folder() as folder:
        side_bytes = measure_side_files(folder / "side", subset_plan, result, plan.num_samples)
        trials = {
            item: _try(folder / str(index), subset_plan, item, result)
            for index, item in enumerate(_compared_codecs(codec, teacher.num_classes))
        }
    entries = [_codec_entry(item, trial, plan, side_bytes, is_planned=item == codec) for item, trial in trials.items()]
    planned = trials[codec]
    # A codec that refuses a row stops an extraction; its hours are then those of the codec that refuses none.
    trial = planned if isinstance(planned, CodecTrial) else trials[Float32Codec()]
    assert isinstance(trial, CodecTrial)
    timings = _collect_timings(result, trial, teacher, threads)
    workload = Workload(
        num_records=source.num_records,
        num_views=plan.num_views,
        num_groups=len(plan.view_groups),
        num_shards=len(plan.shards),
        epochs=config.epochs,
        students=config.students,
        num_devices=config.devices,
    )
    file_bytes = list(count_file_bytes(plan, trial, side_bytes))
    traffic = count_traffic(plan, file_bytes, count_store_bytes(plan, trial, side_bytes))
    view_bytes = traffic.moved_bytes / workload.all_views
    network = None if config.network_gbps is None else network_seconds(view_bytes, config.network_gbps)
    hours = estimate_hours(timings, workload, network_seconds=network, price=config.price)
    largest_shard = max(num_records for _, num_records in plan.shards)
    return {
        "kind": "plan",
        "data": str(config.data),
        "split": config.split,
        "teacher": plan.teacher,
        "num_classes": teacher.num_classes,
        "offset": plan.class_space.offset,
        "policy": plan.policy,
        "codec": plan.codec,
        "views_per_file": config.views_per_file,
        "batch_size": config.batch_size,
        "device": describe_device(teacher),
        "workload": asdict(workload),
        "sample": {
            "num_records": subset.num_records,
            "asked_for": config.samples,
            "seed": config.seed,
            "top1": _top1(result, plan.class_space.offset),
        },
        "timings": asdict(timings),
        "measurement": asdict(measurement) | {"busy": measurement.signs},
        "hours": asdict(hours),
        "price": config.price,
        "network_gbps": config.network_gbps,
        "traffic": asdict(traffic)
        | {
            "heartbeat_puts": count_heartbeats(hours.device_hours),
            "device_gbps": view_bytes * 8 / 1e9 / hours.pipeline_seconds,
        },
        "unit_logits_bytes": largest_shard * _largest_group(plan) * teacher.num_classes * 4,
        "codecs": entries,
        "tail_mass": measure_tails(result.logits),
        "break_even": asdict(estimate_break_even(timings, workload, hours.hours_here)),
        "recommendation": recommend(entries),
        "versions": library_versions(),
    }


def _collect_timings(result: SampleResult, trial: CodecTrial, teacher: Classifier, num_threads: int) -> Timings:
    return Timings(
        read_seconds=result.read_seconds,
        decode_seconds=result.decode_seconds,
        look_seconds=result.look_seconds,
        teacher_seconds=result.teacher_seconds,
        write_seconds=trial.write_seconds,
        read_back_seconds=trial.read_back_seconds,
        num_threads=num_threads,
        has_accelerator=teacher.device.type != "cpu",
    )


def describe_device(teacher: Classifier) -> str:
    """A description of the device."""
    if teacher.device.type == "cuda":
        return f"{teacher.device} ({torch.cuda.get_device_name(teacher.device)}), {num_cores()} cores"
    return f"{teacher.device}, {num_cores()} cores"


def _compared_codecs(codec: Codec, num_classes: int) -> list[Codec]:
    """The one that is planned and its alternatives: dense ones first, then by the classes that they keep."""
    codecs = [build_codec(name, num_classes=num_classes) for name in ("float32", "float16", "int8")]
    codecs += [build_codec("topk", num_classes=num_classes, k=k) for k in COMPARED_KS if k < num_classes]
    return sorted(dict.fromkeys([*codecs, codec]), key=lambda item: item.num_kept or 0)


def _try(folder: Path, plan: Plan, codec: Codec, result: SampleResult) -> CodecTrial | str:
    """The trial, or the codec's words where it refuses a row of the sample."""
    try:
        return try_codec(folder, plan, codec, result)
    except LogitsError as error:
        return str(error)


def _codec_entry(
    codec: Codec, trial: CodecTrial | str, plan: Plan, side_bytes: Mapping[str, float], *, is_planned: bool
) -> dict[str, Any]:
    parameters, promised = codec.to_json(), codec.promised_temperatures
    k = parameters.get("k")
    entry: dict[str, Any] = {
        "name": codec.name,
        "k": k,
        "label": codec.name if k is None else f"{codec.name} {k}",
        "parameters": parameters,
        "is_planned": is_planned,
        "promised_temperatures": None if promised is None else list(promised),
        "refused": trial if isinstance(trial, str) else None,
    }
    if isinstance(trial, str):
        return entry
    num_rows = sum(num_records for _, num_records in plan.shards) * plan.num_views
    store_bytes = count_store_bytes(plan, trial, side_bytes)
    return entry | {
        "codec_bytes": trial.codec_bytes,
        "view_bytes": trial.view_bytes,
        "store_bytes": store_bytes,
        "bytes_per_view": store_bytes / num_rows,
        "write_seconds": trial.write_seconds,
        "read_back_seconds": trial.read_back_seconds,
        "total_variation": trial.total_variation,
    }


def count_store_bytes(plan: Plan, trial: CodecTrial, side_bytes: Mapping[str, float]) -> int:
    """Bytes of a store's Arrow files: those of rows exactly, those of a file's own as in the trial, to a few bytes.

    ``side_bytes`` as from ``measure_side_files``.
    """
    index_bytes = side_bytes["index_file_bytes"] + plan.num_records * side_bytes["index_bytes"]
    return round(index_bytes + sum(count_file_bytes(plan, trial, side_bytes)))


def count_file_bytes(plan: Plan, trial: CodecTrial, side_bytes: Mapping[str, float]) -> Iterator[float]:
    """Bytes of each Arrow file of the shards, as in ``count_store_bytes``."""
    for _, num_records in plan.shards:
        yield side_bytes["records_file_bytes"] + num_records * side_bytes["record_bytes"]
        for first, last in plan.view_groups:
            num_views = last - first + 1
            row_bytes = num_views * num_records * (trial.codec_bytes + trial.view_bytes)
            yield trial.file_bytes + num_views * trial.batch_bytes + row_bytes
            if plan.num_samples:
                num_samples = min(plan.num_samples, num_views * num_records)
                yield side_bytes["samples_file_bytes"] + num_samples * side_bytes["sample_bytes"]


def _largest_group(plan: Plan) -> int:
    return max(last - first + 1 for first, last in plan.view_groups)


def _top1(result: SampleResult, offset: int) -> float | None:
    """Of the teacher on the unmixed views of labeled records; None where there are none."""
    is_judged = (result.labels != NO_LABEL) & np.array([view.mix is None for view in result.views])
    hits = (result.logits.argmax(axis=1) + offset == result.labels)[is_judged]
    return float(hits.mean()) if len(hits) else None
