"""The incidence form of CensNet against its matrix form, and the laws that any implementation of it must keep."""

import copy

import oracle
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tcgn_hub.models.censnet import CensNet, EdgeLayer, GraphEmbed, NodeLayer, build_graph, select_edges

NODE_DIM, EDGE_DIM = 5, 4
KINDS = ["node", "edge", "censnet"]

# the same examples every time, and no time limit for one of them on a busy machine
law = settings(deadline=None, max_examples=100, derandomize=True)

# (number of nodes, edges)
GRAPHS = {
    "one edge": (2, [(0, 1)]),
    "self-loop alone": (3, [(1, 1)]),
    "self-loops only": (4, [(0, 0), (1, 1), (3, 3)]),
    "self-loop on an edge": (3, [(0, 0), (0, 1)]),
    "both directions": (3, [(0, 1), (1, 0)]),
    "both directions among others": (5, [(0, 1), (1, 0), (1, 2), (0, 3), (3, 0), (4, 4), (4, 0)]),
    "star out": (7, [(0, n) for n in range(1, 7)]),
    "star in": (7, [(n, 0) for n in range(1, 7)]),
    "star both ways around a self-loop": (6, [(0, n) for n in range(6)] + [(n, 0) for n in range(1, 6)]),
    "isolated nodes": (9, [(2, 3), (3, 4), (4, 2), (4, 4)]),
    "ring": (6, [(n, (n + 1) % 6) for n in range(6)]),
    "complete": (4, [(i, j) for i in range(4) for j in range(4)]),
}


def make_graph(num_nodes, edges, dtype=torch.float64):
    """Every list of edges is one image of the batch."""
    flat = torch.tensor([sorted(i * num_nodes + j for i, j in image) for image in edges])
    return build_graph(flat, num_nodes, dtype)


@st.composite
def graphs(draw, max_nodes=8, max_edges=20, max_batch=3):
    num_nodes = draw(st.integers(2, max_nodes))
    num_edges = draw(st.integers(1, min(max_edges, num_nodes**2)))
    # few distinct nodes make hubs and leave others isolated
    used = draw(st.integers(1, num_nodes))
    pairs = [(i, j) for i in range(num_nodes) for j in range(num_nodes) if i < used or j < used]
    image = st.permutations(pairs).map(lambda order: order[: min(num_edges, len(pairs))])
    return make_graph(num_nodes, draw(st.lists(image, min_size=1, max_size=max_batch)))


def make_inputs(graph, seed):
    gen = torch.Generator().manual_seed(seed)
    B, N = graph.adj.shape[:2]
    x = torch.randn(B, N, NODE_DIM, generator=gen, dtype=torch.float64)
    z = torch.randn(B, graph.flat.shape[1], EDGE_DIM, generator=gen, dtype=torch.float64)
    return x, z


def make_module(kind, seed):
    torch.manual_seed(seed)
    if kind == "node":
        module = NodeLayer(NODE_DIM, 7, EDGE_DIM, dtype=torch.float64)
    elif kind == "edge":
        module = EdgeLayer(EDGE_DIM, 7, NODE_DIM, dtype=torch.float64)
    else:
        module = CensNet(NODE_DIM, edge_dim=EDGE_DIM, node_out=7, edge_out=3, dtype=torch.float64)
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)
    return module


def literal_form(kind, module):
    if kind == "node":
        return lambda x, z, graph: oracle.literal_node_layer(module, x, z, graph)
    if kind == "edge":
        return lambda x, z, graph: oracle.literal_edge_layer(module, x, z, graph)
    literal = oracle.LiteralCensNet(NODE_DIM, edge_dim=EDGE_DIM, node_out=7, edge_out=3, dtype=torch.float64)
    literal.load_state_dict(module.state_dict())
    # shared parameters, so that gradients of both forms are taken with respect to the same tensors
    for ours, theirs in zip(module.children(), literal.children(), strict=True):
        theirs._parameters = ours._parameters
    return literal


def as_tuple(out):
    return out if isinstance(out, tuple) else (out,)


def assert_close(actual, expected, **kwargs):
    torch.testing.assert_close(actual, expected, **{"rtol": 1e-8, "atol": 1e-10, **kwargs})


