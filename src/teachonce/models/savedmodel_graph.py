"""What a SavedModel's graph would do besides arithmetic, told from the file before TensorFlow loads it.

A graph is a program: operations read and write files (``ReadFile``, ``WriteFile``, ``SaveV2``), call Python
(``PyFunc``), open connections, end the process. An operation is let pass where TensorFlow knows it, and either it has
no state and its name says nothing of files, Python or another program, or it is one of those that keep state within the
graph: variables, tables, random numbers, control flow. Everything else is named, and refused by the backend unless the
SPEC says ``trust=1``.

Looked at is what runs: of TensorFlow 2 the functions of the object graph, of TensorFlow 1 what signatures and the
initialization depend on, with all functions that they call. Every SavedModel holds operations that save and restore its
variables too; those that only this does are not run, but for TensorFlow 1's restoring, which may do nothing else.

Deliberately not included: limits of time and memory. A graph that is let pass can still run for ever.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

_STATE = re.compile(
    r"VarHandleOp|Variable(V2|Shape)?|TemporaryVariable|ReadVariableOp|VarIsInitializedOp|Assign(Add|Sub)?VariableOp"
    r"|DestroyResourceOp|DisableCopyOnRead|Resource(Gather|GatherNd|Scatter\w+|StridedSliceAssign)"
    r"|StatefulPartitionedCall|If|While|Case|Assert|CheckNumerics(V2)?|GuaranteeConst|Empty|DeepCopy"
    r"|Random(Crop|Gamma|Poisson|PoissonV2|Shuffle|StandardNormal|Uniform|UniformInt)|TruncatedNormal|Multinomial"
    r"|ParameterizedTruncatedNormal|Stateful(Uniform|StandardNormal|TruncatedNormal|RandomBinomial)\w*"
    r"|RngSkip|RngReadAndSkip|StatelessRandomGetAlg|SampleDistortedBoundingBox(V2)?|TensorArray\w*|Stack\w*|CudnnRNN\w*"
    r"|(Anonymous)?(Mutable)?(Dense)?HashTable(OfTensors)?(V2)?|InitializeTableV2|LookupTable\w+V2"
)
"""Operations with a state that stays within the graph."""

_OUTSIDE = re.compile(
    r"File(?!name)|Checkpoint|^(Save|Restore)|PyFunc|Dataset|Iterator|Reader|^Debug|^Copy(Host)?$|ImmutableConst|Abort"
    r"|VocabRemapping|Skipgram|(Decode|Encode)Proto"
)
"""Names of operations without a declared state that read, write or call something else all the same."""

_RESTORING = frozenset({"RestoreV2", "Restore", "RestoreSlice"})


def find_outside_operations(meta_graph: Any, *, is_only: bool) -> list[str]:
    """Names of the operations that do more than arithmetic, sorted; ``meta_graph`` is a ``MetaGraphDef``.

    ``is_only``: the SavedModel has no other graph. TensorFlow takes one among several as TensorFlow 1 did.
    """
    graph = meta_graph.graph_def
    functions = {function.signature.name: function.node_def for function in graph.library.function}
    if is_only and meta_graph.HasField("object_graph_def"):
        return sorted(set(_outside([], _named_functions(meta_graph.object_graph_def), functions)))
    nodes = {node.name: node for node in graph.node}
    infos = [info for signature in meta_graph.signature_def.values() for info in signature.outputs.values()]
    answers = [name for info in infos for name in _tensor_names(info)]
    found = set(_outside(_ancestors(nodes, [*answers, *_collected(meta_graph)]), [], functions))
    restored = _outside(_ancestors(nodes, [meta_graph.saver_def.restore_op_name]), [], functions)
    return sorted(found | (set(restored) - _RESTORING))


def _named_functions(objects: Any) -> list[str]:
    """The functions that an object graph may call: those that it lists, and those that its objects name."""
    named = set(objects.concrete_functions)
    for node in objects.nodes:
        named |= {*node.function.concrete_functions, node.bare_concrete_function.concrete_function_name}
    return sorted(named)


def _tensor_names(info: Any) -> list[str]:
    sparse = info.coo_sparse
    names = [info.name, sparse.values_tensor_name, sparse.indices_tensor_name, sparse.dense_shape_tensor_name]
    return [*names, *(name for part in info.composite_tensor.components for name in _tensor_names(part))]


def _collected(meta_graph: Any) -> list[str]:
    """Operations that are run at loading: TensorFlow 1 keeps their names in collections."""
    names = ("saved_model_main_op", "legacy_init_op", "table_initializer")
    known = meta_graph.collection_def
    return [value for name in names if name in known for value in known[name].node_list.value]


def _ancestors(nodes: dict[str, Any], names: Iterable[str]) -> list[Any]:
    """The nodes that the named ones depend on, themselves among them."""
    waiting = [_node_name(name) for name in names]
    found: dict[str, Any] = {}
    while waiting:
        name = waiting.pop()
        if name in found or name not in nodes:
            continue
        found[name] = nodes[name]
        waiting += [_node_name(source) for source in nodes[name].input]
    return list(found.values())


def _node_name(tensor: str) -> str:
    return tensor.removeprefix("^").partition(":")[0]


def _outside(nodes: Iterable[Any], roots: Iterable[str], functions: dict[str, Any]) -> Iterator[str]:
    """What the nodes, the functions ``roots`` and all functions that they call do besides arithmetic."""
    from tensorflow.python.framework import op_def_registry

    waiting, seen = [*roots], set(roots)
    batch = list(nodes)
    while True:
        for node in batch:
            called = [node.op] if node.op in functions else []
            for value in node.attr.values():
                called += [value.func.name, *(function.name for function in value.list.func)]
            for name in called:
                if name in functions and name not in seen:
                    seen.add(name)
                    waiting.append(name)
            if node.op in functions:
                continue
            known = op_def_registry.get(node.op)
            if known is None or _OUTSIDE.search(node.op) or (known.is_stateful and not _STATE.fullmatch(node.op)):
                yield node.op
        if not waiting:
            return
        batch = list(functions.get(waiting.pop(), []))
