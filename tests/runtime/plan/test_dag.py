import numpy as np
from support.problems import tiny_plan, tiny_spec

from hotcold.runtime.plan.dag import build_dag


def mixed_plan() -> np.ndarray:
    """Layer 0 on the GPU, layer 1 on the CPU, layer 2 on both."""
    device_LN = np.zeros((3, 40), dtype=np.int8)
    device_LN[1] = 1
    device_LN[2, 10:] = 1
    return device_LN


def test_nodes_exist_only_where_a_device_owns_neurons() -> None:
    dag = build_dag(tiny_spec(), tiny_plan(mixed_plan()), predicts=True)
    assert [node.id for node in dag.nodes] == [
        *("attention.0", "predict.0", "hot.0", "merge.0"),
        *("attention.1", "predict.1", "cold.1", "fetch.1", "merge.1"),
        *("attention.2", "predict.2", "hot.2", "cold.2", "fetch.2", "merge.2"),
    ]
    assert dag.lanes == ("gpu0", "predictor", "cpu0")
    assert dag.node["cold.2"].device_choices == ("cpu0",)
    assert dag.node["fetch.2"].device_choices == ("gpu0",)


def test_edges_follow_the_data() -> None:
    dag = build_dag(tiny_spec(), tiny_plan(mixed_plan()), predicts=True)
    assert set(dag.edges) == {
        *(("attention.0", "predict.0"), ("attention.0", "hot.0"), ("attention.0", "merge.0")),
        *(("predict.0", "hot.0"), ("hot.0", "merge.0"), ("merge.0", "attention.1")),
        *(("attention.1", "predict.1"), ("attention.1", "cold.1"), ("attention.1", "merge.1")),
        *(("predict.1", "cold.1"), ("cold.1", "merge.1"), ("merge.1", "attention.2")),
        *(("attention.2", "predict.2"), ("attention.2", "hot.2"), ("attention.2", "cold.2")),
        *(("attention.2", "merge.2"), ("predict.2", "hot.2"), ("predict.2", "cold.2")),
        *(("hot.2", "merge.2"), ("cold.2", "merge.2")),
        *(("attention.1", "fetch.1"), ("predict.1", "fetch.1"), ("fetch.1", "merge.1")),
        *(("attention.2", "fetch.2"), ("predict.2", "fetch.2"), ("fetch.2", "merge.2")),
    }
    assert len(dag.edges) == len(set(dag.edges))
    position = {node.id: i for i, node in enumerate(dag.nodes)}
    assert all(position[source] < position[target] for source, target in dag.edges)


def test_without_a_predictor_there_is_nothing_to_predict() -> None:
    dag = build_dag(tiny_spec(), tiny_plan(mixed_plan()), predicts=False)
    assert {node.kind for node in dag.nodes} == {"attention", "hot", "cold", "fetch", "merge"}
    assert "predictor" not in dag.lanes