def assert_forms_agree(kind, module, x, z, graph, gradients=True):
    """Same values and, with respect to both inputs and every parameter, same gradients."""
    literal = literal_form(kind, module)
    x, z = x.clone().requires_grad_(), z.clone().requires_grad_()
    ours, theirs = as_tuple(module(x, z, graph)), as_tuple(literal(x, z, graph))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.isfinite(a).all()
        assert_close(a, b)

    gen = torch.Generator().manual_seed(7)
    towards = [torch.randn(out.shape, generator=gen, dtype=torch.float64) for out in ours]
    names = ["x", "z", *dict(module.named_parameters())]
    wrt = [x, z, *module.parameters()]
    ours = torch.autograd.grad(ours, wrt, towards, allow_unused=True)
    theirs = torch.autograd.grad(theirs, wrt, towards, allow_unused=True)
    for name, tensor, a, b in zip(names, wrt, ours, theirs, strict=True):
        a, b = (torch.zeros_like(tensor) if g is None else g for g in (a, b))
        assert torch.isfinite(a).all(), name
        if gradients:
            assert_close(a, b, msg=lambda text, name=name: f"gradient of {name}: {text}")


@pytest.mark.parametrize("kind", KINDS)
@law
@given(graph=graphs(), seed=st.integers(0, 2**31))
def test_random_graphs_agree_with_the_matrix_form(kind, graph, seed):
    assert_forms_agree(kind, make_module(kind, seed), *make_inputs(graph, seed + 1), graph)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", GRAPHS)
def test_named_graphs_agree_with_the_matrix_form(kind, name):
    num_nodes, edges = GRAPHS[name]
    graph = make_graph(num_nodes, [edges])
    for seed in range(3):
        assert_forms_agree(kind, make_module(kind, seed), *make_inputs(graph, seed), graph)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("name", GRAPHS)
def test_edge_layer_with_v_of_one_sign(name, sign):
    num_nodes, edges = GRAPHS[name]
    graph = make_graph(num_nodes, [edges])
    layer = make_module("edge", 0)
    nn.init.uniform_(layer.p, 0.5, 1.5)
    x, z = make_inputs(graph, 1)
    x = sign * x.abs()
    assert_forms_agree("edge", layer, x, z, graph)
    if sign < 0:
        # nothing beats the diagonal, so the column maximum of an edge is its 1 / D_e
        src, dst = oracle.ends(graph, 0)
        norm_edge_adj = oracle.normalised_edge_adjacency(oracle.edges_sharing_a_node(src, dst, x.dtype))
        F = oracle.edge_matrix(oracle.incidence(src, dst, num_nodes, x.dtype), x[0], layer.p, norm_edge_adj)
        assert_close(oracle.column_maximum(F)[0], norm_edge_adj.diagonal())


@law
@given(graph=graphs(max_nodes=5), data=st.data())
def test_ties_of_the_column_maximum(graph, data):
    # small integers make v equal at both ends, and zero; the gradient of a maximum has no one value there
    B, N = graph.adj.shape[:2]
    v = data.draw(st.lists(st.integers(-1, 2), min_size=B * N, max_size=B * N))
    x = torch.tensor(v, dtype=torch.float64).view(B, N, 1).expand(B, N, NODE_DIM) / NODE_DIM
    layer = make_module("edge", 3)
    nn.init.ones_(layer.p)
    assert_forms_agree("edge", layer, x, make_inputs(graph, 3)[1], graph, gradients=False)


@pytest.mark.parametrize("name", GRAPHS)
def test_constant_features_tie_everywhere(name):
    num_nodes, edges = GRAPHS[name]
    graph = make_graph(num_nodes, [edges])
    x = torch.full((1, num_nodes, NODE_DIM), 0.5, dtype=torch.float64)
    z = torch.full((1, len(edges), EDGE_DIM), 0.5, dtype=torch.float64)
    for kind in KINDS:
        assert_forms_agree(kind, make_module(kind, 0), x, z, graph, gradients=False)


def test_one_edge_by_hand():
    graph = make_graph(2, [[(0, 1)]])
    x, z = make_inputs(graph, 0)
    # node 1 has no outgoing edge, so A_hat is 0
    node = make_module("node", 0)
    assert_close(node(x, z, graph), node.bias.expand(1, 2, -1))
    # F is the single number 1 / D_e and its own column maximum
    edge = make_module("edge", 0)
    assert_close(edge(x, z, graph), z @ edge.weight + edge.bias)


