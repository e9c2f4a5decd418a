"""LightGCN's graph, and how often it is propagated."""

from __future__ import annotations

import torch

from ckd.data.batch import Batches
from ckd.data.domain import Domain
from ckd.evaluation.ranks import rank_targets
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


def test_a_step_and_an_evaluation_propagate_once(tiny: dict[str, Domain]) -> None:
    domain = list(tiny.values())[-1]
    torch.manual_seed(0)
    model = LightGCN.create(LightGCNConfig(embedding_size=4, n_layers=3), domain)
    passes = []
    model.graph.register_forward_hook(lambda *_: passes.append(1))
    batch = Batches(domain, domain.instances("train"))(torch.arange(20).numpy())
    loss = model.base_loss(batch, *model(batch))
    loss.backward()
    assert len(passes) == 3
    before = rank_targets(model, domain, "valid", batch_size=5).rank
    assert len(passes) == 6
    assert (rank_targets(model, domain, "test", batch_size=5).rank > 0).all()
    assert len(passes) == 6
    with torch.no_grad():
        model.user_embedding.weight.copy_(model.user_embedding.weight.flip(0))
    assert (rank_targets(model, domain, "valid", batch_size=5).rank != before).any()
    assert len(passes) == 9
