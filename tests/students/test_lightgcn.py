"""LightGCN's graph, and how often it is propagated."""

from __future__ import annotations

import pytest
import torch

from ckd.data.batch import Batches
from ckd.data.domain import Domain
from ckd.evaluation.ranks import rank_targets
from ckd.students import lightgcn
from ckd.students.lightgcn import Graph, LightGCN, LightGCNConfig


def edges(graph: Graph) -> set[tuple[int, int]]:
    counts = graph.offsets.diff()
    owners = torch.arange(len(counts)).repeat_interleave(counts)
    return set(zip(owners.tolist(), graph.neighbours.tolist(), strict=True))


def test_the_graph_is_the_training_part_and_no_more(tiny: dict[str, Domain]) -> None:
    domain = list(tiny.values())[-1]
    pairs = {
        (user, domain.n_users + int(domain.items[at]))
        for user in range(domain.n_users)
        for at in range(domain.indptr[user], domain.indptr[user + 1])
        if domain.split[at] == 0
    }
    held_out = {(int(u), domain.n_users + int(t)) for u, t in zip(*held(domain), strict=True)}
    found = edges(Graph.of(domain))
    assert found == pairs | {(item, user) for user, item in pairs}
    assert held_out - pairs
    assert not (held_out - pairs) & found


def held(domain: Domain) -> tuple[list[int], list[int]]:
    """Users and items of the validation and test targets."""
    parts = [domain.instances("valid"), domain.instances("test")]
    return [int(u) for p in parts for u in p.users], [int(t) for p in parts for t in p.targets]


def test_nodes_without_edges_keep_a_share_of_their_own_vector() -> None:
    graph = Graph(torch.tensor([0, 0]), torch.tensor([1, 1]), n_users=2, n_items=2)
    model = LightGCN(LightGCNConfig(embedding_size=3, n_layers=2), graph, n_users=2, n_items=2)
    users, items = model.vectors()
    torch.testing.assert_close(users[1], model.user_embedding.weight[1] / 3)
    torch.testing.assert_close(items[2], model.item_embedding.weight[2] / 3)
    expected = (2 * model.user_embedding.weight[0] + model.item_embedding.weight[1]) / 3
    torch.testing.assert_close(users[0], expected, atol=1e-5, rtol=0)


def test_a_step_and_an_evaluation_propagate_once(tiny: dict[str, Domain], monkeypatch: pytest.MonkeyPatch) -> None:
    domain = list(tiny.values())[-1]
    torch.manual_seed(0)
    model = LightGCN.create(LightGCNConfig(embedding_size=4, n_layers=3), domain)
    passes, neighbours_sum = [], lightgcn._neighbours_sum
    monkeypatch.setattr(lightgcn, "_neighbours_sum", lambda *args: passes.append(1) or neighbours_sum(*args))
    batch = Batches(domain, domain.instances("train"))(torch.arange(20).numpy())
    loss = model.base_loss(batch, *model(batch))
    assert len(passes) == 3
    loss.backward()
    assert len(passes) == 6
    before = rank_targets(model, domain, "valid", batch_size=5).rank
    assert len(passes) == 9
    assert (rank_targets(model, domain, "test", batch_size=5).rank > 0).all()
    assert len(passes) == 9
    with torch.no_grad():
        model.user_embedding.weight.copy_(model.user_embedding.weight.flip(0))
    assert (rank_targets(model, domain, "valid", batch_size=5).rank != before).any()
    assert len(passes) == 12


@pytest.mark.parametrize("n_layers", range(4))
def test_smoothing_is_the_mean_over_the_powers_of_the_adjacency(n_layers: int) -> None:
    torch.manual_seed(1)
    users, items = torch.randint(0, 5, (20,)), torch.randint(1, 8, (20,))
    graph = Graph(users, items, n_users=5, n_items=7)
    x = torch.randn(13, 3, dtype=torch.float64, requires_grad=True)
    found = graph(x, n_layers)
    dense = torch.zeros(13, 13, dtype=torch.float64)
    for one, other in edges(graph):
        dense[one, other] = graph.scale[one, 0] * graph.scale[other, 0]
    mean = sum(torch.linalg.matrix_power(dense, k) for k in range(n_layers + 1)) / (n_layers + 1)
    torch.testing.assert_close(found, mean @ x)
    assert torch.autograd.gradcheck(lambda given: graph(given, n_layers), [x])