def test_both_directions_by_hand():
    graph = make_graph(2, [[(0, 1), (1, 0)]])
    x = torch.tensor([[[2.0], [1.0]]], dtype=torch.float64)
    z = torch.tensor([[[3.0], [5.0]]], dtype=torch.float64)
    edge = EdgeLayer(1, 1, 1, dtype=torch.float64)
    node = NodeLayer(1, 1, 1, dtype=torch.float64)
    for layer in (edge, node):
        nn.init.ones_(layer.weight)
        nn.init.ones_(layer.p)
    # L is all ones, D_e = 3 and M_e = [[1, 3], [3, 1]]: F / colmax F = [[1/3, 1], [1, 1/3]]
    assert_close(edge(x, z, graph), torch.tensor([[[1.0 + 5], [3 + 5 / 3]]], dtype=torch.float64))
    # A_hat = [[0, 1], [1, 0]] and M = [[1, 8], [8, 1]]
    assert_close(node(x, z, graph), torch.tensor([[[8.0], [16.0]]], dtype=torch.float64))


@law
@given(graph=graphs(max_batch=1), data=st.data())
def test_relabelling_nodes_permutes_the_outputs(graph, data):
    N = graph.adj.shape[1]
    label = torch.tensor(data.draw(st.permutations(range(N))))
    net = make_module("censnet", 5)
    x, z = make_inputs(graph, 6)
    src, dst = oracle.ends(graph, 0)
    flat, order = (label[src] * N + label[dst]).sort()
    relabelled = torch.empty_like(x)
    relabelled[:, label] = x
    nodes, edges = net(x, z, graph)
    new_nodes, new_edges = net(relabelled, z[:, order], build_graph(flat[None], N, torch.float64))
    assert_close(new_nodes[:, label], nodes)
    assert_close(new_edges, edges[:, order])


@law
@given(graph=graphs(max_batch=4), seed=st.integers(0, 2**31))
def test_a_batch_equals_its_images_alone(graph, seed):
    net = make_module("censnet", seed)
    x, z = make_inputs(graph, seed)
    nodes, edges = net(x, z, graph)
    for b in range(len(x)):
        alone = build_graph(graph.flat[b : b + 1], x.shape[1], torch.float64)
        for together, single in zip((nodes, edges), net(x[b : b + 1], z[b : b + 1], alone), strict=True):
            assert_close(together[b : b + 1], single)


def test_float32_stays_close_to_float64():
    gen = torch.Generator().manual_seed(0)
    flat = torch.stack([torch.randperm(49 * 49, generator=gen)[: 49 * 4].sort().values for _ in range(2)])
    net = make_module("censnet", 0)
    x, z = make_inputs(build_graph(flat, 49), 0)
    expected = net(x, z, build_graph(flat, 49, torch.float64))
    actual = copy.deepcopy(net).float()(x.float(), z.float(), build_graph(flat, 49))
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factor", [0.0, 0.5])
def test_the_matrix_form_drops_where_the_incidence_form_does(factor):
    class Bend(nn.Module):
        """Stands in for dropout, without its randomness; applied once too often or elsewhere, it shows."""

        def forward(self, x):
            return factor * x + x.square() / 8

    net = make_module("censnet", 1)
    net.drop = Bend()
    literal = literal_form("censnet", net)
    literal.drop = Bend()
    graph = make_graph(5, [GRAPHS["both directions among others"][1]])
    x, z = make_inputs(graph, 2)
    for a, b in zip(net(x, z, graph), literal(x, z, graph), strict=True):
        assert_close(a, b)


def test_dropout_acts_in_training_only():
    net = make_module("censnet", 1)
    net.drop.p = 1.0
    graph = make_graph(5, [GRAPHS["both directions among others"][1]])
    x, z = make_inputs(graph, 2)
    for form in (net, oracle.literal_model(net)):
        nodes, edges = form.train()(x, z, graph)
        # nothing is left but the last layer's bias
        assert_close(nodes, net.node2.bias.expand_as(nodes))
        assert not edges.any()
        assert form.eval()(x, z, graph)[1].any()


def stable_sort_reference(score, num_edges):
    # Python's sort is stable, so equal scores keep the order of their indices
    rows = [sorted(sorted(range(len(row)), key=lambda k: -row[k])[:num_edges]) for row in score.tolist()]
    return torch.tensor(rows)


scores = st.one_of(
    st.integers(0, 3).map(float),
    st.floats(-1, 1, width=32),
    st.sampled_from([0.0, -0.0, 1e-30, 0.5, 1.0]),
)


