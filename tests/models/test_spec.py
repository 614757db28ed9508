"""Model SPECs: what is read from the text, and what is refused with a hint."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import pytest

from teachonce.errors import ConfigError
from teachonce.models.assembled_resnet.options import BackboneOptions
from teachonce.models.classifier import build_student
from teachonce.models.spec import BACKBONE_OPTIONS, override_preprocessing, parse_model, parse_model_spec, path_spec
from teachonce.pixels.preprocessing import Preprocessing


def test_spec_is_parsed_with_typed_options() -> None:
    spec = parse_model_spec(
        "torchvision:resnet50,weights=/a,b/c=d.pth,size=192,crop=0.9,mean=0.5,std=.1/.2/.3,offset=-1"
    )
    assert (spec.kind, spec.name) == ("torchvision", "resnet50")
    assert dict(spec.options) == {
        "weights": "/a,b/c=d.pth",
        "size": 192,
        "crop": 0.9,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.1, 0.2, 0.3),
        "offset": -1,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "timm:NAME, torchvision:NAME, onnx:FILE, savedmodel:DIR, run:DIR, amoebanet or efficientnet"),
        ("resnet50", "expected timm:NAME"),
        ("tim:resnet50", "did you mean 'timm'"),
        ("timm:", "after 'timm:'"),
        ("amoebanet:x", "expected timm:NAME"),
        ("timm:resnet18,sise=3", "no option 'sise' for timm .did you mean 'size'"),
        ("timm:resnet18,signature=x", "no option 'signature' for timm"),
        ("run:r,weights=x", "no option 'weights' for run"),
        ("timm:resnet18,size=0", "size=0: expected an integer"),
        ("timm:resnet18,crop=1.5", "fraction"),
        ("timm:resnet18,crop=a", "not a number"),
        ("timm:resnet18,mean=1/2", "R/G/B"),
        ("timm:resnet18,antialias=yes", "0 or 1"),
        ("timm:resnet18,size=3,size=3", "twice"),
        ("timm:resnet18,resize=9,crop=0.5", "same thing"),
        ("timm:resnet18,weights=", "expected a value"),
        ("timm:resnet18,offset=a", "integer"),
        ("timm:tf_resnet50,big_little=2", "ALPHA/BETA, such as 2/4, or none"),
        ("timm:tf_resnet50,drop_block_keep=0.9", "BEGIN/END"),
        ("timm:tf_resnet50,anti_alias=max/sconv", "sconv, proj, sconv/proj or none"),
        ("timm:tf_resnet50,embedding_size=-1", "0 or more"),
        ("torchvision:resnet50,zero_gamma=1", "no option 'zero_gamma' for torchvision"),
    ],
)
def test_spec_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_model_spec(text)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", Preprocessing(size_px=224, resize_px=256)),
        ("size=227,resize=256", Preprocessing(size_px=227, resize_px=256)),
        ("size=112", Preprocessing(size_px=112, resize_px=128)),
        ("crop=1", Preprocessing(size_px=224, resize_px=224)),
        ("geometry=squash", Preprocessing(size_px=224, resize_px=256, geometry="squash")),
        ("geometry=central", Preprocessing(size_px=224, geometry="central", crop_frac=0.875)),
        ("geometry=central,crop=0.5", Preprocessing(size_px=224, geometry="central", crop_frac=0.5)),
        (
            "interpolation=tf1_bilinear,range=byte,mean=1,std=2",
            Preprocessing(
                size_px=224,
                resize_px=256,
                interpolation="tf1_bilinear",
                antialias=False,
                value_range="byte",
                mean=(1, 1, 1),
                std=(2, 2, 2),
            ),
        ),
        ("antialias=0", Preprocessing(size_px=224, resize_px=256, antialias=False)),
    ],
)
def test_preprocessing_is_overridable(options: str, expected: Preprocessing) -> None:
    spec = parse_model_spec("timm:resnet18" + ("," + options if options else ""))
    assert override_preprocessing(Preprocessing(size_px=224, resize_px=256), spec) == expected


@pytest.mark.parametrize("size_px", range(1, 400, 7))
@pytest.mark.parametrize("margin_px", [0, 1, 8, 32])
def test_no_option_changes_nothing(size_px: int, margin_px: int) -> None:
    preprocessing = Preprocessing(size_px=size_px, resize_px=size_px + margin_px)
    assert override_preprocessing(preprocessing, parse_model_spec("timm:resnet18")) == preprocessing


@pytest.mark.parametrize("options", ["resize=8", "geometry=middle", "resize=256,geometry=central", "interpolation=x"])
def test_preprocessing_that_cannot_be_is_refused_with_the_spec(options: str) -> None:
    with pytest.raises(ConfigError, match="timm:resnet18"):
        override_preprocessing(Preprocessing(size_px=224), parse_model_spec(f"timm:resnet18,{options}"))


def test_the_spec_of_a_path_has_its_commas() -> None:
    path = Path("runs") / "a, lr=0.1"
    spec = path_spec("run", path)
    assert (spec.kind, spec.name, spec.options, str(spec)) == ("run", str(path), {}, f"run:{path}")
    with pytest.raises(ConfigError, match="no option 'lr'"):
        parse_model_spec(str(spec))
    assert path_spec("onnx", Path("a.onnx")) == parse_model_spec("onnx:a.onnx")


@pytest.mark.parametrize("kind, name", [("run", "lr=0.1,seed=3"), ("onnx", "lr=0.1,seed=3.onnx"), ("run", "a,size=32")])
def test_a_local_path_that_is_there_is_the_path_as_a_whole(
    kind: Literal["run", "onnx"], name: str, tmp_path: Path
) -> None:
    path, other = tmp_path / name, tmp_path / name.partition(",")[0]
    for each in (path, other) if kind == "run" else (path,):
        each.mkdir() if kind == "run" else each.write_bytes(b"")
        if kind == "run":
            (each / "config.json").write_text("{}")
    assert parse_model_spec(path_spec(kind, path).text) == path_spec(kind, path)
    with_option = parse_model_spec(f"{kind}:{path},size=64,crop=0.9")
    assert (with_option.name, with_option.options) == (str(path), {"size": 64, "crop": 0.9})
    if kind == "run":
        assert parse_model_spec(f"run:{other},size=64").name == str(other)
    assert parse_model_spec(f"run:s3://bucket/{'run' * 200},size=64").options == {"size": 64}
    assert parse_model_spec(f"{kind}:{'x' * 5000},size=64").options == {"size": 64}


def test_a_spec_carries_every_option_of_the_backbone() -> None:
    fields = {field.name for field in dataclasses.fields(BackboneOptions)}
    # The depth is in the name, and batch norm's momentum is an option of the training, for every network.
    assert fields - {"depth", "bn_momentum"} == set(BACKBONE_OPTIONS)


@pytest.mark.filterwarnings("ignore:anti_alias 'proj' has no effect:UserWarning")  # which test_options has
def test_options_of_the_backbone_build_what_they_say() -> None:
    text = (
        "timm:tf_resnet101,num_filters=8,big_little=2/4,use_resnet_d=1,use_se=1,use_sk=1,anti_alias=sconv/proj,"
        "anti_alias_filter=5,drop_block_keep=0.9/0.7,zero_gamma=1,global_pool=gem,embedding_size=12,"
        "use_last_downsample=0,size=64"
    )
    student = build_student(text, 5)
    assert student.options == BackboneOptions(
        depth=101,
        num_filters=8,
        big_little=(2, 4),
        use_resnet_d=True,
        use_se=True,
        use_sk=True,
        anti_alias=("sconv", "proj"),
        anti_alias_filter=5,
        drop_block_keep=(0.9, 0.7),
        zero_gamma=True,
        global_pool="gem",
        embedding_size=12,
        use_last_downsample=False,
    )


def test_options_of_a_name_can_be_taken_away() -> None:
    student = build_student(
        "timm:assemble_resnet50,num_filters=8,big_little=none,anti_alias=none,drop_block_keep=none,use_sk=0", 5
    )
    assert student.options == BackboneOptions(num_filters=8, zero_gamma=True)


@pytest.mark.parametrize(
    "text, message",
    [
        ("timm:resnet18,use_sk=1,zero_gamma=1", "use_sk, zero_gamma are options only of the assembled ResNets"),
        ("timm:tf_resnet50,num_filters=6", "num_filters 6: expected a multiple of 4"),
        ("timm:tf_resnet50,global_pool=max", "expected 'avg' or 'gem'"),
    ],
)
def test_options_of_the_backbone_are_refused_where_they_cannot_be(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_student(text, 5)


def test_models_as_people_name_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert (parse_model("run").kind, parse_model("run").name) == ("run", "run"), "a folder of this name, and no SPEC"
    assert (parse_model("a,b=c.onnx").kind, parse_model("a,b=c.onnx").name) == ("onnx", "a,b=c.onnx")
    assert parse_model("timm:resnet18,size=3").options == {"size": 3}
    assert parse_model("amoebanet,size=331").kind == "amoebanet" and parse_model("run:x.onnx").kind == "run"
    for text in ("", "nowhere", "tim:a", "onnx", "s3:/x"):
        with pytest.raises(ConfigError):
            parse_model(text)
    with pytest.raises(ConfigError, match=r"model 'tim:a': is not the folder of a run .*did you mean 'timm'\?"):
        parse_model("tim:a")
