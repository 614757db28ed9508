"""SavedModels that would do more than arithmetic are refused before TensorFlow loads them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from teachonce.errors import ModelError
from teachonce.models.classifier import load_model

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="no TensorFlow"),
    pytest.mark.xdist_group("tensorflow"),
]

SIZE_PX = 8
Body = Callable[[Any, Any, str], Any]


def write_file(tf: Any, images: Any, evidence: str) -> None:
    tf.io.write_file(evidence, "written")


def read_file(tf: Any, images: Any, evidence: str) -> Any:
    return tf.cast(tf.strings.length(tf.io.read_file("/etc/hostname")), tf.float32)


def within_a_branch(tf: Any, images: Any, evidence: str) -> None:
    @tf.function
    def inner() -> Any:
        tf.io.write_file(evidence, "written")
        return 0.0

    tf.cond(tf.reduce_sum(images) > -1, inner, lambda: 0.0)


def python(tf: Any, images: Any, evidence: str) -> Any:
    return tf.numpy_function(lambda x: x, [tf.reduce_sum(images)], tf.float32)


def save(tf: Any, images: Any, evidence: str) -> None:
    """What every SavedModel has for its variables, here where the answer is computed."""
    tf.raw_ops.SaveV2(prefix=evidence, tensor_names=["a"], shape_and_slices=[""], tensors=[tf.reduce_sum(images)])


def print_to_file(tf: Any, images: Any, evidence: str) -> None:
    tf.print("written", output_stream=f"file://{evidence}")


def data_set(tf: Any, images: Any, evidence: str) -> Any:
    lines = tf.data.TextLineDataset("/etc/hostname")
    return tf.cast(lines.reduce(np.int64(0), lambda count, _: count + 1), tf.float32)


def write_savedmodel(path: Path, body: Body, evidence: Path) -> None:
    import tensorflow as tf

    class Network(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = tf.Variable([0.0, 1.0, -1.0])
            self.table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["a"], [1.0]), 0.0)

        @tf.function(input_signature=[tf.TensorSpec([None, SIZE_PX, SIZE_PX, 3], tf.float32, name="images")])
        def serve(self, images: Any) -> Any:
            more = body(tf, images, str(evidence))
            logits = tf.reduce_mean(images, [1, 2]) + self.bias * self.table.lookup(tf.constant("a"))
            return {"logits": logits if more is None else logits + 0 * more}

    network = Network()
    tf.saved_model.save(network, str(path), signatures={"serving_default": network.serve})


@pytest.mark.parametrize(
    ("body", "operation"),
    [
        (write_file, "WriteFile"),
        (read_file, "ReadFile"),
        (within_a_branch, "WriteFile"),
        (python, "PyFunc"),
        (save, "SaveV2"),
        (print_to_file, "PrintV2"),
        (data_set, "TextLineDataset"),
    ],
)
def test_a_graph_that_does_more_than_arithmetic_is_refused(tmp_path: Path, body: Body, operation: str) -> None:
    evidence = tmp_path / "evidence"
    write_savedmodel(tmp_path / "model", body, evidence)
    with pytest.raises(
        ModelError, match=rf"model: its graph has operations other than arithmetic \(.*{operation}.*trust=1"
    ):
        load_model(f"savedmodel:{tmp_path}/model")
    assert not list(tmp_path.glob("evidence*"))


def test_trusted_it_does_what_it_would(tmp_path: Path) -> None:
    """So the refusal has something to prevent."""
    evidence = tmp_path / "evidence"
    write_savedmodel(tmp_path / "model", write_file, evidence)
    assert load_model(f"savedmodel:{tmp_path}/model,trust=1").num_classes == 3
    assert evidence.read_text() == "written"


def test_variables_branches_loops_and_random_numbers_are_arithmetic(tmp_path: Path) -> None:
    def body(tf: Any, images: Any, evidence: str) -> Any:
        sum_ = tf.reduce_sum(images)
        looped = tf.while_loop(lambda i, _: i < 3, lambda i, x: (i + 1, x * 0.5), (0, sum_))[1]
        branched = tf.cond(sum_ > 0, lambda: looped, lambda: -looped)
        return branched + tf.random.uniform([]) + tf.random.normal([])

    write_savedmodel(tmp_path / "model", body, tmp_path / "evidence")
    assert load_model(f"savedmodel:{tmp_path}/model").num_classes == 3


@pytest.mark.parametrize("place", ["answer", "initialization", "restoring"])
def test_a_hub_module_that_writes_a_file_is_refused(tmp_path: Path, place: str) -> None:
    import tensorflow as tf

    v1 = tf.compat.v1
    path, evidence = tmp_path / "module", tmp_path / "evidence"
    builder = v1.saved_model.Builder(str(path))
    with tf.Graph().as_default(), v1.Session() as session:
        images = v1.placeholder(tf.float32, [None, SIZE_PX, SIZE_PX, 3], name="images")
        bias = v1.get_variable("bias", initializer=np.array([0, 1, -1], np.float32))
        with tf.control_dependencies([tf.io.write_file(str(evidence), "written")] if place == "answer" else []):
            logits = tf.reduce_mean(images, [1, 2]) + bias
        start = tf.io.write_file(str(evidence), "written") if place == "initialization" else None
        signature = v1.saved_model.signature_def_utils.predict_signature_def({"images": images}, {"default": logits})
        session.run(v1.global_variables_initializer())
        builder.add_meta_graph_and_variables(session, tags=[], signature_def_map={"default": signature}, main_op=start)
    builder.save()
    if place == "restoring":
        from tensorflow.core.protobuf import saved_model_pb2

        model = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
        graph = model.meta_graphs[0].graph_def
        restore = next(
            node for node in graph.node if node.name == model.meta_graphs[0].saver_def.restore_op_name.split(":")[0]
        )
        write = graph.node.add(name="write", op="WriteFile")
        constants = [node.name for node in graph.node if node.op == "Const"][:1] * 2
        write.input.extend(constants)
        restore.input.append("^write")
        (path / "saved_model.pb").write_bytes(model.SerializeToString())
    evidence.unlink(missing_ok=True)
    with pytest.raises(ModelError, match=r"its graph has operations other than arithmetic \(WriteFile\)"):
        load_model(f"savedmodel:{path}")
    assert not evidence.exists()


@pytest.mark.parametrize("kind", ["two graphs", "a function that only an object names"])
def test_what_is_run_is_what_tensorflow_takes_it_for(tmp_path: Path, kind: str) -> None:
    """One graph among several is loaded as TensorFlow 1 did, objects or not; objects may name unlisted functions."""
    from tensorflow.core.protobuf import saved_model_pb2

    write_savedmodel(tmp_path / "model", write_file, tmp_path / "evidence")
    file = tmp_path / "model" / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    graph = model.meta_graphs[0]
    objects = graph.object_graph_def
    names = list(objects.concrete_functions)
    objects.concrete_functions.clear()
    if kind == "two graphs":
        objects.nodes.clear()
        objects.nodes.add()
        model.meta_graphs.add().meta_info_def.tags.append("other")
        graph.collection_def["saved_model_main_op"].node_list.value.append("write")
        graph.graph_def.node.add(name="write", op="WriteFile")
    else:
        for node in objects.nodes:
            node.ClearField("function")
        for name in names:
            objects.nodes.add().bare_concrete_function.concrete_function_name = name
    file.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"its graph has operations other than arithmetic \(.*WriteFile"):
        load_model(f"savedmodel:{tmp_path}/model")
    assert not (tmp_path / "evidence").exists()


def test_the_walkthroughs_teachers_are_looked_at_too(tmp_path: Path) -> None:
    write_savedmodel(tmp_path / "model", write_file, tmp_path / "evidence")
    with pytest.raises(ModelError, match="has operations other than arithmetic"):
        load_model(f"amoebanet,weights={tmp_path}/model")
    assert not (tmp_path / "evidence").exists()