@law
@given(data=st.data())
def test_select_edges_equals_a_stable_sort(data):
    B, K = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 30))
    num_edges = data.draw(st.integers(1, K))
    row = st.lists(scores, min_size=K, max_size=K)
    score = torch.tensor(data.draw(st.lists(row, min_size=B, max_size=B)), dtype=torch.float32)
    index = select_edges(score, num_edges)
    assert index.shape == (B, num_edges)
    assert index.dtype == torch.int64
    assert (index.diff(dim=1) > 0).all()
    assert torch.equal(index, stable_sort_reference(score, num_edges))


@pytest.mark.parametrize("value", [0.0, 1 / 196, -3.0])
def test_select_edges_of_a_constant_takes_the_first(value):
    index = select_edges(torch.full((2, 196 * 196), value), 784)
    assert torch.equal(index, torch.arange(784).expand(2, -1))


def test_select_edges_at_full_size_with_many_ties():
    gen = torch.Generator().manual_seed(0)
    score = torch.randint(0, 50, (3, 196 * 196), generator=gen).float()
    assert torch.equal(select_edges(score, 784), stable_sort_reference(score, 784))


def graph_embed(drop=0.0):
    torch.manual_seed(0)
    return GraphEmbed(16, num_heads=2, grid_size=5, edges_per_node=4, drop=drop)


def spy(embed, seen):
    """Record the edges chosen and the dtypes inside."""
    choose = embed.edges

    def edges(attn):
        seen["attention"] = attn.dtype
        seen["edges"] = choose(attn)
        return seen["edges"]

    def before_censnet(module, args):
        seen["x"], seen["z"], seen["adj"] = args[0].dtype, args[1].dtype, args[2].adj.dtype

    embed.edges = edges
    embed.censnet.register_forward_pre_hook(before_censnet)


@pytest.mark.parametrize("autocast_dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_graph_in_float32(autocast_dtype):
    embed = graph_embed()
    seen = {}
    spy(embed, seen)
    gen = torch.Generator().manual_seed(1)
    patch_tokens, conv_tokens = torch.randn(2, 3, 25, 16, generator=gen)

    expected = embed(patch_tokens, conv_tokens)
    expected_edges = seen.pop("edges")
    with torch.autocast("cpu", autocast_dtype):
        actual = embed(patch_tokens, conv_tokens)
    assert torch.equal(seen.pop("edges"), expected_edges)
    assert set(seen.values()) == {torch.float32}
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)

    # tokens come in the autocast dtype from the layers before, and go out in it to the layers after
    low = patch_tokens.to(autocast_dtype), conv_tokens.to(autocast_dtype)
    expected = embed(low[0].float(), low[1].float())
    expected_edges = seen.pop("edges")
    with torch.autocast("cpu", autocast_dtype):
        actual = embed(*low)
    assert torch.equal(seen.pop("edges"), expected_edges)
    assert set(seen.values()) == {torch.float32}
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == autocast_dtype
        torch.testing.assert_close(a, b.to(autocast_dtype), rtol=0, atol=0)


@pytest.mark.parametrize("patch", ["noise", "constant"])
def test_graph_embed_agrees_with_the_matrix_form(patch):
    embed = graph_embed().double()
    literal = oracle.literal_model(embed)
    assert type(literal) is oracle.LiteralGraphEmbed
    assert type(literal.censnet) is oracle.LiteralCensNet
    gen = torch.Generator().manual_seed(1)
    tokens = torch.randn(2, 3, 25, 16, generator=gen, dtype=torch.float64)
    if patch == "constant":
        # every score off the diagonal ties
        tokens[:] = tokens[:, :, :1].clone()
    for a, b in zip(embed(*tokens), literal(*tokens), strict=True):
        assert_close(a, b)


def test_whole_model_agrees_with_the_matrix_form():
    torch.manual_seed(0)
    model = timm.create_model("tcgn_base").eval()
    literal = oracle.literal_model(model)
    assert sum(isinstance(m, oracle.LiteralCensNet) for m in literal.modules()) == 2
    assert literal.state_dict().keys() == model.state_dict().keys()
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        features, expected = model.forward_features(images), literal.forward_features(images)
        assert_close(features, expected, rtol=1e-4, atol=1e-4)
        assert_close(model.forward_head(features), literal.forward_head(expected), rtol=1e-4, atol=1e-5)
